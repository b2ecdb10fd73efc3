"""Joining the frames of all modules into images: a plain data structure.

Images leave in strictly increasing order of their ids. An incomplete image waits for its modules until
`queue_size` newer images wait behind it, then goes on as incomplete: nothing is dropped in silence, and
nothing waits forever.
"""

from dataclasses import dataclass, field

from tango_stddaq.model import Frame, Status
from tango_stddaq.processing.slots import NO_EPOCH, is_later_epoch


@dataclass(slots=True)
class JoinedImage:
    """What the synchronizer knows of one image.

    Attributes
    ----------
    arrived
        Bit m is set when module index m delivered its frame.
    header
        The frame header of the first frame that came.
    missing_modules
        Indexes of the modules of which no frame came.
    """

    image_id: int
    arrived: int = 0
    n_arrived: int = 0
    n_missing_packets: int = 0
    header: bytes = b""
    missing_modules: tuple[int, ...] = field(default=())

    @property
    def status(self) -> Status:
        """The worst of its modules' status."""
        if self.missing_modules or self.n_missing_packets:
            return Status.MISSING_PACKETS
        return Status.GOOD_IMAGE


class Synchronizer:
    """Collects frames and releases images.

    Parameters
    ----------
    n_modules
        Frames that make up an image.
    queue_size
        Images that an incomplete image may wait for.

    Attributes
    ----------
    n_late, n_duplicate
        Frames of images that were released already, and frames that came twice.
    n_restarts
        How often ids started again at a lower number.
    """

    def __init__(self, n_modules: int, queue_size: int) -> None:
        self._n_modules = n_modules
        self._all = (1 << n_modules) - 1
        self._queue_size = queue_size
        self._waiting: dict[int, JoinedImage] = {}
        self._newest: dict[int, int] = {}  # the highest id of each module
        self._late_run: dict[int, int] = {}
        self._last = -1
        self._epoch = NO_EPOCH
        self._was_idle = False
        self.n_late = 0
        self.n_duplicate = 0
        self.n_restarts = 0

    @property
    def n_waiting(self) -> int:
        """Images that wait for modules, or for an older image that does."""
        return len(self._waiting)

    def add(self, frame: Frame) -> list[JoinedImage]:
        """Take a frame; returns the images that may go on now, in order."""
        released: list[JoinedImage] = []
        if NO_EPOCH not in (frame.epoch, self._epoch) and frame.epoch != self._epoch:
            if not is_later_epoch(frame.epoch, self._epoch):
                self.n_late += 1
                return released
            released = self._restart()
        elif frame.image_id <= self._last:
            if frame.epoch != NO_EPOCH or not self._looks_like_restart(frame):
                self.n_late += 1
                return released
            released = self._restart()
        self._was_idle = False
        self._epoch = frame.epoch
        self._note_forward(frame)
        image = self._waiting.get(frame.image_id)
        if image is None:
            image = self._waiting[frame.image_id] = JoinedImage(frame.image_id)
        bit = 1 << frame.module_index
        if image.arrived & bit:
            self.n_duplicate += 1
            return released
        image.arrived |= bit
        image.n_arrived += 1
        image.n_missing_packets += frame.n_missing_packets
        if not image.header:
            image.header = frame.header
        if image.n_arrived == self._n_modules or len(self._waiting) > self._queue_size:
            released += self._release()
        return released

    def flush(self) -> list[JoinedImage]:
        """Release everything that waits, complete or not."""
        released = [self._waiting[image_id] for image_id in sorted(self._waiting)]
        self._waiting.clear()
        return self._finish(released)

    def idle(self) -> None:
        """Note that no frame came for so long that stragglers need not be expected any more."""
        self._was_idle = True

    def _release(self) -> list[JoinedImage]:
        released = []
        for image_id in sorted(self._waiting):
            image = self._waiting[image_id]
            if image.arrived != self._all and len(self._waiting) <= self._queue_size:
                break
            released.append(self._waiting.pop(image_id))
        return self._finish(released)

    def _finish(self, released: list[JoinedImage]) -> list[JoinedImage]:
        for image in released:
            if image.arrived != self._all:
                image.missing_modules = tuple(
                    m for m in range(self._n_modules) if not image.arrived >> m & 1
                )
            self._last = image.image_id
        return released

    def _restart(self) -> list[JoinedImage]:
        released = self.flush()
        self._last = -1
        self._newest.clear()
        self._late_run.clear()
        self.n_restarts += 1
        return released

    def _looks_like_restart(self, frame: Frame) -> bool:
        """Tell a straggler from a detector that counts from the start again, without an epoch.

        Frames of one module come in order: while its ids go up, it only lags behind the others. A first
        frame that goes back may be a straggler if it is of a recent image; once a module's old frames
        go on for longer than images wait here, it cannot be.
        """
        if self._was_idle:
            return True
        newest = self._newest.get(frame.module_index, -1)
        if frame.image_id > newest:
            self._note_forward(frame)
            return False
        if newest - frame.image_id > 2 * self._queue_size:
            return True
        run = self._late_run.get(frame.module_index, 0) + 1
        self._late_run[frame.module_index] = run
        return run > self._queue_size

    def _note_forward(self, frame: Frame) -> None:
        self._newest[frame.module_index] = max(frame.image_id, self._newest.get(frame.module_index, -1))
        self._late_run.pop(frame.module_index, None)
