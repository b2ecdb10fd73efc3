"""Tango class `StdDaq`: one device that drives a whole acquisition over all stages."""

import json
import logging
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import tango
from tango import DevState
from tango.server import attribute, command, device_property

from tango_stddaq import __version__
from tango_stddaq import config as config_module
from tango_stddaq.control.plan import plan
from tango_stddaq.devices.acquisition_face import AcquisitionFace
from tango_stddaq.devices.base import PUSHED, READ_WRITE, push_change, serve, tango_errors
from tango_stddaq.devices.live_stream import PREVIEW_SIDE
from tango_stddaq.devices.log_face import LogFace
from tango_stddaq.devices.reasons import first_line
from tango_stddaq.errors import AcquisitionError, ConfigError, StdDaqError
from tango_stddaq.io import config_file, logs
from tango_stddaq.io.preflight import Request
from tango_stddaq.stages.base import LOG_LINES

MONITOR_PERIOD_S: Final = 0.2
_CALL_TIMEOUT_MS: Final = 3000
_STATE_TIMEOUT_MS: Final = 1000
"""Short: a stage that hangs must not keep a command of the facade from returning in time."""
_DRIVER_ATTRIBUTES: Final = (
    "acquisitionStatus", "acquiring", "progress", "ledger", "endReason", "failed", "lastFile",
    "writerFiles", "meanImageRate",
)  # fmt: skip
_NOTHING: Final[dict[str, Any]] = {
    "status": "unknown",
    "busy": False,
    "progress": 0.0,
    "mean_rate_hz": 0.0,
    "rate_hz": 0.0,
    "ledger": {},
    "reason": "",
    "failed": False,
    "files": [],
    "master": "",
}


class StdDaq(AcquisitionFace, LogFace):
    """Configures, starts, follows and stops acquisitions; the device a beamline talks to."""

    ConfigFile = device_property(
        dtype=str, default_value="", doc="JSON configuration file that all services share."
    )
    StageDevices = device_property(
        dtype=(str,), default_value=[], doc="Devices of all stages, in the order of their start."
    )
    WriterDriverDevice = device_property(dtype=str, default_value="", doc="Device of the writer driver.")
    SourceDevice = device_property(
        dtype=str, default_value="", doc="Device of the stage that publishes the detector's images."
    )
    PreviewDevice = device_property(
        dtype=str, default_value="", doc="Device of the live stream that the preview comes from."
    )

    # -- life --------------------------------------------------------------------------------------

    def init_device(self) -> None:
        """Read the configuration and begin to follow the stages; never raises."""
        self._log = logging.getLogger("tango_stddaq.facade")
        self._log_lines: deque[str] = deque(maxlen=LOG_LINES)
        self._request = Request("")
        self._state_lock = threading.RLock()
        self._proxies: dict[tuple[str, int], tango.DeviceProxy] = {}
        self._pushed: dict[str, object] = {}
        self._driver_values = _NOTHING
        self._stage_states: dict[str, DevState | None] = {}
        self._waits: dict[str, str] = {}
        self._hosts: dict[str, str] = {}
        # Goes on from before an Init: what a monitor that is still about to end finds is not kept.
        self._n_commands = getattr(self, "_n_commands", 0) + 1
        self._detector_rate_hz = 0.0
        self._preview = np.zeros((1, 1), np.float32)
        self._preview_id = -1
        self._init_error = ""
        self._driver_error = ""
        super().init_device()
        self.add_version_info("tango_stddaq", __version__)
        for name in ("State", "Status"):
            self.set_change_event(name, True, False)
        try:
            config = config_module.load(self._config_file())
            logs.set_level(config.log_level)
            stages = plan(config, Path(self._config_file())).stages
            self._hosts = {server.device: server.host for server in stages if server.host}
            if not self.WriterDriverDevice:
                raise ConfigError("property WriterDriverDevice: is empty; set it to its device name")
        except StdDaqError as error:
            self._init_error = str(error)
        self._stop = threading.Event()
        self._monitor = threading.Thread(
            target=self._follow, args=(self._stop,), name="monitor", daemon=True
        )
        self._monitor.start()

    def delete_device(self) -> None:
        """End the thread that follows the stages, now or when it has what it waits for."""
        self._stop.set()
        self._monitor.join(MONITOR_PERIOD_S + _STATE_TIMEOUT_MS / 1000)

    def _config_file(self) -> str:
        if not self.ConfigFile:
            raise ConfigError("property ConfigFile: is empty; set it to the configuration file")
        return str(self.ConfigFile)

    def _proxy(self, device: str, timeout_ms: int = _CALL_TIMEOUT_MS) -> tango.DeviceProxy:
        proxy = self._proxies.get((device, timeout_ms))
        if proxy is None:
            proxy = self._proxies[device, timeout_ms] = tango.DeviceProxy(device)
            proxy.set_timeout_millis(timeout_ms)
        return proxy

    # -- following the stages ----------------------------------------------------------------------

    def _follow(self, stop: threading.Event) -> None:
        with tango.EnsureOmniThread():
            while not stop.is_set():
                try:
                    self._refresh()
                    if not stop.is_set():
                        self._push_changes()
                except Exception:
                    self._log.exception("following the stages failed")
                stop.wait(MONITOR_PERIOD_S)

    def _refresh(self) -> None:
        """Ask all stages; without the lock, as one that hangs takes seconds to be given up."""
        number = self._n_commands
        states = {device: self._state_of(device) for device in self.StageDevices}
        waits = self._read_waits(states)
        values = self._read_driver() if self.WriterDriverDevice else _NOTHING
        if self.PreviewDevice:
            self._read_preview()
        if self.SourceDevice:
            self._read_detector_rate()
        with self._state_lock:
            if number == self._n_commands:  # else a command has found out more in the meantime
                self._stage_states, self._waits = states, waits
                self._keep_driver_values(values)

    def _refresh_now(self) -> None:
        """Ask all stages that are known to answer; for commands, under the lock."""
        self._n_commands += 1
        for device in self.StageDevices:
            if self._stage_states.get(device, DevState.UNKNOWN) is not None:
                self._stage_states[device] = self._state_of(device)
        self._waits = self._read_waits(self._stage_states)
        if self.WriterDriverDevice and not self._driver_error:
            self._keep_driver_values(self._read_driver())

    def _state_of(self, device: str) -> DevState | None:
        try:
            return self._proxy(device, _STATE_TIMEOUT_MS).state()
        except tango.DevFailed:
            return None

    def _read_waits(self, states: dict[str, DevState | None]) -> dict[str, str]:
        """Return what the stages say that wait for another one."""
        found = {}
        for device in [device for device, state in states.items() if state == DevState.INIT]:
            with suppress(tango.DevFailed):  # then its state says so the next time
                found[device] = self._proxy(device, _STATE_TIMEOUT_MS).status()
        return found

    def _read_driver(self) -> dict[str, Any] | str:
        """Return what the driver says of the acquisition, or why it says nothing."""
        try:
            values = [
                reply.value
                for reply in self._proxy(self.WriterDriverDevice, _STATE_TIMEOUT_MS).read_attributes(
                    [*_DRIVER_ATTRIBUTES, "rate"]
                )
            ]
        except tango.DevFailed as error:
            return f"{self.WriterDriverDevice} does not answer: {first_line(error)}"
        status, busy, progress, ledger, reason, failed, master, files, mean_rate_hz, rate = values
        return {
            "status": status,
            "busy": busy,
            "progress": progress / 100,
            "mean_rate_hz": mean_rate_hz,
            "ledger": json.loads(ledger),
            "reason": reason,
            "failed": failed,
            "files": list(files or []),
            "master": master,
            "rate_hz": rate,
        }

    def _keep_driver_values(self, values: dict[str, Any] | str) -> None:
        was_busy = self._driver_values["busy"]
        if isinstance(values, str):
            self._driver_error = values
            self._driver_values = {**self._driver_values, "busy": False}
            return
        self._driver_error = ""
        self._driver_values = values
        if was_busy and not values["busy"]:
            self._note(f"[event] acquisition ended: {values['reason']}")

    def _read_preview(self) -> None:
        try:
            proxy = self._proxy(self.PreviewDevice, _STATE_TIMEOUT_MS)
            preview_id = proxy.read_attribute("previewId").value
            if preview_id != self._preview_id:
                self._preview = proxy.read_attribute("preview").value
                self._preview_id = preview_id
        except tango.DevFailed:
            return  # its own state says so

    def _read_detector_rate(self) -> None:
        try:
            self._detector_rate_hz = float(
                self._proxy(self.SourceDevice, _STATE_TIMEOUT_MS).read_attribute("rate").value
            )
        except tango.DevFailed:
            self._detector_rate_hz = 0.0  # its own state says why

    def _push_changes(self) -> None:
        values = {
            "State": self.dev_state(),
            "Status": self.dev_status(),
            "stageStates": self._stage_lines(),
            "imageRate": round(self._driver_values["rate_hz"], 3),
            "detectorRate": round(self._detector_rate_hz, 3),
            "previewId": self._preview_id,
            **self.acquisition_values(),
        }
        for name, value in values.items():
            if name not in self._pushed or self._pushed[name] != value:
                self._pushed[name] = value
                push_change(self, name, value)
                if name == "previewId":
                    self.push_change_event("preview", self._preview)

    def _outcome(self) -> dict[str, Any]:
        return self._driver_values

    def _note(self, message: str) -> None:
        self._log.info(message, extra={"service": "facade"})
        self.info_stream("%s", message)
        self._log_lines.append(message)

    # -- state -------------------------------------------------------------------------------------

    def dev_state(self) -> DevState:
        """RUNNING or ALARM while acquiring; else STANDBY when ready, INIT until then, or FAULT."""
        if self._fault():
            return DevState.FAULT
        if not self._driver_values["busy"]:
            return DevState.INIT if self._waits else DevState.STANDBY
        ledger = self._driver_values["ledger"]
        losing = ledger.get("incomplete", 0) or ledger.get("lost", 0)
        return DevState.ALARM if losing else DevState.RUNNING

    def dev_status(self) -> str:
        """One sentence for a person; in FAULT the reason."""
        fault = self._fault()
        if fault:
            return fault
        values, ledger = self._driver_values, self._driver_values["ledger"]
        counts = ", ".join(
            f"{name} {ledger.get(name, 0)}" for name in ("complete", "incomplete", "lost")
        )
        if values["busy"]:
            return f"Acquisition {values['status']}: {counts} of {ledger.get('requested', 0)} images."
        if self._waits:
            return self._waiting()
        if values["reason"]:
            return f"Ready. Last acquisition: {values['reason']}; {counts}."
        return "Ready. Set outputPath, filePrefix and imageCount, then Start."

    def _fault(self) -> str:
        if self._init_error:
            return self._init_error
        if self._driver_error:
            return self._driver_error
        down = [device for device, state in self._stage_states.items() if state is None]
        if down:
            return f"Not running, or not answering: {', '.join(down)}. Start these device servers."
        faulty = [device for device, state in self._stage_states.items() if state == DevState.FAULT]
        if faulty:
            return f"In FAULT: {', '.join(faulty)}. Their Status says why; Reset and Start them."
        return ""

    def _waiting(self) -> str:
        lines = []
        for device, status in self._waits.items():
            host = self._hosts.get(device, "")
            lines.append(f"{device}{f' of host {host}' if host else ''}: {status}")
        return f"Not ready yet. {' '.join(lines)}"

    def _stage_lines(self) -> list[str]:
        return [
            f"{device}: {'not running' if state is None else state.name}"
            for device, state in self._stage_states.items()
        ]

    # -- attributes --------------------------------------------------------------------------------

    @attribute(dtype=str, label="version", doc="Version of tango_stddaq.")
    def version(self) -> str:
        return __version__

    @attribute(
        dtype=str,
        access=READ_WRITE,
        label="configuration",
        doc="The configuration as JSON. Writing it checks it, stores it and restarts the stages.",
    )
    @tango_errors
    def config(self) -> str:
        return config_file.read_text(self._config_file())

    @config.write
    @tango_errors
    def config(self, value: str) -> None:
        with self._state_lock:
            self._refresh_now()
            if self._driver_values["busy"]:
                raise AcquisitionError("the configuration cannot change during an acquisition")
            new = config_module.parse(value, "config")
            try:
                old = config_module.load(self._config_file())
            except ConfigError:
                old = new  # a file that cannot be used may be replaced
            if new.detector_name != old.detector_name:
                raise ConfigError(
                    f"detector_name: value {new.detector_name!r} is not allowed: it is "
                    f"{old.detector_name!r} and cannot change while the servers run, as it is part of "
                    "their names"
                )
            path = Path(self._config_file())
            if plan(new, path) != plan(old, path):
                raise ConfigError(
                    "this configuration needs other device servers (number_of_writers, modules, "
                    "live_stream_configs or detector_type differ): deploy it and start them anew"
                )
            config_file.replace_text(self._config_file(), value)
            self._note("[event] the configuration was changed by a client")
            self._reload()

    def _reload(self) -> None:
        failures = []
        for device in self.StageDevices:
            try:
                self._proxy(device).command_inout("ReloadConfig")
            except tango.DevFailed as error:
                failures.append(f"{device}: {first_line(error)}")
        self._init_error = ""
        self._refresh_now()
        if failures:
            raise ConfigError("the configuration is stored, but " + "; ".join(failures))

    @attribute(
        dtype=(str,), max_dim_x=512, label="stages", doc="State of every stage.",
        **PUSHED,
    )  # fmt: skip
    def stageStates(self) -> list[str]:
        return self._stage_lines()

    @attribute(
        dtype=float, unit="Hz", format="%.1f", label="image rate", doc="Images recorded per second.",
        **PUSHED,
    )  # fmt: skip
    def imageRate(self) -> float:
        return float(self._driver_values["rate_hz"])

    @attribute(
        dtype=float, unit="Hz", format="%.1f", label="detector rate",
        doc="Images per second that come from the detector, recorded or not.",
        **PUSHED,
    )  # fmt: skip
    def detectorRate(self) -> float:
        return self._detector_rate_hz

    @attribute(
        dtype=(("DevFloat",),),
        max_dim_x=PREVIEW_SIDE,
        max_dim_y=PREVIEW_SIDE,
        unit="counts",
        label="preview",
        doc="The last image, shrunk: each pixel is the largest of its block.",
        **PUSHED,
    )
    def preview(self) -> np.ndarray:
        return self._preview

    @attribute(
        dtype="DevLong64", label="preview id", doc="Image id of the preview; -1 before the first.",
        **PUSHED,
    )  # fmt: skip
    def previewId(self) -> int:
        return self._preview_id

    @attribute(dtype=(str,), max_dim_x=LOG_LINES, label="log", doc="Last messages, oldest first.")
    def log(self) -> list[str]:
        return list(self._log_lines)

    def _set_log_level(self, value: str) -> None:
        """Set the level here and in all stages; they keep it until they read the configuration."""
        super()._set_log_level(value)
        failures = []
        for device in self.StageDevices:
            try:
                self._proxy(device).write_attribute("logLevel", logs.level())
            except tango.DevFailed as error:
                failures.append(f"{device}: {first_line(error)}")
        if failures:
            raise StdDaqError("the log level is not set everywhere: " + "; ".join(failures))

    # -- commands ----------------------------------------------------------------------------------

    @command(doc_in="Create the files and take imageCount images; returns when images are awaited.")
    @tango_errors
    def Start(self) -> None:
        with self._state_lock:
            self._refresh_now()
            fault = self._fault()
            if fault:
                raise AcquisitionError(fault)
            if self._waits:
                raise AcquisitionError(self._waiting())
            idle = [d for d, s in self._stage_states.items() if s == DevState.STANDBY]
            if idle:
                raise AcquisitionError(f"these stages are stopped: {', '.join(idle)}; Start them")
            request = self._request
            driver = self._proxy(self.WriterDriverDevice)
            try:
                driver.write_attributes(
                    [
                        ("outputPath", request.path),
                        ("filePrefix", request.file_prefix),
                        ("imageCount", request.n_images),
                        ("startId", request.start_id),
                        ("overwrite", request.overwrite),
                        ("masterName", request.master_name),
                        ("writerUserId", request.writer_user_id),
                    ]
                )
                driver.command_inout("StartWriting")
            except tango.DevFailed as error:
                raise AcquisitionError(error.args[0].desc) from None
            self._forget_exceptions()
            self._note(f"[event] start of {request.n_images} images in {request.path}")
            self._refresh_now()

    @command(doc_in="End the acquisition; what was accepted is saved.")
    @tango_errors
    def Stop(self) -> None:
        self._tell_driver("StopWriting")
        self._note("[event] stopped by a client")

    @command(doc_in="End the acquisition and remove its files.")
    @tango_errors
    def Abort(self) -> None:
        self._tell_driver("AbortWriting")
        self._note("[event] aborted by a client")

    def _tell_driver(self, command_name: str) -> None:
        try:
            self._proxy(self.WriterDriverDevice).command_inout(command_name)
        except tango.DevFailed as error:
            raise AcquisitionError(f"{self.WriterDriverDevice}: {first_line(error)}") from None

    @command(doc_in="Set the counters of all stages to zero, restart those in FAULT.")
    @tango_errors
    def Reset(self) -> None:
        with self._state_lock:
            if self._driver_values["busy"]:
                raise AcquisitionError("an acquisition is under way: Stop or Abort it first")
            self._note("[event] Reset by a client")
            for device in self.StageDevices:
                try:
                    proxy = self._proxy(device)
                    if proxy.state() in (DevState.FAULT, DevState.STANDBY):
                        proxy.command_inout("Start")
                    proxy.command_inout("Reset")
                except tango.DevFailed as error:
                    raise StdDaqError(f"{device}: {first_line(error)}") from None
            self._refresh_now()


def main() -> None:
    """Run the device server."""
    serve(StdDaq)


if __name__ == "__main__":
    main()
