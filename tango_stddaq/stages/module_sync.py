"""Module synchronizer: joins the frames of all modules to images; owner of the image ring."""

import time
from typing import ClassVar

import numpy as np
import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import FRAME_HEADER, FRAME_HEADER_BYTES, HEADER_MARK
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import INVALID_IMAGE_ID, Frame, Image
from tango_stddaq.processing.slots import NO_EPOCH
from tango_stddaq.processing.synchronize import JoinedImage, Synchronizer
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

_MAX_MESSAGES_PER_TURN = 256


class ModuleSync(Stage):
    """Receives frame headers on `-sync`, publishes image metadata on `-image`.

    Parameters
    ----------
    idle_timeout_s
        After so long without a frame, incomplete images go on as they are.
    """

    name = "module-sync"
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images published, complete or not."),
        Counter("complete", "images", "Images published with all their packets."),
        Counter("incomplete", "images", "Images published with packets missing.", loss=True),
        Counter("missing_modules", "frames", "Frames that never came.", loss=True),
        Counter("skipped_ids", "images", "Images of which nothing came: gaps in ids.", loss=True),
        Counter("overwritten", "images", "Images whose slot was reused too early.", loss=True),
        Counter("frames", "frames", "Frame headers received."),
        Counter("malformed", "messages", "Messages dropped: not frame headers.", loss=True),
        Counter("foreign", "frames", "Frames dropped: of no module of ours.", loss=True),
        Counter("late", "frames", "Frames dropped: their image was published.", loss=True),
        Counter("duplicate", "frames", "Frames dropped: had come before."),
        Counter("restarts", "restarts", "Times that image ids started again."),
        Counter("queue", "images", "Images waiting for modules now."),
    )

    def __init__(self, config: DaqConfig, idle_timeout_s: float = 1.0) -> None:
        super().__init__(config)
        self.detector = detector_of(config)
        self.idle_timeout_s = idle_timeout_s
        self._index_of = {module: i for i, module in enumerate(self.detector.modules)}
        self._synchronizer = self._new_synchronizer()
        self._ring: RingOwner | None = None
        self._in: zmq.Socket[bytes] | None = None
        self._out: zmq.Socket[bytes] | None = None
        self._last_frame_s = 0.0
        self._last_id: int | None = None

    def _new_synchronizer(self) -> Synchronizer:
        return Synchronizer(len(self.detector.modules), self.config.module_sync_queue_size)

    def _open(self) -> None:
        name, sizes = self.config.detector_name, self.config.sizes
        self._in = channels.bind(zmq.PULL, channels.ipc_address(name, "sync"))
        self._out = channels.bind(zmq.PUB, channels.ipc_address(name, "image"))
        self._ring = RingOwner(self.config.segment("image"), sizes.n_slots, sizes.slot_bytes)
        self._synchronizer = self._new_synchronizer()
        self._last_id = None

    def _turn(self) -> None:
        if self._in is None:
            return
        now = time.monotonic()
        if not self._in.poll(int(TURN_S * 1000)):
            if now - self._last_frame_s > self.idle_timeout_s:
                self._publish(self._synchronizer.flush())
                self._synchronizer.idle()
            return
        self._last_frame_s = now
        for _ in range(_MAX_MESSAGES_PER_TURN):
            try:
                data = self._in.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            if not data or len(data) % FRAME_HEADER_BYTES:
                self.counters["malformed"] += 1
                continue
            self._take(data)

    def _take(self, data: bytes) -> None:
        headers = np.frombuffer(data, FRAME_HEADER)
        for at, (image_id, n_missing, module, mark, epoch) in enumerate(headers.tolist()):
            self.counters["frames"] += 1
            index = self._index_of.get(module)
            if index is None or image_id == INVALID_IMAGE_ID:
                self.counters["foreign"] += 1
                continue
            if mark != HEADER_MARK and self._ring is not None:
                self._ring.keep()  # an existing program writes into it, and outlives us
            start = at * FRAME_HEADER_BYTES
            frame = Frame(
                image_id,
                index,
                min(n_missing, self.detector.layout.packets_per_frame),
                epoch if mark == HEADER_MARK else NO_EPOCH,
                data[start : start + FRAME_HEADER_BYTES],
            )
            self._publish(self._synchronizer.add(frame))

    def _publish(self, joined: list[JoinedImage]) -> None:
        ring, out, sizes = self._ring, self._out, self.config.sizes
        if ring is None or out is None:
            return
        packets_per_frame = self.detector.layout.packets_per_frame
        for one in joined:
            is_there = not ring.is_reused(one.image_id)
            if is_there:
                for module_index in one.missing_modules:
                    self._fill(ring, one.image_id, module_index)
                is_there = ring.publish(one.image_id)
            n_missing = one.n_missing_packets + len(one.missing_modules) * packets_per_frame
            image = Image(
                one.image_id,
                sizes.height,
                sizes.width,
                sizes.slot_bytes,
                sizes.dtype,
                one.status,
                detector=self.detector.metadata(one.header) if one.header else None,
                n_missing_packets=n_missing,
                n_missing_modules=len(one.missing_modules),
            )
            out.send(image_metadata.encode(image))
            self.counters["images"] += 1
            # One bin for each; consumers find out by themselves that a slot is taken.
            bin_name = "overwritten" if not is_there else "incomplete" if n_missing else "complete"
            self.counters[bin_name] += 1
            self.counters["missing_modules"] += len(one.missing_modules)
            if self._last_id is not None and one.image_id > self._last_id + 1:
                self.counters["skipped_ids"] += one.image_id - self._last_id - 1
            self._last_id = one.image_id

    def _fill(self, ring: RingOwner, image_id: int, module_index: int) -> None:
        """Clear the pixels of a module that never came: an older image lies there."""
        placement = self.detector.placement
        slot = ring.slot(image_id)
        starts = placement.offsets[module_index].reshape(-1, 1)
        slot[starts + np.arange(placement.piece_bytes)] = placement.fill_byte

    def _tick(self) -> None:
        synchronizer = self._synchronizer
        self.counters["late"] = synchronizer.n_late
        self.counters["duplicate"] = synchronizer.n_duplicate
        self.counters["restarts"] = synchronizer.n_restarts
        self.counters["queue"] = synchronizer.n_waiting

    def _reset(self) -> None:
        self._publish(self._synchronizer.flush())
        synchronizer = self._synchronizer
        synchronizer.n_late = synchronizer.n_duplicate = synchronizer.n_restarts = 0

    def _close(self) -> None:
        try:
            if self._ring is not None:
                self._publish(self._synchronizer.flush())
                self._tick()
        finally:  # also if it was publishing that failed
            for handle in (self._in, self._out):
                if handle is not None:
                    channels.close(handle)
            if self._ring is not None:
                self._ring.close()
            self._in = self._out = self._ring = None
