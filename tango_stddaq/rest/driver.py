"""The facade as a driver for WebSocket clients: every status is told, also one that was short."""

from collections.abc import Callable

from tango_stddaq.io.preflight import Request
from tango_stddaq.processing.acquisition import DriverStatus
from tango_stddaq.rest.daq import Daq
from tango_stddaq.rest.records import Snapshot

_S = DriverStatus
_WAY = (
    _S.CREATING_FILE, _S.FILE_CREATED, _S.WAITING_FOR_FIRST_IMAGE, _S.RECORDING, _S.SAVING_FILE,
    _S.FILE_SAVED, _S.IDLE,
)  # fmt: skip
"""What an acquisition goes through that nobody disturbs."""


def steps(old: DriverStatus, new: DriverStatus, failed: bool) -> list[DriverStatus]:
    """Return the statuses from `old`, not among them, to `new`.

    The facade is asked ten times a second: what came and went in between is told all the same, as
    clients wait for it.
    """
    if old == new:
        return []
    if failed and new is _S.IDLE and old is not _S.ERROR:
        return [_S.ERROR, _S.IDLE]
    if new not in _WAY:
        return [new]
    if old is _S.STOP:
        return list(_WAY[_WAY.index(_S.SAVING_FILE) :]) if new is _S.IDLE else [new]
    first = _WAY.index(old) + 1 if old in _WAY and old is not _S.IDLE else 0
    last = _WAY.index(new)
    return list(_WAY[first : last + 1]) if first <= last else [*_WAY[first:], *_WAY[: last + 1]]


class FacadeDriver:
    """What the WebSocket server needs of a driver, by way of the facade.

    Attributes
    ----------
    on_status
        Called with every status, in order.
    """

    def __init__(self, daq: Daq) -> None:
        self._daq = daq
        self.acquisition_status = DriverStatus.IDLE
        self.n_dispatched = 0
        self.reason = ""
        self.on_status: Callable[[DriverStatus], None] | None = None
        daq.on_snapshot.append(self._follow)

    def begin(self, request: Request, wait_s: float = 0) -> None:
        """Begin an acquisition.

        Raises
        ------
        StdDaqError
            If the facade refuses, with its reason.
        """
        self._daq.start(request)

    def finish(self) -> None:
        """End the acquisition; what was accepted is saved."""
        self._daq.stop()

    def _follow(self, found: Snapshot) -> None:
        if found.error:
            if self.reason != found.error:
                self.reason = found.error
                self._tell(_S.ERROR)
            return
        self.n_dispatched = int(found.ledger.get("complete", 0)) + int(found.ledger.get("incomplete", 0))
        self.reason = found.reason
        old = self.acquisition_status
        for status in steps(old, DriverStatus(found.status), found.failed):
            self.acquisition_status = status
            self._tell(status)

    def _tell(self, status: DriverStatus) -> None:
        if self.on_status is not None:
            self.on_status(status)
