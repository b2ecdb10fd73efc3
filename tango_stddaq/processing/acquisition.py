"""The states of an acquisition as a table, and the account of its images. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tango_stddaq.errors import AcquisitionError
from tango_stddaq.model import Image, Status
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

    def take(self, image: Image) -> bool:
        """Note an image; returns whether it belongs to the acquisition and shall be stored.

        Raises
        ------
        AcquisitionError
            If ids went back: the detector was restarted in the middle.
        """
        image_id = image.image_id
        if self.done:
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
        if image.status != Status.GOOD_IMAGE:
            self.incomplete.add(image_id)
        return True

    def provisional(self) -> Ledger:
        """Return the ledger as if everything handed to the writers will be stored."""
        ledger = Ledger(requested=self.n_images)
        ledger.complete = self.n_dispatched - self.incomplete.count
        ledger.incomplete_ids = self.incomplete
        ledger.lost_ids[LossReason.NOT_RECEIVED] = self.not_received
        return ledger

    def final(
        self, stored_ids: list[int], stored_status: list[int], unstored_reason: LossReason
    ) -> Ledger:
        """Return the ledger from what the files really hold.

        Parameters
        ----------
        stored_ids, stored_status
            Of every image in the files, ids increasing.
        unstored_reason
            Why images that were handed to a writer are not there.
        """
        ledger = Ledger(requested=self.n_images)
        ledger.lost_ids[LossReason.NOT_RECEIVED] = self.not_received
        for image_id, status in zip(stored_ids, stored_status, strict=True):
            if status == Status.GOOD_IMAGE:
                ledger.complete += 1
            else:
                ledger.incomplete_ids.add(image_id)
        stored = set(stored_ids)
        if len(stored) != self.n_dispatched:
            unstored = ledger.lost_ids[unstored_reason]
            for image_id in self.dispatched:
                if image_id not in stored:
                    unstored.add(image_id)
            if self.dispatched.truncated:  # of the rest only the number is known
                unstored.truncated = True
                unstored.count = self.n_dispatched - len(stored)
        return ledger
