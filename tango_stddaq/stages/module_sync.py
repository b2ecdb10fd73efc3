"""Module synchronizer: joins the frames of all modules to images; owner of the image ring."""

import time
from typing import ClassVar, Final

import numpy as np
import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import HEADER_MARK
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.io.sync_loop import SyncLoop
from tango_stddaq.processing.metadata_template import MetadataTemplate
from tango_stddaq.processing.packet_mask import full_mask, to_packets
from tango_stddaq.processing.synchronize import Synchronizer
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

_PATIENCE_NS: Final = 50_000_000
_MAX_WAITING: Final = 4096


class ModuleSync(Stage):
    """Receives frame headers on `-sync`, publishes image metadata on `-image`.

    Parameters
    ----------
    idle_timeout_s
        After so long without a frame, incomplete images go on as they are.

    Attributes
    ----------
    last_incomplete_id
        Image id of the last image that went on with packets missing; -1 before the first.
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
        self.last_incomplete_id = -1
        self._n_packets = self.detector.layout.packets_per_frame
        self._mask_words = self.detector.layout.mask_words
        self._last_mask = np.zeros(len(self.detector.modules) * self._mask_words, np.uint64)
        self._synchronizer = self._new_synchronizer()
        self._template = MetadataTemplate(
            config.sizes, self.detector.metadata, self.detector.frame_header
        )
        self._ring: RingOwner | None = None
        self._loop: SyncLoop | None = None
        self._in: zmq.Socket[bytes] | None = None
        self._out: zmq.Socket[bytes] | None = None
        self._last_frame_s = 0.0

    @property
    def last_missing_packets(self) -> np.ndarray:
        """(n_modules, packets_per_frame) bool: what `last_incomplete_id` is missing."""
        return to_packets(self._last_mask, len(self.detector.modules), self._n_packets)

    def _new_synchronizer(self) -> Synchronizer:
        # What waits must go on before its slot is taken.
        most = self.config.sizes.n_slots // 2
        return Synchronizer(
            self.detector.modules,
            min(self.config.module_sync_queue_size, most),
            self._n_packets,
            _PATIENCE_NS,
            min(most, _MAX_WAITING),
        )

    def _open(self) -> None:
        name = self.config.detector_name
        self._synchronizer = self._new_synchronizer()
        SyncLoop(self._synchronizer, self._template).prepare()  # while nothing is made yet
        # The ring first: what is announced from now on lies in it.
        self._ring = RingOwner.of_images(self.config, "image", self._last_mask.size)
        self._in = channels.bind(zmq.PULL, channels.ipc_address(name, "sync"))
        self._out = channels.bind(zmq.PUB, channels.ipc_address(name, "image"))
        self._loop = SyncLoop(self._synchronizer, self._template, self._ring, self._in, self._out)

    def _turn(self) -> None:
        loop = self._loop
        if loop is None:
            return
        special = loop.turn(TURN_S)
        n_frames = self._count(loop)
        now = time.monotonic()
        if special is not None:
            headers, joined = special
            is_unmarked = headers["mark"] != HEADER_MARK
            if is_unmarked.any() and self._ring is not None:
                self._ring.keep()  # an existing program writes into it, and outlives us
                is_joined = self._synchronizer.is_joined[: headers.size]
                self._forget_masks(self._ring, headers[is_unmarked & is_joined])
            self._publish(joined)
        if n_frames:
            self._last_frame_s = now
        elif now - self._last_frame_s > self.idle_timeout_s:
            self._publish(self._synchronizer.flush())
            self._synchronizer.idle()

    def _forget_masks(self, ring: RingOwner, headers: np.ndarray) -> None:
        """Clear the masks of frames of existing programs: they only say how many packets are missing.

        Of frames that were joined: the slot of another one may be that of another image by now.
        """
        nothing = np.zeros(self._mask_words, np.uint64)
        for image_id, module in zip(headers["image_id"].tolist(), headers["module_id"], strict=True):
            if module in self.detector.modules:
                first = self.detector.modules.index(module) * self._mask_words
                ring.note_missing(image_id, first, nothing)

    def _publish(self, joined: np.ndarray) -> None:
        """Send images on that modules may be missing of."""
        ring, loop = self._ring, self._loop
        if ring is None or loop is None or not joined.size:
            return
        for at in np.flatnonzero(joined["n_missing_modules"]).tolist():
            image_id = int(joined["image_id"][at])
            if not ring.is_reused(image_id, int(joined["epoch"][at])):
                for module in self._synchronizer.missing_modules(at):
                    self._fill(ring, image_id, module)
        loop.publish(joined.size)
        self._count(loop)

    def _count(self, loop: SyncLoop) -> int:
        """Take over what the loop counted; returns how many frames it took.

        Each image is in one bin. Consumers find out by themselves that a slot is taken.
        """
        found, counters = loop.counts, self.counters
        loop.forget_counts()
        for name in ("frames", "malformed", "images", "incomplete", "missing_modules"):
            counters[name] += found[name]
        counters["overwritten"] += found["images"] - found["published"]
        counters["complete"] += found["published"] - found["incomplete"]
        if found["incomplete"] and self._ring is not None:
            self._note_incomplete(self._ring, found["last_incomplete"])
        return found["frames"]

    def _note_incomplete(self, ring: RingOwner, image_id: int) -> None:
        mask = ring.missing_packets(image_id)
        if mask is not None:
            self._last_mask = mask.copy()
        self.last_incomplete_id = image_id

    def _fill(self, ring: RingOwner, image_id: int, module_index: int) -> None:
        """Clear the pixels of a module that never came: an older image lies there."""
        self.detector.placement.fill(ring.slot(image_id), module_index)
        ring.note_missing(image_id, module_index * self._mask_words, full_mask(self._n_packets))

    def _tick(self) -> None:
        synchronizer = self._synchronizer
        self.counters["late"] = synchronizer.n_late
        self.counters["duplicate"] = synchronizer.n_duplicate
        self.counters["foreign"] = synchronizer.n_foreign
        self.counters["restarts"] = synchronizer.n_restarts
        self.counters["skipped_ids"] = synchronizer.n_skipped
        self.counters["queue"] = synchronizer.n_waiting

    def _reset(self) -> None:
        self._publish(self._synchronizer.flush())
        self._synchronizer.reset_counts()
        self.last_incomplete_id = -1

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
            self._in = self._out = self._ring = self._loop = None
