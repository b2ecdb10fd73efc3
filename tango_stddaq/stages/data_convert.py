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
from tango_stddaq.stages.sync_link import SyncLink
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
        self._sync: SyncLink | None = None
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
        self._sync = SyncLink(self.config)

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
        workspace, sizes, sync = self._workspace, self.config.sizes, self._sync
        if image_id == INVALID_IMAGE_ID or image_id > MAX_IMAGE_ID or workspace is None or sync is None:
            self.counters["malformed"] += 1
            return
        images = None
        if (
            sync.is_heard()
        ):  # each source has a view of the ring of its own, with its own sequence of ids
            images = sync.ring(self._images.pop(source, None))
        if images is None:
            self.counters["unannounced_frames"] += 1
            return
        self._images[source] = images
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
        if sync.send(bytes(header)):
            self.counters["frames"] += 1
            self.counters["bytes"] += self._frame.size
        else:
            self.counters["unannounced_frames"] += 1

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

    def _close(self) -> None:
        for handle in self._in:
            channels.close(handle)
        if self._sync is not None:
            self._sync.close()
        for ring in (*self._frames.values(), *self._images.values()):
            ring.close()
        self._in, self._sync, self._frames, self._images = [], None, {}, {}
        self._workspace = None
