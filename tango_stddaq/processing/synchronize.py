"""Joining the frames of all modules into images: a plain data structure, compiled.

Images leave in strictly increasing order of their ids. An incomplete image waits for its modules until
`queue_size` newer images wait behind it and it had its time, then goes on as incomplete: nothing is
dropped in silence, and nothing waits forever.
"""

from typing import Final

import numpy as np

from tango_stddaq.detectors.layout import FRAME_HEADER_BYTES
from tango_stddaq.processing import joining
from tango_stddaq.processing.joining import N_STATE, STATE

JOINED: Final = np.dtype(
    [
        ("image_id", "<i8"),
        ("n_missing_packets", "<i8"),
        ("n_missing_modules", "<i8"),
        ("since_ns", "<i8"),
        ("epoch", "<i8"),
        ("header", "u1", FRAME_HEADER_BYTES),
    ]
)
"""An image that goes on: packets missing in the frames that came, modules of which no frame came, the
time at which the first frame came, the epoch of the image (0 where only existing programs sent frames),
and the header of the first frame."""
MAX_FRAMES: Final = 2048
"""Frames joined in one call of the compiled loop."""


class Synchronizer:
    """Collects frames and releases images: all memory of `joining.take`, and its counts.

    Parameters
    ----------
    modules
        Numbers of the modules that make up an image; a frame names one in its header.
    queue_size
        Images that an incomplete image may wait for.
    packets_per_frame
        A frame cannot miss more.
    patience_ns
        An incomplete image waits at least so long, however fast others come: receivers lag behind each
        other for milliseconds, and at high rates these are many images.
    max_waiting
        Images that wait at most, whatever the patience; at least `queue_size`.

    Attributes
    ----------
    joined
        (m,) `JOINED`: the first of them are the images that were returned last.
    is_joined
        (`MAX_FRAMES`,) bool: which of the frames taken last belong to an image; the others were dropped.
    """

    def __init__(
        self,
        modules: tuple[int, ...],
        queue_size: int,
        packets_per_frame: int,
        patience_ns: int = 0,
        max_waiting: int = 0,
    ) -> None:
        max_waiting = max(queue_size, max_waiting)
        n_modules, capacity = len(modules), max_waiting + 2
        n_words = -(-n_modules // 64)
        self._places = np.full(1 << 16, -1, np.int16)
        self._places[list(modules)] = np.arange(n_modules)
        self._state = np.zeros(N_STATE, np.int64)
        self._state[STATE["last"]] = -1
        self._state[STATE["released"]] = -1
        self._state[STATE["n_modules"]] = n_modules
        self._state[STATE["queue_size"]] = queue_size
        self._state[STATE["packets_per_frame"]] = packets_per_frame
        self._state[STATE["patience_ns"]] = patience_ns
        self._state[STATE["max_waiting"]] = max_waiting
        self._newest = np.full(n_modules, -1, np.int64)
        self._late_run = np.zeros(n_modules, np.int64)
        self._waiting = np.zeros(capacity, JOINED)
        self._n_arrived = np.zeros(capacity, np.int64)
        self._arrived = np.zeros((capacity, n_words), np.uint64)
        self._order = np.zeros(2 * capacity, np.int64)
        self._free = np.arange(capacity, dtype=np.int64)[::-1].copy()
        n_out = capacity + MAX_FRAMES
        self.joined = np.zeros(n_out, JOINED)
        self.is_joined = np.zeros(MAX_FRAMES, np.bool_)
        self._out_arrived = np.zeros((n_out, n_words), np.uint64)

    @property
    def n_waiting(self) -> int:
        """Images that wait for modules, or for an older image that does."""
        return self._count("n_waiting")

    @property
    def n_late(self) -> int:
        """Frames of images that were released already."""
        return self._count("n_late")

    @property
    def n_duplicate(self) -> int:
        """Frames that came twice."""
        return self._count("n_duplicate")

    @property
    def n_foreign(self) -> int:
        """Frames of no module of ours, or with an id that no image has."""
        return self._count("n_foreign")

    @property
    def n_unmarked(self) -> int:
        """Frames of existing programs."""
        return self._count("n_unmarked")

    @property
    def n_restarts(self) -> int:
        """How often ids started again at a lower number."""
        return self._count("n_restarts")

    @property
    def n_skipped(self) -> int:
        """Images of which nothing came: gaps in the ids."""
        return self._count("n_skipped")

    def flush(self) -> np.ndarray:
        """Release all that waits, complete or not; returns the images, valid until the next call."""
        return self.joined[: joining.flush(*self.arrays()[1:-1])]

    def missing_modules(self, at: int) -> tuple[int, ...]:
        """Return the places of the modules that the `at`-th image returned last is missing."""
        arrived, n_modules = self._out_arrived[at], self._count("n_modules")
        return tuple(m for m in range(n_modules) if not int(arrived[m >> 6]) >> (m & 63) & 1)

    def idle(self) -> None:
        """Note that no frame came for so long that stragglers need not be expected any more."""
        self._state[STATE["was_idle"]] = 1

    def reset_counts(self) -> None:
        """Set the counts to zero; what waits goes on waiting."""
        for name in ("n_late", "n_duplicate", "n_foreign", "n_restarts", "n_skipped"):
            self._state[STATE[name]] = 0

    def _count(self, name: str) -> int:
        return int(self._state[STATE[name]])

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return what the compiled loops of `joining` take, in their order."""
        return (
            self._places, self._state, self._newest, self._late_run, _words(self._waiting),
            self._n_arrived, self._arrived, self._order, self._free, _words(self.joined),
            self._out_arrived, self.is_joined,
        )  # fmt: skip


def _words(joined: np.ndarray) -> np.ndarray:
    """View `JOINED` records as (n, 13) 64-bit words: id, packets, modules, time, epoch, header."""
    return joined.view(np.int64).reshape(-1, JOINED.itemsize // 8)
