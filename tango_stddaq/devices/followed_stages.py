"""What the facade knows of the stages: asked again and again from a thread, and for its commands."""

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import tango
from tango import DevState

from tango_stddaq.devices.reasons import first_line

_CALL_TIMEOUT_MS: Final = 3000
STATE_TIMEOUT_MS: Final = 1000
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


class FollowedStages:
    """The states of all stages, and what driver, source and live stream say.

    Parameters
    ----------
    stages
        All devices, in the order of their start.
    driver, source, previewer
        Devices of the writer driver, of the stage that publishes the detector's images, and of the live
        stream that the preview comes from; "" for none.
    hosts
        Device to host, where there are several.
    note
        Called with what is worth a line in the log.

    Attributes
    ----------
    lock
        Held by a command from its first look to its last deed.
    states
        Device to state; None if it does not answer.
    waits
        Device to status, of those that wait for another one.
    driver_values
        What the driver says of the acquisition.
    preview
        (height, width) float32.
    """

    def __init__(
        self,
        stages: Sequence[str],
        driver: str,
        source: str,
        previewer: str,
        hosts: dict[str, str],
        note: Callable[[str], None],
    ) -> None:
        self.lock = threading.RLock()
        self.states: dict[str, DevState | None] = {}
        self.waits: dict[str, str] = {}
        self.driver_values = _NOTHING
        self.detector_rate_hz = 0.0
        self.preview = np.zeros((1, 1), np.float32)
        self.preview_id = -1
        self._stages = tuple(stages)
        self._driver, self._source, self._previewer = driver, source, previewer
        self._hosts = hosts
        self._note = note
        self._driver_error = ""
        self._n_commands = 0
        self._proxies: dict[tuple[str, int], tango.DeviceProxy] = {}

    def proxy(self, device: str, timeout_ms: int = _CALL_TIMEOUT_MS) -> tango.DeviceProxy:
        """Return a proxy whose calls take no longer; it is kept."""
        proxy = self._proxies.get((device, timeout_ms))
        if proxy is None:
            proxy = self._proxies[device, timeout_ms] = tango.DeviceProxy(device)
            proxy.set_timeout_millis(timeout_ms)
        return proxy

    def refresh(self) -> None:
        """Ask all stages; without the lock, as one that hangs takes seconds to be given up."""
        number = self._n_commands
        states = {device: self._state_of(device) for device in self._stages}
        waits = self._read_waits(states)
        values = self._read_driver() if self._driver else _NOTHING
        if self._previewer:
            self._read_preview()
        if self._source:
            self._read_detector_rate()
        with self.lock:
            if number == self._n_commands:  # else a command has found out more in the meantime
                self.states, self.waits = states, waits
                self._keep_driver_values(values)

    def refresh_now(self) -> None:
        """Ask all stages that are known to answer; for commands, under the lock."""
        self._n_commands += 1
        for device in self._stages:
            if self.states.get(device, DevState.UNKNOWN) is not None:
                self.states[device] = self._state_of(device)
        self.waits = self._read_waits(self.states)
        if self._driver and not self._driver_error:
            self._keep_driver_values(self._read_driver())

    def _state_of(self, device: str) -> DevState | None:
        try:
            return self.proxy(device, STATE_TIMEOUT_MS).state()
        except tango.DevFailed:
            return None

    def _read_waits(self, states: dict[str, DevState | None]) -> dict[str, str]:
        """Return what the stages say that wait for another one."""
        found = {}
        for device in [device for device, state in states.items() if state == DevState.INIT]:
            with suppress(tango.DevFailed):  # then its state says so the next time
                found[device] = self.proxy(device, STATE_TIMEOUT_MS).status()
        return found

    def _read_driver(self) -> dict[str, Any] | str:
        """Return what the driver says of the acquisition, or why it says nothing."""
        try:
            values = [
                reply.value
                for reply in self.proxy(self._driver, STATE_TIMEOUT_MS).read_attributes(
                    [*_DRIVER_ATTRIBUTES, "rate"]
                )
            ]
        except tango.DevFailed as error:
            return f"{self._driver} does not answer: {first_line(error)}"
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
        was_busy = self.driver_values["busy"]
        if isinstance(values, str):
            self._driver_error = values
            self.driver_values = {**self.driver_values, "busy": False}
            return
        self._driver_error = ""
        self.driver_values = values
        if was_busy and not values["busy"]:
            self._note(f"[event] acquisition ended: {values['reason']}")

    def _read_preview(self) -> None:
        try:
            proxy = self.proxy(self._previewer, STATE_TIMEOUT_MS)
            preview_id = proxy.read_attribute("previewId").value
            if preview_id != self.preview_id:
                self.preview = proxy.read_attribute("preview").value
                self.preview_id = preview_id
        except tango.DevFailed:
            return  # its own state says so

    def _read_detector_rate(self) -> None:
        try:
            self.detector_rate_hz = float(
                self.proxy(self._source, STATE_TIMEOUT_MS).read_attribute("rate").value
            )
        except tango.DevFailed:
            self.detector_rate_hz = 0.0  # its own state says why

    # -- what it means -----------------------------------------------------------------------------

    def fault(self) -> str:
        """Return why no acquisition is possible; "" if one is."""
        if self._driver_error:
            return self._driver_error
        down = [device for device, state in self.states.items() if state is None]
        if down:
            return f"Not running, or not answering: {', '.join(down)}. Start these device servers."
        faulty = [device for device, state in self.states.items() if state == DevState.FAULT]
        if faulty:
            return f"In FAULT: {', '.join(faulty)}. Their Status says why; Reset and Start them."
        return ""

    def waiting(self) -> str:
        """Say which stages wait, and for whom."""
        lines = []
        for device, status in self.waits.items():
            host = self._hosts.get(device, "")
            lines.append(f"{device}{f' of host {host}' if host else ''}: {status}")
        return f"Not ready yet. {' '.join(lines)}"

    def lines(self) -> list[str]:
        """Return a line for each stage: its device and its state."""
        return [
            f"{device}: {'not running' if state is None else state.name}"
            for device, state in self.states.items()
        ]
