"""The states of an acquisition as a table, and the account of its images. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np

from tango_stddaq.errors import AcquisitionError
from tango_stddaq.model import Status
from tango_stddaq.stats import IdRanges, Ledger, LossReason

DEFAULT_N_IMAGES: Final = 16_777_215
"""What existing clients send when they mean "until stopped"."""


class DriverStatus(StrEnum):
    """Status of the writer driver, with the words that existing clients know."""

    IDLE = "idle"
    STARTED = "started"
    CREATING_FILE = "creating_file"
    FILE_CREATED = "file_created"
    WAITING_FOR_FIRST_IMAGE = "waiting_for_first_image"
    RECORDING = "recording"
    SAVING_FILE = "saving_file"
    FILE_SAVED = "file_saved"
    STOP = "stop"
    ERROR = "error"
    REJECTED = "rejected"


_S = DriverStatus
TRANSITIONS: Final[dict[DriverStatus, frozenset[DriverStatus]]] = {
    _S.IDLE: frozenset({_S.STARTED, _S.REJECTED}),
    _S.REJECTED: frozenset({_S.IDLE}),
    _S.STARTED: frozenset({_S.CREATING_FILE, _S.STOP, _S.ERROR}),
    _S.CREATING_FILE: frozenset({_S.FILE_CREATED, _S.STOP, _S.ERROR}),
    _S.FILE_CREATED: frozenset({_S.WAITING_FOR_FIRST_IMAGE, _S.STOP, _S.ERROR}),
    _S.WAITING_FOR_FIRST_IMAGE: frozenset({_S.RECORDING, _S.STOP, _S.ERROR}),
    _S.RECORDING: frozenset({_S.SAVING_FILE, _S.STOP, _S.ERROR}),
    _S.STOP: frozenset({_S.SAVING_FILE, _S.ERROR, _S.IDLE}),
    _S.SAVING_FILE: frozenset({_S.FILE_SAVED, _S.STOP, _S.ERROR}),
    _S.FILE_SAVED: frozenset({_S.IDLE}),
    _S.ERROR: frozenset({_S.IDLE}),
}
"""From each status to those that may follow."""

RUNNING: Final = frozenset(DriverStatus) - {_S.IDLE, _S.FILE_SAVED, _S.ERROR, _S.REJECTED}


def check_transition(old: DriverStatus, new: DriverStatus) -> DriverStatus:
    """Return `new`.

    Raises
    ------
    AcquisitionError
        If it may not follow `old`.
    """
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(sorted(TRANSITIONS[old]))
        raise AcquisitionError(f"status {new} cannot follow {old}; allowed are {allowed}")
    return new


@dataclass(slots=True)
class Account:
    """Follows the images of one acquisition as they are handed to the writers.

    Parameters
    ----------
    n_images
        How many were asked for.
    start_id
        Images with lower ids do not belong to it.
    ids_are_contiguous
        Whether a gap in ids means lost images: true for detectors, not for cameras that are
        triggered at a fraction of the machine's pulses.
    """

    n_images: int
    start_id: int = 0
    ids_are_contiguous: bool = True
    n_dispatched: int = 0
    first_id: int | None = None
    last_id: int | None = None
    incomplete: IdRanges = field(default_factory=IdRanges)
    not_received: IdRanges = field(default_factory=IdRanges)
    dispatched: IdRanges = field(default_factory=IdRanges)

    @property
    def done(self) -> bool:
        """Whether every image asked for is accounted for."""
        return self.n_dispatched + self.not_received.count >= self.n_images

    def take(self, image_id: int, status: int) -> bool:
        """Note an image; returns whether it belongs to the acquisition and shall be stored.

        Parameters
        ----------
        status
            A `Status`, as a number.

        Raises
        ------
        AcquisitionError
            If ids went back: the detector was restarted in the middle.
        """
        if self.n_dispatched + self.not_received.count >= self.n_images:
            return False
        if self.last_id is None:
            if image_id < self.start_id:
                return False
            self.first_id = image_id
        else:
            if image_id <= self.last_id:
                raise AcquisitionError(
                    f"image ids went back from {self.last_id} to {image_id}: the detector was "
                    "restarted during the acquisition"
                )
            if self.ids_are_contiguous and image_id > self.last_id + 1:
                left = self.n_images - self.n_dispatched - self.not_received.count
                last_missing = min(image_id - 1, self.last_id + left)
                self.not_received.add_range(self.last_id + 1, last_missing)
                if last_missing < image_id - 1 or last_missing == self.last_id + left:
                    return False  # the gap reaches the end of the acquisition
        self.last_id = image_id
        self.n_dispatched += 1
        self.dispatched.add(image_id)
        if status != Status.GOOD_IMAGE:
            self.incomplete.add(image_id)
        return True

    def take_all(self, image_ids: np.ndarray, status: np.ndarray) -> tuple[np.ndarray, str]:
        """Note images that were announced one behind the other, as `take` does.

        Parameters
        ----------
        image_ids, status
            (n,) int64 each.

        Returns
        -------
        tuple
            (n,) bool, which of them belong to the acquisition; and why no more can: ids went back. "" if
            they did not.
        """
        wanted = np.zeros(image_ids.size, bool)
        at = 0
        while at < image_ids.size:
            n_run = self._take_run(image_ids[at:], status[at:])
            wanted[at : at + n_run] = True
            at += n_run
            if at < image_ids.size:
                try:
                    wanted[at] = self.take(int(image_ids[at]), int(status[at]))
                except AcquisitionError as error:
                    return wanted, str(error)
                at += 1
        return wanted, ""

    def _take_run(self, image_ids: np.ndarray, status: np.ndarray) -> int:
        """Note the images that follow the last one without a gap; returns how many they are."""
        left = self.n_images - self.n_dispatched - self.not_received.count
        if self.last_id is None or left <= 0:
            return 0
        first = self.last_id + 1
        # Distances: ids one above the other may be beyond what int64 holds.
        differ = np.flatnonzero(image_ids - self.last_id != np.arange(1, image_ids.size + 1))
        n = min(int(differ[0]) if differ.size else image_ids.size, left)
        self.last_id += n
        self.n_dispatched += n
        self.dispatched.add_range(first, first + n - 1)
        for image_id in image_ids[:n][status[:n] != Status.GOOD_IMAGE].tolist():
            self.incomplete.add(image_id)
        return n

    def provisional(self) -> Ledger:
        """Return the ledger as if everything handed to the writers will be stored."""
        ledger = Ledger(requested=self.n_images)
        ledger.complete = self.n_dispatched - self.incomplete.count
        ledger.incomplete_ids = self.incomplete
        ledger.lost_ids[LossReason.NOT_RECEIVED] = self.not_received
        return ledger


Ranges = list[tuple[int, int]]


class Settlement:
    """The final account of an acquisition, from what its files really hold.

    Files are read block by block: nothing here grows with the number of images, but for gaps.

    Parameters
    ----------
    account
        What was handed to the writers.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._stored = IdRanges()
        self._n_complete = 0
        self._incomplete = IdRanges()
        self._lost: dict[LossReason, Ranges] = {}

    def add_stored(self, image_ids: np.ndarray, status: np.ndarray) -> None:
        """Note images that a file holds.

        Parameters
        ----------
        image_ids, status
            (n,) each; ids increasing over all calls.
        """
        good = status == int(Status.GOOD_IMAGE)
        self._n_complete += int(np.count_nonzero(good))
        for image_id in image_ids[~good].tolist():
            self._incomplete.add(image_id)
        for first, last in ranges_of(image_ids):
            self._stored.add_range(first, last)

    def add_lost(self, first: int, last: int, reason: LossReason) -> None:
        """Note images that a writer says it lost, both ids included."""
        self._lost.setdefault(reason, []).append((first, last))

    def ledger(self) -> Ledger:
        """Return the account; what no writer has a reason for is a write error."""
        account = self._account
        ledger = Ledger(requested=account.n_images)
        ledger.complete = self._n_complete
        ledger.incomplete_ids = self._incomplete
        ledger.lost_ids[LossReason.NOT_RECEIVED] = account.not_received
        n_unstored = account.n_dispatched - self._stored.count
        if account.dispatched.truncated or self._stored.truncated:
            self._count_lost(ledger, n_unstored)
            return ledger
        unstored = difference(account.dispatched.ranges(), self._stored.ranges())
        for reason, found in self._lost.items():
            named = difference(unstored, difference(unstored, sorted(found)))
            _fill(ledger.lost_ids[reason], named)
            unstored = difference(unstored, named)
        _fill(ledger.lost_ids[LossReason.WRITE_ERROR], unstored)
        return ledger

    def _count_lost(self, ledger: Ledger, n_unstored: int) -> None:
        """Count where ids have so many gaps that they are not known one by one."""
        for reason, found in self._lost.items():
            for first, last in sorted(found):
                n = min(last - first + 1, n_unstored)
                ledger.lost_ids[reason].add_range(first, first + n - 1)
                n_unstored -= n
        if n_unstored > 0:
            ledger.lost_ids[LossReason.WRITE_ERROR].truncated = True
            ledger.lost_ids[LossReason.WRITE_ERROR].count = n_unstored


def ranges_of(image_ids: np.ndarray) -> Ranges:
    """Return increasing ids (n,) as ranges (first, last), both included."""
    if image_ids.size == 0:
        return []
    ends = np.flatnonzero(np.diff(image_ids) != 1)
    firsts = image_ids[np.concatenate([[0], ends + 1])]
    lasts = image_ids[np.concatenate([ends, [image_ids.size - 1]])]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def difference(these: Ranges, those: Ranges) -> Ranges:
    """Return what is in `these` and not in `those`; both are sorted, ranges include both ends."""
    found: Ranges = []
    at = 0
    for first, last in these:
        start = first
        while at < len(those) and those[at][1] < start:
            at += 1
        k = at
        while k < len(those) and those[k][0] <= last:
            if those[k][0] > start:
                found.append((start, those[k][0] - 1))
            start = max(start, those[k][1] + 1)
            k += 1
        if start <= last:
            found.append((start, last))
    return found


def _fill(ids: IdRanges, ranges: Ranges) -> None:
    for first, last in ranges:
        ids.add_range(first, last)
