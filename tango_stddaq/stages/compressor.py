"""Compressor: images of one ring, compressed into a ring of its own, with any number of threads."""

import logging
import threading
import time
from collections import deque
from ctypes import memmove
from dataclasses import dataclass
from typing import ClassVar, Final, cast

import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.registry import mask_words_of
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.ring import RingOwner, RingReader
from tango_stddaq.model import Compression, Dtype
from tango_stddaq.processing.compress import (
    DEFAULT_LEVEL,
    MAX_LEVEL,
    MIN_LEVEL,
    SUFFIXES,
    Compressor,
    check_block_bytes,
    compressor,
)
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter, Rate

MAX_THREADS: Final = 64
_BATCH: Final = 16
"""Messages read at once. They are finished when the stage stops: not more than a stop may take."""
_AHEAD: Final = 2
"""Images a thread may be ahead of the one that must leave first."""
_STOP_S: Final = 4.0
_RATE_WINDOW_S: Final = 2.0
_PIXELS_ELSEWHERE: Final = {"filter": "image", "delay-filter": "image"}
"""Streams without a ring of their own, and the ring their images lie in."""


_ITEMSIZES: Final = {int(d): d.numpy.itemsize for d in Dtype if d is not Dtype.UNKNOWN}


def ring_of(suffix: str) -> str:
    """Return the suffix of the ring that holds the pixels of a metadata stream."""
    return _PIXELS_ELSEWHERE.get(suffix, suffix)


@dataclass(slots=True)
class _Job:
    """One image in work, numbered in the order of arrival.

    Its message is changed in place and sent on: fields that this code does not know stay as they are.
    """

    number: int
    image_id: int
    message: pb.ImageMetadata
    n_bytes: int
    reader: RingReader | None


class ImageCompressor(Stage):
    """Compresses every image, whatever its status, and publishes it on a ring and stream of its own.

    An image that does not become smaller is passed on as it is. Each thread takes the next image from
    the stream, compresses it from slot to slot and leaves it; images leave in the order in which they
    came. When all threads are busy images wait in the stream, and those that the source's ring does
    not hold any more when their turn comes count as overwritten.

    Parameters
    ----------
    method
        How to compress; it gives the suffix of ring and stream.
    threads
        Images compressed at the same time.
    level
        Of blosc2, 1 (fastest) to 9.
    block_bytes
        Of bitshuffle, a multiple of 8 pixels; 0 for the library's choice.
    suffix
        Stream that announces the images.
    image_suffix
        Ring with their pixels, if it has another suffix.
    """

    name = "compressor"
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images published, compressed or not."),
        Counter("compressed_images", "images", "Images compressed among them."),
        Counter("passed_on", "images", "Images among them that compression does not make smaller."),
        Counter("bytes", "bytes", "Pixel bytes of these images."),
        Counter("compressed_bytes", "bytes", "Bytes published for them."),
        Counter("overwritten", "images", "Images lost: overwritten before they were read.", loss=True),
        Counter("refused", "images", "Images lost: compressed already, or too large.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not image metadata.", loss=True),
    )  # fmt: skip

    def __init__(
        self,
        config: DaqConfig,
        method: Compression,
        threads: int = 1,
        level: int = DEFAULT_LEVEL,
        block_bytes: int = 0,
        suffix: str = "image",
        image_suffix: str = "",
    ) -> None:
        super().__init__(config, SUFFIXES[method])
        if self.label in (suffix, image_suffix):
            raise ConfigError(f"source {suffix!r}: a compressor cannot read its own images")
        try:
            check_block_bytes(block_bytes, config.sizes.dtype.numpy.itemsize)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.method = method
        self._mark = cast(pb.ImageMetadataCompression, int(method))
        self.block_bytes = block_bytes
        self.threads = threads
        self.level = level
        self.ratio = 0.0
        """Bytes in per byte out over the last seconds with images; 0 before the first."""
        self.input_rate = 0.0
        """Pixel bytes per second."""
        self.output_rate = 0.0
        """Bytes published per second."""
        self.library = ""
        self._suffixes = suffix, image_suffix or ring_of(suffix)
        self._metadata: MetadataSource | None = None
        self._pixels: PixelSource | None = None
        self._reader: RingReader | None = None
        self._ring: RingOwner | None = None
        self._out: zmq.Socket[bytes] | None = None
        self._workers: list[threading.Thread] = []
        self._ended = threading.Event()
        self._worker_error: Exception | None = None
        self._receiving = threading.Lock()
        self._waiting: deque[bytes] = deque()
        # What follows belongs to whoever holds `_lock`, use of the output socket and counting included.
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._n_blocked = 0
        self._next_number = 0
        self._next_out = 0
        self._busy: set[int] = set()
        self._done: dict[int, tuple[_Job, str]] = {}
        self._rates = Rate(_RATE_WINDOW_S), Rate(_RATE_WINDOW_S)

    # -- settings, also while it runs --------------------------------------------------------------

    @property
    def threads(self) -> int:
        """Images compressed at the same time."""
        return self._threads

    @threads.setter
    def threads(self, value: int) -> None:
        if not 1 <= value <= MAX_THREADS:
            raise ConfigError(f"threads {value}: allowed are 1 to {MAX_THREADS}")
        self._threads = value

    @property
    def level(self) -> int:
        """Level of blosc2; bitshuffle has none and leaves it unused."""
        return self._level

    @level.setter
    def level(self, value: int) -> None:
        if not MIN_LEVEL <= value <= MAX_LEVEL:
            raise ConfigError(f"level {value}: allowed are {MIN_LEVEL} to {MAX_LEVEL}")
        self._level = value

    # -- the stage ---------------------------------------------------------------------------------

    def _open(self) -> None:
        config = self.config
        first = self._compressor()  # loads and checks the library, and compiles, before images come
        first.close()
        self.library = first.library
        self._ended.clear()
        self._worker_error = None
        self._waiting.clear()
        self._busy.clear()
        self._done.clear()
        self._next_out = self._next_number
        self._out = channels.bind(zmq.PUB, channels.ipc_address(config.detector_name, self.label))
        self._ring = RingOwner.of_images(config, self.label, mask_words_of(config))
        self._pixels = PixelSource(config, self._suffixes[1])
        self._reader = self._pixels.reader()  # its page tables are large: not when the first image waits
        self._metadata = MetadataSource(config, self._suffixes[0])
        self.say(logging.INFO, f"{self.label} by {self.library}, {self.threads} threads")

    def _turn(self) -> None:
        if self._worker_error is not None:
            raise self._worker_error
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        alive = {worker.name for worker in self._workers}
        for index in range(self.threads):
            name = f"{self.title} {index}"
            if name not in alive:
                worker = threading.Thread(target=self._work, args=(index,), name=name, daemon=True)
                self._workers.append(worker)
                worker.start()
        self._stop.wait(TURN_S)

    def _tick(self) -> None:
        now = time.monotonic()
        self.input_rate = self._rates[0].update(now, self.counters["bytes"])
        self.output_rate = self._rates[1].update(now, self.counters["compressed_bytes"])
        if self.output_rate:
            self.ratio = self.input_rate / self.output_rate

    def _do_reset(self) -> None:
        with self._lock:  # the threads count
            super()._do_reset()

    def _reset(self) -> None:
        self.ratio = self.input_rate = self.output_rate = 0.0
        self._rates = Rate(_RATE_WINDOW_S), Rate(_RATE_WINDOW_S)

    def _describe(self) -> str:
        return (
            f"Compressing with {self.library}: {self.counters['images']} images, {self.rate_hz:.1f} Hz, "
            f"{self.input_rate / 1e6:.0f} MB/s, ratio {self.ratio:.2f}."
        )

    def _close(self) -> None:
        self._ended.set()
        deadline = time.monotonic() + _STOP_S
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        stuck = [worker.name for worker in self._workers if worker.is_alive()]
        self._workers = []
        if stuck:  # nothing may be unmapped under it: the process keeps what it uses
            self.say(logging.ERROR, f"{', '.join(stuck)} did not end within {_STOP_S:g} s")
            return
        for handle in (self._metadata, self._pixels, self._ring):
            if handle is not None:
                handle.close()
        if self._out is not None:
            channels.close(self._out)
        self._metadata = self._pixels = self._reader = self._ring = self._out = None

    # -- the threads -------------------------------------------------------------------------------

    def _compressor(self) -> Compressor:
        return compressor(self.method, self.level, self.block_bytes)

    def _work(self, index: int) -> None:
        level, made = self.level, self._compressor()
        try:
            while self._waiting if self._ended.is_set() else index < self.threads:
                job = self._take()
                if job is None:
                    continue
                if level != self.level:
                    made.close()
                    level, made = self.level, self._compressor()
                self._leave(job, self._compress(job, made))
        except Exception as error:  # the run loop raises it: the stage goes to FAULT
            self._worker_error = error
            self._ended.set()
            self._waiting.clear()
        finally:
            made.close()

    def _take(self) -> _Job | None:
        """Take the next image; waits a turn for it, and until its slot is free."""
        metadata, ring = self._metadata, self._ring
        with self._receiving:
            if metadata is None or ring is None:
                return None
            if not self._waiting:
                if not self._ended.is_set():
                    self._waiting.extend(metadata.receive_messages(int(TURN_S * 1000), _BATCH))
                if not self._waiting:
                    return None
            try:
                message = image_metadata.parse(self._waiting[0])
            except ValueError:
                self._waiting.popleft()
                with self._lock:
                    self.counters["malformed"] += 1
                return None
            image_id = message.image_id
            slot = image_id % ring.n_slots
            most = min(_AHEAD * self.threads, ring.n_slots)
            with self._lock:
                # Ids that are multiples of the ring apart share a slot: one after the other.
                while len(self._busy) >= most or slot in self._busy:
                    self._wait()
                    if self._worker_error is not None:
                        return None
                reader = self._source()
                number = self._next_number
                self._next_number += 1
                self._busy.add(slot)
            self._waiting.popleft()
            return _Job(number, image_id, message, message.size, reader)

    def _source(self) -> RingReader | None:
        """Return the source's ring; a new one only when no thread reads the old one any more."""
        while self._reader is not None and self._reader.retired:
            if not self._busy:
                self._reader = None
            else:
                self._wait()
        if self._reader is None and self._pixels is not None:
            self._reader = self._pixels.reader()
        return self._reader

    def _wait(self) -> None:
        """Wait a turn for an image to leave; the caller holds `_lock`."""
        self._n_blocked += 1
        self._left.wait(TURN_S)
        self._n_blocked -= 1

    def _compress(self, job: _Job, made: Compressor) -> str:
        """Compress an image into its slot; returns the counter that it ends in."""
        message, reader, ring, image_id, n_bytes = (
            job.message,
            job.reader,
            self._ring,
            job.image_id,
            job.n_bytes,
        )
        itemsize = _ITEMSIZES.get(message.dtype, 0)
        if message.compression or n_bytes != message.height * message.width * itemsize or not itemsize:
            return "refused"
        if reader is None or ring is None:
            return "overwritten"
        if n_bytes > reader.slot_bytes:
            return "refused"
        ticket = reader.ticket(image_id)
        if ticket is None:
            return "overwritten"
        ring.begin(image_id)
        offset = image_id % ring.n_slots * ring.slot_bytes
        source, target = reader.base_address + offset, ring.base_address + offset
        n_compressed = made.compress_at(source, n_bytes, itemsize, target, n_bytes)
        if n_compressed:
            message.size, message.compression = n_compressed, self._mark
        else:
            memmove(target, source, n_bytes)
        ring.copy_mask(image_id, reader)
        if not reader.still(image_id, ticket):
            return "overwritten"
        return "compressed_images" if n_compressed else "passed_on"

    def _leave(self, job: _Job, outcome: str) -> None:
        """Publish an image when its turn has come, and those that waited for it."""
        with self._lock:
            self._done[job.number] = job, outcome
            while (ready := self._done.pop(self._next_out, None)) is not None:
                self._next_out += 1
                self._publish(*ready)
            if self._n_blocked:
                self._left.notify_all()

    def _publish(self, job: _Job, outcome: str) -> None:
        ring, out, counters = self._ring, self._out, self.counters
        if ring is None or out is None:
            return
        self._busy.discard(job.image_id % ring.n_slots)
        counters[outcome] += 1
        if outcome in ("overwritten", "refused"):
            return
        counters["images"] += 1
        counters["bytes"] += job.n_bytes
        counters["compressed_bytes"] += job.message.size
        ring.publish(job.image_id)
        out.send(job.message.SerializeToString())
