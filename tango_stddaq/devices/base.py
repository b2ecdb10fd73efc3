"""What every Tango device of a stage has in common: states, commands, counters, log."""

import gc
import logging
import sys
import threading
from collections.abc import Iterable
from typing import Any, ClassVar, Final

import tango
import tango.server
from tango import AttrWriteType, DevState
from tango.server import Device, attribute, command, device_property

from tango_stddaq import __version__
from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.devices import log_face
from tango_stddaq.devices.events import EventPusher, push_change
from tango_stddaq.devices.log_face import LogFace, TangoLog
from tango_stddaq.errors import ConfigError, StdDaqError
from tango_stddaq.io import influx, logs, processes
from tango_stddaq.io.cpus import parse_cpus
from tango_stddaq.stages.base import LOG_LINES, Stage, StageState
from tango_stddaq.stats import Counter

STATES: Final = {
    StageState.STANDBY: DevState.STANDBY,
    StageState.WAITING: DevState.INIT,
    StageState.RUNNING: DevState.RUNNING,
    StageState.ALARM: DevState.ALARM,
    StageState.FAULT: DevState.FAULT,
}
tango_errors = log_face.tango_errors
READ_WRITE: Final = AttrWriteType.READ_WRITE
PUSHED: Final = {"change_event_implemented": True, "change_event_detect": False}
"""The device pushes a change event whenever the value changed; Tango asks for no abs_change."""
PREVIEW_SIDE: Final = 1024
"""Pixels a preview has at most in each direction."""


def lower_camel(name: str) -> str:
    """Return a snake-case name as Tango spells attributes: `bad_size` becomes `badSize`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def counter_attributes(counters: Iterable[Counter]) -> dict[str, attribute]:
    """Return one Tango attribute for each counter of a stage, by its Tango name."""
    return {lower_camel(counter.name): _counter_attribute(counter) for counter in counters}


def _counter_attribute(counter: Counter) -> attribute:
    def read(self: "StageDevice") -> int:
        return self.counter(counter.name)

    limits = {"max_alarm": "1"} if counter.loss else {}
    return attribute(
        fget=read,
        dtype="DevULong64",
        label=counter.name.replace("_", " "),
        unit=counter.unit,
        doc=counter.description,
        format="%d",
        **PUSHED,
        **limits,
    )


class StageDevice(LogFace):
    """Base of the Tango classes of stages; a subclass says which stage it drives."""

    stage_type: ClassVar[type[Stage]]

    ConfigFile = device_property(
        dtype=str, default_value="", doc="JSON configuration file that all services share."
    )
    AutoStart = device_property(
        dtype=bool, default_value=True, doc="Start the stage when the server starts."
    )

    Cpus = device_property(
        dtype=str,
        default_value="",
        doc="CPUs that the run loop and the threads it starts may use: 2-5 or 0,2; empty: all.",
    )

    def make_stage(self, config: DaqConfig) -> Stage:
        """Build the stage from the configuration and the device's properties."""
        raise NotImplementedError

    # -- life --------------------------------------------------------------------------------------

    def init_device(self) -> None:
        """Read the configuration and start the stage; an error leaves the device in FAULT."""
        self._lock = threading.RLock()
        self._stage: Stage | None = None
        self._pushed: dict[str, object] = {}
        self._init_error = ""
        super().init_device()
        self._tango_log = TangoLog(self)
        self._pusher = EventPusher(self.push_changes)
        self.add_version_info("tango_stddaq", __version__)
        self.set_change_event("State", True, False)
        self.set_change_event("Status", True, False)
        self._load_and_start()

    def _load_and_start(self) -> None:
        try:
            if not self.ConfigFile:
                raise ConfigError("property ConfigFile: is empty; set it to the configuration file")
            config = config_module.load(self.ConfigFile)
            logs.set_level(config.log_level)
            logs.note_unknown_keys(config.unknown_keys)
            stage = self.make_stage(config)
            stage.cpus = self._cpus()
            stage.on_tick = self._pusher.wake
            stage.on_message = self._tango_log.add
            self._stage = stage
            if self.AutoStart:
                stage.start()
            self._init_error = ""
        except StdDaqError as error:
            self._init_error = str(error)
        except Exception as error:
            self._init_error = f"{type(error).__name__}: {error}"
        if self._init_error:
            logging.getLogger(f"tango_stddaq.{self.stage_type.name}").error(self._init_error)
        self._pusher.wake()

    def _cpus(self) -> frozenset[int] | None:
        try:
            return parse_cpus(self.Cpus)
        except ConfigError as error:
            raise ConfigError(f"property Cpus: {error}") from None

    def delete_device(self) -> None:
        """Stop the stage."""
        with self._lock:
            stage = self._stage
            if stage is not None:
                stage.on_tick = stage.on_message = None
                stage.stop()
            self._stage = None
        self._pusher.stop()

    @property
    def stage(self) -> Stage:
        """The stage.

        Raises
        ------
        StdDaqError
            If there is none, because the configuration cannot be used.
        """
        if self._stage is None:
            raise StdDaqError(self._init_error or "the device is not initialised")
        return self._stage

    # -- state -------------------------------------------------------------------------------------

    def dev_state(self) -> DevState:
        """State of the stage."""
        if self._init_error or self._stage is None:
            return DevState.FAULT
        return STATES[self._stage.state]

    def dev_status(self) -> str:
        """One sentence for a person; in FAULT the reason."""
        if self._init_error or self._stage is None:
            return self._init_error or "The device is not initialised."
        return self._stage.status

    def counter(self, name: str) -> int:
        """Return a counter; 0 while there is no stage."""
        return self._stage.counters[name] if self._stage is not None else 0

    def push_changes(self) -> None:
        """Push a change event of everything that has changed; called a few times a second."""
        self._tango_log.flush()
        for name, value in self.watched().items():
            if self._pushed.get(name) != value:
                self._pushed[name] = value
                push_change(self, name, value)

    def watched(self) -> dict[str, Any]:
        """Return the values whose changes are pushed, by attribute name."""
        stage = self._stage
        values: dict[str, Any] = {"State": self.dev_state(), "Status": self.dev_status()}
        if stage is not None:
            values["rate"] = round(stage.rate_hz, 3)
            for name, value in stage.counters.items():
                values[lower_camel(name)] = value
        return values

    # -- attributes --------------------------------------------------------------------------------

    @attribute(dtype=str, doc="Version of tango_stddaq.", label="version")
    def version(self) -> str:
        return __version__

    @attribute(dtype=str, doc="detector_name of the configuration.", label="detector name")
    def detectorName(self) -> str:
        return self._stage.config.detector_name if self._stage is not None else ""

    @attribute(
        dtype=float,
        unit="Hz",
        format="%.1f",
        label="rate",
        doc="Rate at which the stage works: of its main counter over the last seconds.",
        **PUSHED,
    )
    def rate(self) -> float:
        return self._stage.rate_hz if self._stage is not None else 0.0

    @attribute(
        dtype=(str,), max_dim_x=LOG_LINES, label="log", doc="Last messages of the stage, oldest first."
    )
    def log(self) -> list[str]:
        return list(self._stage.log_lines) if self._stage is not None else []

    def _sink(self) -> influx.InfluxSink | None:
        return influx.sink(self._stage.config.influxdb) if self._stage is not None else None

    # -- commands ----------------------------------------------------------------------------------

    @command(doc_in="Start the stage.")
    @tango_errors
    def Start(self) -> None:
        with self._lock:
            if self._init_error:
                self._reload()
            if self.stage.error is not None:
                self.stage.stop()  # its run loop may be about to end
            if not self.stage.running:
                self._note("[event] Start by a client")
                self.stage.start()
            self._init_error = ""
            self._pusher.wake()

    @command(doc_in="Stop the stage; what it accepted is finished.")
    @tango_errors
    def Stop(self) -> None:
        with self._lock:
            if self.stage.running:
                self._note("[event] Stop by a client")
            self.stage.stop()
            self._pusher.wake()

    @command(doc_in="Set the counters to zero, forget alarms and errors.")
    @tango_errors
    def Reset(self) -> None:
        with self._lock:
            self._note("[event] Reset by a client")
            self.stage.reset()
            self._pusher.wake()

    @command(doc_in="Read ConfigFile again and restart the stage with it.")
    @tango_errors
    def ReloadConfig(self) -> None:
        with self._lock:
            self._note("[event] ReloadConfig by a client")
            self._reload()
            if self._init_error:
                raise StdDaqError(self._init_error)

    def _note(self, message: str) -> None:
        if self._stage is not None:
            self._stage.say(logging.INFO, message)
        else:
            logging.getLogger(f"tango_stddaq.{self.stage_type.name}").info(message)

    def _reload(self) -> None:
        if self._stage is not None:
            self._stage.stop()
            self._stage = None
        self._load_and_start()


def serve(*classes: type[Device]) -> None:
    """Run a device server of these classes with the arguments of the process."""
    logs.configure(classes[0].__name__)
    processes.hear_endings()
    processes.die_with_parent()
    # What is loaded by now stays: the garbage collector need not look at it again and again.
    gc.freeze()
    # The name in the Tango database is the class, however the program was called.
    tango.server.run(classes, args=[classes[0].__name__, *sys.argv[1:]])
