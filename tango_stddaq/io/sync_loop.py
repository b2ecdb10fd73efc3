"""The synchronizer's compiled loop: frame headers in, images published in the ring and announced."""

from typing import Final

import numpy as np
import zmq

from tango_stddaq.detectors.layout import FRAME_HEADER, FRAME_HEADER_BYTES
from tango_stddaq.io import zmq_calls
from tango_stddaq.io.channels import MAX_MESSAGE_BYTES
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.io.zmq_calls import EAGAIN, EINTR, receive, send_rows, wait
from tango_stddaq.processing import joining
from tango_stddaq.processing.clock import monotonic_ns
from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.joining import STATE
from tango_stddaq.processing.metadata_template import MetadataTemplate, encode_rows
from tango_stddaq.processing.slots import is_of_other_epoch, publish_slots
from tango_stddaq.processing.synchronize import MAX_FRAMES, Synchronizer

_MAX_MESSAGES: Final = 256
_COUNTS: Final = (
    "frames", "malformed", "images", "published", "incomplete", "missing_modules", "last_incomplete",
)  # fmt: skip
_FRAMES, _MALFORMED, _IMAGES, _PUBLISHED, _INCOMPLETE, _MODULES, _LAST = range(len(_COUNTS))
_N_UNMARKED: Final = STATE["n_unmarked"]
_NOW_NS: Final = STATE["now_ns"]
_PACKETS: Final = STATE["packets_per_frame"]
_HEADER_AT: Final = 8 * joining.HEADER


class SyncLoop:
    """Takes what receivers send, joins it, and sends on what is complete.

    Parameters
    ----------
    synchronizer, template
        How frames are joined, and what is said of the images.
    ring
        Where their pixels lie.
    source, target
        PULL socket of the frame headers, PUB socket of the images.

    Attributes
    ----------
    counts
        What happened since `forget_counts`: frames and malformed messages taken; images that went on,
        those of them whose slot held them still (*published*), those of these with packets missing;
        frames that never came; the id of the last incomplete image, or -1.
    """

    def __init__(
        self,
        synchronizer: Synchronizer,
        template: MetadataTemplate,
        ring: RingOwner | None = None,
        source: "zmq.Socket[bytes] | None" = None,
        target: "zmq.Socket[bytes] | None" = None,
    ) -> None:
        self._synchronizer = synchronizer
        self._index, self._n_slots = (ring.index_address, ring.n_slots) if ring is not None else (0, 1)
        self._source, self._target = (
            zmq_calls.handle_of(handle) if handle is not None else 0 for handle in (source, target)
        )
        n_joined = synchronizer.joined.shape[0]
        self._frames = np.zeros((MAX_FRAMES, FRAME_HEADER_BYTES), np.uint8)
        self._numbers = np.zeros((4, n_joined), np.int64)
        self._is_there = np.zeros(n_joined, np.bool_)
        self._template = template.arrays(n_joined)
        self._counts = np.zeros(len(_COUNTS), np.int64)
        self._clock = np.zeros(2, np.int64)  # struct timespec
        self.forget_counts()

    @property
    def counts(self) -> dict[str, int]:
        """The counts by their names."""
        return dict(zip(_COUNTS, self._counts.tolist(), strict=True))

    def forget_counts(self) -> None:
        """Begin to count anew."""
        self._counts[:] = 0
        self._counts[_LAST] = -1

    def prepare(self) -> None:
        """Compile, or load, while nothing waits: the first frame shall not wait for it."""
        self._synchronizer.flush()
        self.turn(0)
        self.publish(0)

    def turn(self, seconds: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Take frames and send images on, for so long, or at most so long if none comes.

        Returns
        -------
        tuple or None
            Where images must not go on as they are, because modules of them never came, or where frames
            are from an existing program: the headers of the frames taken last, (n,) `FRAME_HEADER`, and
            the images, (m,) `JOINED`, both valid until the next call. The images are to be published.

        Raises
        ------
        ChannelError
            If a socket fails.
        """
        n_frames, n_joined = _turn(
            self._source, self._target, int(seconds * 1e9), self._clock, self._frames, self._counts,
            self._index, self._n_slots, self._numbers, self._is_there, self._template,
            self._synchronizer.arrays(),
        )  # fmt: skip
        zmq_calls.check(n_frames)
        if n_joined < 0:
            return None
        frames = self._frames[:n_frames].reshape(-1).view(FRAME_HEADER)
        return frames, self._synchronizer.joined[:n_joined]

    def publish(self, n_joined: int) -> None:
        """Publish and announce the first images of what the synchronizer joined last."""
        zmq_calls.check(
            _publish(
                n_joined, self._target, self._counts, self._index, self._n_slots, self._numbers,
                self._is_there, self._template, self._synchronizer.arrays(),
            )
        )  # fmt: skip


@compiled
def _turn(
    source, target, turn_ns, clock, frames, counts, index, n_slots, numbers, is_there, template, arrays
):  # fmt: skip
    """Return how many frames and images are to be looked at; images -1: none, and frames 0 or -errno."""
    (
        places, state, newest, late_run, waiting, n_arrived, arrived, order, free, out, out_arrived,
        is_joined,
    ) = arrays  # fmt: skip
    if source == 0:
        return 0, -1
    start_ns = monotonic_ns(clock)
    while True:
        n_frames = _collect(source, frames, counts)
        if n_frames < 0:
            return n_frames, -1
        state[_NOW_NS] = monotonic_ns(clock)
        left_ns = start_ns + turn_ns - state[_NOW_NS]
        if n_frames == 0 and left_ns > 0 and wait(source, left_ns // 1_000_000 + 1):
            continue  # there is something now
        counts[_FRAMES] += n_frames
        n_unmarked = state[_N_UNMARKED]
        n_joined = joining.take(
            frames[:n_frames], places, state, newest, late_run, waiting, n_arrived, arrived, order, free,
            out, out_arrived, is_joined,
        )  # fmt: skip
        if state[_N_UNMARKED] != n_unmarked or _is_module_missing(n_joined, out):
            return n_frames, n_joined
        n_sent = _publish(
            n_joined, target, counts, index, n_slots, numbers, is_there, template, arrays
        )  # fmt: skip
        if n_sent < 0:
            return n_sent, -1
        if left_ns <= 0 or n_frames == 0 or counts[_INCOMPLETE]:
            return 0, -1  # what an image misses stands in the ring, and not for long


@inner
def _collect(source, frames, counts):
    """Take the messages that wait, as many as surely fit; returns frames, or -errno."""
    room = frames.shape[0] * FRAME_HEADER_BYTES
    n_bytes = np.int64(0)
    for _ in range(_MAX_MESSAGES):
        if n_bytes + MAX_MESSAGE_BYTES > room:
            break
        n = receive(source, np.int64(frames.ctypes.data) + n_bytes, MAX_MESSAGE_BYTES)
        if n < 0:
            if n != -EAGAIN and n != -EINTR:
                return n
            break
        if n == 0 or n > MAX_MESSAGE_BYTES or n % FRAME_HEADER_BYTES:
            counts[_MALFORMED] += 1
        else:
            n_bytes += n
    return n_bytes // FRAME_HEADER_BYTES


@inner
def _is_module_missing(n_joined, out):
    n_missing = 0
    for i in range(n_joined):
        n_missing += out[i, joining.MISSING_MODULES]
    return n_missing > 0


@compiled
def _publish(n, target, counts, index, n_slots, numbers, is_there, template, arrays):
    """Publish and announce `n` joined images; returns how many were, or -errno.

    Of those that cannot be published consumers find out by themselves, but for one: where the slot is of
    the same id, since ids started again, they would take the new pixels. It is not announced.
    """
    shared, key, rows, messages, ends = template
    state, out = arrays[1], arrays[9]
    if n == 0 or target == 0:
        return 0
    ids, n_missing, n_modules, epochs = numbers[0, :n], numbers[1, :n], numbers[2, :n], numbers[3, :n]
    for i in range(n):
        ids[i], epochs[i] = out[i, joining.ID], out[i, joining.EPOCH]
        n_modules[i] = out[i, joining.MISSING_MODULES]
        n_missing[i] = out[i, joining.MISSING_PACKETS] + n_modules[i] * state[_PACKETS]
    publish_slots(index, n_slots, ids, epochs, is_there[:n])
    headers = out.view(np.uint8)[:n, _HEADER_AT:]
    encode_rows(ids, n_missing, n_modules, headers, shared, key, rows, messages, ends)
    counts[_IMAGES] += n
    for i in range(n):
        counts[_MODULES] += n_modules[i]
        counts[_PUBLISHED] += is_there[i]
        if is_there[i] and n_missing[i] > 0:
            counts[_INCOMPLETE] += 1
            counts[_LAST] = ids[i]
        if not is_there[i] and is_of_other_epoch(index, n_slots, ids[i], epochs[i]):
            ends[i] = -1
    return send_rows(target, messages, ends[:n], 0, 1)
