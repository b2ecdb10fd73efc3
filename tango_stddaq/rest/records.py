"""What is remembered of acquisitions and deployments, in the words of existing REST clients. Pure."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from tango_stddaq.processing.acquisition import DriverStatus

MAX_RECORDS: Final = 1000
_S = DriverStatus
_STATES: Final = {
    _S.STARTED: "WAITING_IMAGES",
    _S.CREATING_FILE: "WAITING_IMAGES",
    _S.FILE_CREATED: "WAITING_IMAGES",
    _S.WAITING_FOR_FIRST_IMAGE: "WAITING_IMAGES",
    _S.RECORDING: "ACQUIRING_IMAGES",
    _S.STOP: "FLUSHING_IMAGES",
    _S.SAVING_FILE: "FLUSHING_IMAGES",
}
"""The driver's status, and what existing clients call it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the facade says at one moment.

    Attributes
    ----------
    error
        Why nothing is known; "" if the facade answers.
    """

    busy: bool = False
    status: str = str(_S.IDLE)
    reason: str = ""
    failed: bool = False
    ledger: dict[str, Any] = field(default_factory=dict)
    master: str = ""
    image_rate_hz: float = 0.0
    detector_rate_hz: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Acquisition:
    """One acquisition, as `/writer/status` and `/daq/logs` tell of it."""

    n_images: int = 0
    output_file: str = ""
    run_id: int | str | None = None
    start_s: float | None = None
    stop_s: float | None = None
    message: str = ""
    state: str = "FINISHED"
    n_requested: int = 0
    n_completed: int = 0

    def follow(self, found: Snapshot) -> None:
        """Take over what a snapshot says of it."""
        ledger = found.ledger
        self.n_requested = int(ledger.get("expected", 0))
        self.n_completed = int(ledger.get("complete", 0)) + int(ledger.get("incomplete", 0))
        if not self.output_file:
            self.output_file = found.master
        if not self.n_images:
            self.n_images = int(ledger.get("requested", 0))
        if found.busy:
            self.state = _STATES.get(DriverStatus(found.status), "ACQUIRING_IMAGES")
            self.message = "Acquisition is under way."
            return
        self.stop_s = time.time()
        self.state = "FAILED" if found.failed else "FINISHED"
        if found.failed:
            self.message = found.reason
        elif found.reason.startswith(("stopped", "aborted")):
            self.message = f"Interrupted. {found.reason}"
        else:
            self.message = "Completed."

    def to_dict(self) -> dict[str, Any]:
        """Return it in the form of the existing service."""
        return {
            "info": {
                "n_images": self.n_images, "output_file": self.output_file, "run_id": self.run_id,
            },
            "message": self.message,
            "state": self.state,
            "stats": {
                "n_write_completed": self.n_completed,
                "n_write_requested": self.n_requested,
                "start_time": self.start_s,
                "stop_time": self.stop_s,
            },
        }  # fmt: skip


class Records:
    """The acquisitions since the service started, whoever began them; the oldest are forgotten."""

    def __init__(self) -> None:
        self.ended: deque[Acquisition] = deque(maxlen=MAX_RECORDS)
        self.current = Acquisition(message="No acquisition yet.")
        self._is_under_way = False

    def begin(self, n_images: int, output_file: str, run_id: int | str | None) -> Acquisition:
        """Note that one has begun; returns its record."""
        now = time.time()
        run_id = int(now * 1e9) if run_id is None else run_id
        self.current = Acquisition(n_images, output_file, run_id, now, state="WAITING_IMAGES")
        self._is_under_way = True
        return self.current

    def follow(self, found: Snapshot) -> None:
        """Take over what the facade says; notes beginning and end of what others began."""
        if found.error:
            return
        if found.busy and not self._is_under_way:
            self.begin(0, "", None)
        if self._is_under_way:
            self.current.follow(found)
            if not found.busy:
                self._is_under_way = False
                self.ended.append(self.current)

    def last(self, n: int) -> list[dict[str, Any]]:
        """Return the last `n` that ended, the newest first."""
        newest = list(self.ended)[::-1]
        return [entry.to_dict() for entry in newest[: max(0, n)]]


@dataclass(slots=True)
class Deployment:
    """The last change of the configuration, as `/daq/deployment` tells of it."""

    config_id: str = ""
    status: str = "UNKNOWN"
    message: str = "The configuration was not changed through this service."
    servers: dict[str, str] = field(default_factory=dict)
    start_s: float | None = None
    stop_s: float | None = None

    @classmethod
    def begin(cls) -> "Deployment":
        """Note the start of a change."""
        now = time.time()
        return cls(f"{int(now * 1000)}-0", "RUNNING", "Deployment is under way.", {}, now)

    def end(self, host: str, error: str = "") -> None:
        """Note its end on a host, with the reason if it failed."""
        self.stop_s = time.time()
        self.status = "FAILED" if error else "SUCCESS"
        self.message = error or "Deployment successful"
        self.servers = {host: "Failed" if error else "Done"}

    def to_dict(self) -> dict[str, Any]:
        """Return it in the form of the existing service."""
        return {
            "config_id": self.config_id,
            "message": self.message,
            "servers": self.servers,
            "stats": {"start_time": self.start_s, "stop_time": self.stop_s},
            "status": self.status,
        }
