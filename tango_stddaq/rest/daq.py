"""The system behind the service: what it knows and does, it asks of the facade, through Tango."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import tango

from tango_stddaq.closing import Closing
from tango_stddaq.devices.reasons import one_line
from tango_stddaq.errors import AcquisitionError, StdDaqError
from tango_stddaq.io.preflight import Request
from tango_stddaq.rest.records import Acquisition, Deployment, Records, Snapshot

PERIOD_S: Final = 0.1
_MAX_REASON: Final = 4000
_CALL_TIMEOUT_MS: Final = 10_000
_CONFIG_TIMEOUT_MS: Final = 60_000
"""A change of the configuration restarts all stages."""
_FOLLOWED: Final = (
    "acquiring", "acquisitionStatus", "endReason", "failed", "ledger", "lastFile", "imageRate",
    "detectorRate",
)  # fmt: skip


class Daq(Closing):
    """One facade, followed by a thread.

    Parameters
    ----------
    facade
        Its device name, or a whole tango:// address.
    """

    def __init__(self, facade: str) -> None:
        self.facade = facade
        self.records = Records()
        self.deployment = Deployment()
        self.snapshot = Snapshot(error=f"{facade}: was not asked yet")
        self.on_snapshot: list[Callable[[Snapshot], None]] = []
        """Called from the thread that follows the facade."""
        self._lock = threading.Lock()
        self._deploying = threading.Lock()
        self._local = threading.local()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(_CALL_TIMEOUT_MS / 1000)

    # -- following the facade ----------------------------------------------------------------------

    def _follow(self) -> None:
        with tango.EnsureOmniThread():
            while not self._stop.wait(PERIOD_S):
                self.refresh()

    def refresh(self) -> Snapshot:
        """Ask the facade now; what it says goes into the records."""
        with self._lock:
            try:
                values = [reply.value for reply in self._proxy().read_attributes(list(_FOLLOWED))]
                busy, status, reason, failed, ledger, master, rate, detector_rate = values
                found = Snapshot(
                    busy, status, reason, failed, json.loads(ledger), master, rate, detector_rate
                )
            except tango.DevFailed as error:
                found = Snapshot(error=f"{self.facade} does not answer: {_reason_of(error)}")
            self.snapshot = found
            self.records.follow(found)
        for told in self.on_snapshot:
            told(found)
        return found

    def require(self) -> Snapshot:
        """Return the last snapshot.

        Raises
        ------
        StdDaqError
            If the facade does not answer.
        """
        found = self.snapshot
        if found.error:
            raise StdDaqError(found.error)
        return found

    def _proxy(self, device: str = "", timeout_ms: int = _CALL_TIMEOUT_MS) -> tango.DeviceProxy:
        """Return this thread's proxy of a device, the facade if none is named."""
        key = (device or self.facade, timeout_ms)
        proxies: dict[tuple[str, int], tango.DeviceProxy] = self._local.__dict__.setdefault("kept", {})
        if key not in proxies:
            proxies[key] = tango.DeviceProxy(key[0])
            proxies[key].set_timeout_millis(timeout_ms)
        return proxies[key]

    # -- acquisitions ------------------------------------------------------------------------------

    def start(self, request: Request, run_id: int | str | None = None) -> Acquisition:
        """Begin an acquisition; returns its record when images are awaited.

        Raises
        ------
        AcquisitionError
            If the facade refuses, with its reason.
        """
        output_file = str(request.master_file())
        with self._lock, _reasons(self.facade):
            proxy = self._proxy()
            proxy.write_attributes(
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
            proxy.command_inout("Start")
            begun = self.records.begin(request.n_images, output_file, run_id)
        self.refresh()
        return begun

    def stop(self) -> None:
        """End the acquisition, if there is one; what was accepted is saved."""
        with _reasons(self.facade):
            self._proxy().command_inout("Stop")
        self.refresh()

    # -- configuration -----------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return the configuration."""
        with _reasons(self.facade):
            found: dict[str, Any] = json.loads(self._proxy().read_attribute("config").value)
            return found

    def change_config(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Set keys of the configuration, and leave the others; returns it whole.

        Raises
        ------
        StdDaqError
            If the facade refuses it: the text names the key, its value and what is allowed.
        """
        with self._deploying:
            self.deployment = deployment = Deployment.begin()
            try:
                new = {**self.config(), **changes}
                with _reasons(self.facade):
                    self._proxy("", _CONFIG_TIMEOUT_MS).write_attribute(
                        "config", json.dumps(new, indent=2) + "\n"
                    )
            except StdDaqError as error:
                deployment.end(socket.gethostname(), str(error))
                raise
            deployment.end(socket.gethostname())
            return new

    # -- pictures, stages, simulator ---------------------------------------------------------------

    def preview(self) -> tuple[int, np.ndarray]:
        """Return image id (-1: none yet) and pixels of the last image, shrunk."""
        with _reasons(self.facade):
            proxy = self._proxy()
            image_id = int(proxy.read_attribute("previewId").value)
            return image_id, np.asarray(proxy.read_attribute("preview").value)

    def stage_states(self) -> list[str]:
        """Return a line a stage: its device and state."""
        with _reasons(self.facade):
            return list(self._proxy().read_attribute("stageStates").value or [])

    def reset(self) -> None:
        """Set all counters to zero, and restart stages that are in FAULT or stopped."""
        with _reasons(self.facade):
            self._proxy("", _CONFIG_TIMEOUT_MS).command_inout("Reset")

    @property
    def _simulator(self) -> str:
        return self.facade.removesuffix("/facade") + "/simulator"

    def simulator_status(self) -> dict[str, Any]:
        """Return state and rate of the simulator."""
        with _reasons(self._simulator, "start the system with --simulate"):
            proxy = self._proxy(self._simulator)
            return {
                "state": str(proxy.state()),
                "images": int(proxy.read_attribute("images").value),
                "images_per_second": float(proxy.read_attribute("rate").value),
            }

    def start_simulator(self, n_images: int | None = None, rate_hz: float | None = None) -> None:
        """Let the simulator send; None leaves what it is set to."""
        with _reasons(self._simulator, "start the system with --simulate"):
            proxy = self._proxy(self._simulator)
            if n_images is not None:
                proxy.write_attribute("imageCount", n_images)
            if rate_hz is not None:
                proxy.write_attribute("imageRate", rate_hz)
            proxy.command_inout("Start")

    def stop_simulator(self) -> None:
        """Let the simulator send no more."""
        with _reasons(self._simulator, "start the system with --simulate"):
            self._proxy(self._simulator).command_inout("Stop")


@contextmanager
def _reasons(device: str, hint: str = "") -> Iterator[None]:
    """Turn Tango's errors into ours: one clear text."""
    try:
        yield
    except tango.DevFailed as error:
        reason = _reason_of(error)
        if error.args[0].reason.startswith("StdDaq_"):
            raise AcquisitionError(reason) from None
        if hint and error.args[0].reason in ("DB_DeviceNotDefined", "API_DeviceNotExported"):
            reason = f"is not there: {hint}"
        logging.getLogger("tango_stddaq.rest").warning("%s: %s", device, reason)
        raise StdDaqError(f"{device}: {reason}") from None


def _reason_of(error: tango.DevFailed) -> str:
    return one_line(error)[:_MAX_REASON]


def master_request(output_file: str, n_images: int, user_id: int = 0) -> Request:
    """Return the request for an acquisition whose master file is `output_file`.

    Raises
    ------
    AcquisitionError
        If it is no absolute path of a file.
    """
    path = Path(output_file)
    if not path.is_absolute() or not path.name:
        raise AcquisitionError(f"output_file {output_file!r}: the absolute path of a file is needed")
    return Request(
        path=str(path.parent),
        file_prefix=f"{path.name.removesuffix('.h5')}_",
        n_images=n_images,
        writer_user_id=user_id,
        master_name=path.name,
    )
