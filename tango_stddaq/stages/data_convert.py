"""Data converter: raw frames of modules to their places in the image ring.

The second half of what a receiver in *direct* mode does by itself: it stands between a receiver (ours in
*frames* mode, or an existing one) and a module synchronizer (ours, or an existing one).
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.config_sizes import MIN_SLOTS
from tango_stddaq.detectors.layout import FRAME_HEADER, FRAME_HEADER_BYTES, HEADER_MARK
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingReader, RingWriter
from tango_stddaq.model import INVALID_IMAGE_ID
from tango_stddaq.processing import slots
from tango_stddaq.processing.slots import MAX_IMAGE_ID
from tango_stddaq.stages.base import TURN_S
from tango_stddaq.stages.converting import ConvertingStage
from tango_stddaq.stats import Counter

_MAX_MESSAGES_PER_TURN = 64


class DataConvert(ConvertingStage):
    """Converts the frames of some modules; parameters as of `ConvertingStage`."""

    name = "data-convert"
    main_counter = "frames"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("frames", "frames", "Frames brought to their image."),
        Counter("bytes", "bytes", "Bytes of raw frames."),
        Counter("incomplete_frames", "frames", "Frames that came with packets missing.", loss=True),
        Counter("missing_packets", "packets", "Packets missing in these frames.", loss=True),
        Counter("overwritten", "frames", "Frames lost: overwritten before they were read.", loss=True),
        Counter("late", "frames", "Frames lost: their image was published already.", loss=True),
        Counter("unannounced_frames", "frames", "Frames lost: no synchronizer took them.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not frame headers.", loss=True),
        Counter("invalid_pixels", "pixels", "Pixels of an invalid gain stage: now NaN."),
    )

    def __init__(
        self,
        config: DaqConfig,
        modules: Sequence[int] | None = None,
        gains_file: str = "",
        pedestals_file: str = "",
    ) -> None:
        super().__init__(config, modules, gains_file=gains_file, pedestals_file=pedestals_file)
        self._in: list[zmq.Socket[bytes]] = []
        self._poller = zmq.Poller()
        self._out: zmq.Socket[bytes] | None = None
        self._heard = self._seen_owner = False
        self._frames: dict[int, RingReader] = {}
        self._images: dict[int, RingWriter] = {}
        self._frame = np.empty(0, np.uint8)
        self._mask = np.zeros(self.detector.layout.mask_words, np.uint64)

    def _open(self) -> None:
        name, detector = self.config.detector_name, self.detector
        workspace = self._new_workspace(self._image_placement())
        self._frame = np.zeros(detector.layout.frame_bytes, np.uint8)
        # Compiles the conversion, or loads it, before the first frame needs it.
        workspace.place_frame(0, self._frame, np.zeros(self.config.sizes.slot_bytes, np.uint8))
        slots.prepare()
        self._poller = zmq.Poller()
        for module in self.modules:
            self._in.append(channels.connect(zmq.SUB, channels.ipc_address(name, str(module))))
            self._poller.register(self._in[-1], zmq.POLLIN)
        # Nothing waits for a synchronizer that is not there: one of ours clears the ring when it comes.
        self._heard = self._seen_owner = False
        address = channels.ipc_address(name, "sync")
        self._out = channels.connect(zmq.PUSH, address, options={int(zmq.IMMEDIATE): 1})

    def _turn(self) -> None:
        self._take_new_maps()
        ready = dict(self._poller.poll(int(TURN_S * 1000)))
        for source, handle in enumerate(self._in):
            if handle not in ready:
                continue
            for _ in range(_MAX_MESSAGES_PER_TURN):
                try:
                    data = handle.recv(zmq.DONTWAIT)
                except zmq.Again:
                    break
                if len(data) == FRAME_HEADER_BYTES:
                    self._convert(source, bytearray(data))
                else:
                    self.counters["malformed"] += 1

    def _convert(self, source: int, header: bytearray) -> None:
        fields = np.frombuffer(header, FRAME_HEADER)
        image_id, n_missing = int(fields["image_id"][0]), int(fields["n_missing_packets"][0])
        workspace, sizes = self._workspace, self.config.sizes
        if image_id == INVALID_IMAGE_ID or image_id > MAX_IMAGE_ID or workspace is None:
            self.counters["malformed"] += 1
            return
        images = self._image_ring(source) if self._is_heard() else None
        if images is None:
            self.counters["unannounced_frames"] += 1
            return
        reader = self._frame_ring(source)
        if reader is None or not reader.copy(image_id, self._frame, self._mask):
            self.counters["overwritten"] += 1
            return
        epoch = images.claim(image_id)
        if epoch is None:
            self.counters["late"] += 1
            return
        slot = images.slot(image_id)[: sizes.slot_bytes]
        self.counters["invalid_pixels"] += workspace.place_frame(source, self._frame, slot)
        place = self._place_of(self._rows[source])
        images.note_missing(image_id, place * self._mask.size, self._mask)
        fields["mark"], fields["epoch"] = HEADER_MARK, epoch
        if n_missing:
            self.counters["incomplete_frames"] += 1
            self.counters["missing_packets"] += min(n_missing, self.detector.layout.packets_per_frame)
        if self._announce(bytes(header)):
            self.counters["frames"] += 1
            self.counters["bytes"] += self._frame.size
        else:
            self.counters["unannounced_frames"] += 1

    def _announce(self, header: bytes) -> bool:
        try:
            if self._out is not None:
                self._out.send(header, zmq.DONTWAIT)
        except zmq.Again:  # the synchronizer went just now
            return False
        return self._out is not None

    def _is_heard(self) -> bool:
        """Return whether a synchronizer takes headers; one that is slow is waited for a moment."""
        wait_ms = int(TURN_S * 1000) if self._heard else 0
        self._heard = self._out is not None and bool(self._out.poll(wait_ms, zmq.POLLOUT))
        return self._heard

    def _frame_ring(self, source: int) -> RingReader | None:
        ring = self._frames.get(source)
        if ring is not None and ring.retired:
            ring.close()
            ring = None
        if ring is None:
            name = self.config.segment(str(self.modules[source]))
            try:
                ring = RingReader.attach(
                    name, MIN_SLOTS, self.detector.layout.frame_bytes, self.config.ring_memory
                )
            except FileNotFoundError:
                return None
            self._frames[source] = ring
        return ring

    def _image_ring(self, source: int) -> RingWriter | None:
        """Return the image ring; each source has a view of its own, with its own sequence of ids.

        None where a synchronizer of ours, which alone makes its ring, is just closing it.
        """
        ring = self._images.get(source)
        if ring is not None and not ring.retired:
            return ring
        if ring is not None:
            self._images.pop(source).close()
        sizes, name = self.config.sizes, self.config.segment("image")
        shape = name, sizes.n_slots, sizes.slot_bytes, self.config.ring_memory
        try:
            ring = RingWriter.attach(*shape)
        except FileNotFoundError:
            if self._seen_owner:
                return None
            ring = RingWriter.attach_or_create(*shape)  # as existing programs do
        self._seen_owner |= ring.has_index
        self._images[source] = ring
        return ring

    def _close(self) -> None:
        for handle in (*self._in, *([self._out] if self._out is not None else [])):
            channels.close(handle)
        for ring in (*self._frames.values(), *self._images.values()):
            ring.close()
        self._in, self._out, self._frames, self._images = [], None, {}, {}
        self._workspace = None
