"""Tango class `StdDaq`: one device that drives a whole acquisition over all stages."""

import logging
import threading
from collections import deque
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
from tango_stddaq.devices.base import PREVIEW_SIDE, PUSHED, READ_WRITE, serve, tango_errors
from tango_stddaq.devices.events import push_change
from tango_stddaq.devices.followed_stages import STATE_TIMEOUT_MS, FollowedStages
from tango_stddaq.devices.log_face import LogFace
from tango_stddaq.devices.reasons import first_line
from tango_stddaq.errors import AcquisitionError, ConfigError, StdDaqError
from tango_stddaq.io import config_file, logs
from tango_stddaq.io.preflight import Request
from tango_stddaq.stages.base import LOG_LINES

MONITOR_PERIOD_S: Final = 0.2


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
        self._pushed: dict[str, object] = {}
        self._init_error = ""
        super().init_device()
        self.add_version_info("tango_stddaq", __version__)
        for name in ("State", "Status"):
            self.set_change_event(name, True, False)
        hosts: dict[str, str] = {}
        try:
            config = config_module.load(self._config_file())
            logs.set_level(config.log_level)
            stages = plan(config, Path(self._config_file())).stages
            hosts = {server.device: server.host for server in stages if server.host}
            if not self.WriterDriverDevice:
                raise ConfigError("property WriterDriverDevice: is empty; set it to its device name")
        except StdDaqError as error:
            self._init_error = str(error)
        # New with every Init: what a monitor from before, that is about to end, still finds is not kept.
        self._followed = FollowedStages(
            self.StageDevices, self.WriterDriverDevice, self.SourceDevice, self.PreviewDevice, hosts,
            self._note,
        )  # fmt: skip
        self._stop = threading.Event()
        self._monitor = threading.Thread(
            target=self._follow, args=(self._followed, self._stop), name="monitor", daemon=True
        )
        self._monitor.start()

    def delete_device(self) -> None:
        """End the thread that follows the stages, now or when it has what it waits for."""
        self._stop.set()
        self._monitor.join(MONITOR_PERIOD_S + STATE_TIMEOUT_MS / 1000)

    def _config_file(self) -> str:
        if not self.ConfigFile:
            raise ConfigError("property ConfigFile: is empty; set it to the configuration file")
        return str(self.ConfigFile)

    # -- following the stages ----------------------------------------------------------------------

    def _follow(self, followed: FollowedStages, stop: threading.Event) -> None:
        with tango.EnsureOmniThread():
            while not stop.is_set():
                try:
                    followed.refresh()
                    if not stop.is_set():
                        self._push_changes()
                except Exception:
                    self._log.exception("following the stages failed")
                stop.wait(MONITOR_PERIOD_S)

    def _push_changes(self) -> None:
        values = {
            "State": self.dev_state(),
            "Status": self.dev_status(),
            "stageStates": self._followed.lines(),
            "imageRate": round(self._followed.driver_values["rate_hz"], 3),
            "detectorRate": round(self._followed.detector_rate_hz, 3),
            "previewId": self._followed.preview_id,
            **self.acquisition_values(),
        }
        for name, value in values.items():
            if name not in self._pushed or self._pushed[name] != value:
                self._pushed[name] = value
                push_change(self, name, value)
                if name == "previewId":
                    self.push_change_event("preview", self._followed.preview)

    def _outcome(self) -> dict[str, Any]:
        return self._followed.driver_values

    def _fault(self) -> str:
        return self._init_error or self._followed.fault()

    def _note(self, message: str) -> None:
        self._log.info(message, extra={"service": "facade"})
        self.info_stream("%s", message)
        self._log_lines.append(message)

    # -- state -------------------------------------------------------------------------------------

    def dev_state(self) -> DevState:
        """RUNNING or ALARM while acquiring; else STANDBY when ready, INIT until then, or FAULT."""
        if self._fault():
            return DevState.FAULT
        if not self._followed.driver_values["busy"]:
            return DevState.INIT if self._followed.waits else DevState.STANDBY
        ledger = self._followed.driver_values["ledger"]
        losing = ledger.get("incomplete", 0) or ledger.get("lost", 0)
        return DevState.ALARM if losing else DevState.RUNNING

    def dev_status(self) -> str:
        """One sentence for a person; in FAULT the reason."""
        fault = self._fault()
        if fault:
            return fault
        values = self._followed.driver_values
        ledger = values["ledger"]
        counts = ", ".join(
            f"{name} {ledger.get(name, 0)}" for name in ("complete", "incomplete", "lost")
        )
        if values["busy"]:
            return f"Acquisition {values['status']}: {counts} of {ledger.get('requested', 0)} images."
        if self._followed.waits:
            return self._followed.waiting()
        if values["reason"]:
            return f"Ready. Last acquisition: {values['reason']}; {counts}."
        return "Ready. Set outputPath, filePrefix and imageCount, then Start."

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
        with self._followed.lock:
            self._followed.refresh_now()
            if self._followed.driver_values["busy"]:
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
                self._followed.proxy(device).command_inout("ReloadConfig")
            except tango.DevFailed as error:
                failures.append(f"{device}: {first_line(error)}")
        self._init_error = ""
        self._followed.refresh_now()
        if failures:
            raise ConfigError("the configuration is stored, but " + "; ".join(failures))

    @attribute(
        dtype=(str,), max_dim_x=512, label="stages", doc="State of every stage.",
        **PUSHED,
    )  # fmt: skip
    def stageStates(self) -> list[str]:
        return self._followed.lines()

    @attribute(
        dtype=float, unit="Hz", format="%.1f", label="image rate", doc="Images recorded per second.",
        **PUSHED,
    )  # fmt: skip
    def imageRate(self) -> float:
        return float(self._followed.driver_values["rate_hz"])

    @attribute(
        dtype=float, unit="Hz", format="%.1f", label="detector rate",
        doc="Images per second that come from the detector, recorded or not.",
        **PUSHED,
    )  # fmt: skip
    def detectorRate(self) -> float:
        return self._followed.detector_rate_hz

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
        return self._followed.preview

    @attribute(
        dtype="DevLong64", label="preview id", doc="Image id of the preview; -1 before the first.",
        **PUSHED,
    )  # fmt: skip
    def previewId(self) -> int:
        return self._followed.preview_id

    @attribute(dtype=(str,), max_dim_x=LOG_LINES, label="log", doc="Last messages, oldest first.")
    def log(self) -> list[str]:
        return list(self._log_lines)

    def _set_log_level(self, value: str) -> None:
        """Set the level here and in all stages; they keep it until they read the configuration."""
        super()._set_log_level(value)
        failures = []
        for device in self.StageDevices:
            try:
                self._followed.proxy(device).write_attribute("logLevel", logs.level())
            except tango.DevFailed as error:
                failures.append(f"{device}: {first_line(error)}")
        if failures:
            raise StdDaqError("the log level is not set everywhere: " + "; ".join(failures))

    # -- commands ----------------------------------------------------------------------------------

    @command(doc_in="Create the files and take imageCount images; returns when images are awaited.")
    @tango_errors
    def Start(self) -> None:
        with self._followed.lock:
            self._followed.refresh_now()
            fault = self._fault()
            if fault:
                raise AcquisitionError(fault)
            if self._followed.waits:
                raise AcquisitionError(self._followed.waiting())
            idle = [d for d, s in self._followed.states.items() if s == DevState.STANDBY]
            if idle:
                raise AcquisitionError(f"these stages are stopped: {', '.join(idle)}; Start them")
            request = self._request
            driver = self._followed.proxy(self.WriterDriverDevice)
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
            self._followed.refresh_now()

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
            self._followed.proxy(self.WriterDriverDevice).command_inout(command_name)
        except tango.DevFailed as error:
            raise AcquisitionError(f"{self.WriterDriverDevice}: {first_line(error)}") from None

    @command(doc_in="Set the counters of all stages to zero, restart those in FAULT.")
    @tango_errors
    def Reset(self) -> None:
        with self._followed.lock:
            if self._followed.driver_values["busy"]:
                raise AcquisitionError("an acquisition is under way: Stop or Abort it first")
            self._note("[event] Reset by a client")
            for device in self.StageDevices:
                try:
                    proxy = self._followed.proxy(device)
                    if proxy.state() in (DevState.FAULT, DevState.STANDBY):
                        proxy.command_inout("Start")
                    proxy.command_inout("Reset")
                except tango.DevFailed as error:
                    raise StdDaqError(f"{device}: {first_line(error)}") from None
            self._followed.refresh_now()


def main() -> None:
    """Run the device server."""
    serve(StdDaq)


if __name__ == "__main__":
    main()
