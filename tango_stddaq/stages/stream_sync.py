"""Synchronizers of a second server: join what stream receivers stored to images; own the image ring."""

import time
from typing import ClassVar, Final

import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.detectors.registry import mask_words_of
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.persistent import PersistentConnection
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.processing.gather import Gathered, Gatherer
from tango_stddaq.processing.parts import parts_of
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

_MESSAGES_PER_TURN: Final = 256
_ORDER: Final = -1
"""The connection that brings the metadata stream, beside those of the senders."""


class ForwardSync(Stage):
    """What both synchronizers do: PULL from `-sync`, gather, publish on `-image`.

    Parameters
    ----------
    idle_timeout_s
        After so long without a message, incomplete images go on as they are.
    """

    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images published, complete or not."),
        Counter("complete", "images", "Images published with all their pixels."),
        Counter("incomplete", "images", "Images published with packets or parts missing.", loss=True),
        Counter("missing_parts", "parts", "Parts that never came.", loss=True),
        Counter("lost", "images", "Images not published: their pixels are not all known.", loss=True),
        Counter("skipped_ids", "images", "Images of which nothing came: gaps in ids.", loss=True),
        Counter("overwritten", "images", "Images whose slot was reused too early.", loss=True),
        Counter("unordered", "images", "Images published that the metadata stream did not name."),
        Counter("messages", "messages", "Messages received."),
        Counter("malformed", "messages", "Messages dropped: of no image or part of ours.", loss=True),
        Counter("late", "messages", "Parts dropped: their image was published.", loss=True),
        Counter("duplicate", "messages", "Parts dropped: had come before."),
        Counter("restarts", "restarts", "Times that image ids started again."),
        Counter("queue", "images", "Images waiting now."),
    )

    def __init__(self, config: DaqConfig, label: str = "", idle_timeout_s: float = 1.0) -> None:
        super().__init__(config, label)
        self.idle_timeout_s = idle_timeout_s
        self._gatherer = self._new_gatherer()
        self._ring: RingOwner | None = None
        self._out: zmq.Socket[bytes] | None = None
        self._in: dict[zmq.Socket[bytes], bool] = {}
        self._poller = zmq.Poller()
        self._last_message_s = 0.0

    # -- what a synchronizer implements ------------------------------------------------------------

    def _needed(self, image_id: int) -> tuple[int, ...]:
        raise NotImplementedError

    def _connection(self, message: pb.ImageMetadata) -> int | None:
        """Return who stored it; None if the message does not say. ValueError if it cannot be."""
        raise NotImplementedError

    def _finish(self, ring: RingOwner, image: Gathered[pb.ImageMetadata]) -> pb.ImageMetadata | None:
        """Make an image that has pieces missing one that can be published; None if it is lost."""
        raise NotImplementedError

    # -- the stage ---------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether the configuration has anything to do for it."""
        raise NotImplementedError

    def _new_gatherer(self) -> Gatherer[pb.ImageMetadata]:
        # Waiting images must still be in the ring when their turn comes.
        most = max(1, self.config.sizes.n_slots * 3 // 4)
        return Gatherer(self._needed, min(self.config.module_sync_queue_size, most), most)

    def _open(self) -> None:
        config = self.config
        self._gatherer = self._new_gatherer()
        if not self.active:
            return
        name = config.detector_name
        self._poller = zmq.Poller()
        self._out = channels.bind(zmq.PUB, channels.ipc_address(name, "image"))
        # The ring before who writes into it: a receiver that finds none would make one.
        self._ring = RingOwner.of_images(config, "image", mask_words_of(config))
        self._listen(channels.bind(zmq.PULL, channels.ipc_address(name, "sync")), False)

    def _listen(self, handle: "zmq.Socket[bytes]", is_order: bool) -> None:
        self._in[handle] = is_order
        self._poller.register(handle, zmq.POLLIN)

    def _turn(self) -> None:
        if not self._in:
            self._stop.wait(TURN_S)
            return
        ready = dict(self._poller.poll(int(TURN_S * 1000)))
        now = time.monotonic()
        if ready:
            self._last_message_s = now
        elif now - self._last_message_s > self.idle_timeout_s:
            self._publish(self._gatherer.flush())
        for handle, is_order in self._in.items():
            for _ in range(_MESSAGES_PER_TURN if handle in ready else 0):
                try:
                    data = handle.recv(zmq.DONTWAIT)
                except zmq.Again:
                    break
                self._take(data, is_order, now)

    def _take(self, data: bytes, is_order: bool, now: float) -> None:
        self.counters["messages"] += 1
        try:
            if len(data) > image_metadata.MAX_MESSAGE_BYTES:
                raise ValueError(f"message of {len(data)} bytes")
            message = image_metadata.parse(data)
            if message.image_id >= 2**63 or message.size > self.config.sizes.slot_bytes:
                raise ValueError(f"image {message.image_id} of {message.size} bytes")
            connection = _ORDER if is_order else self._connection(message)
        except ValueError:
            self.counters["malformed"] += 1
            return
        if connection is None and self._ring is not None:
            self._ring.keep()  # an existing program writes into it, and outlives us
        self._publish(self._gatherer.add(message.image_id, connection, message, now))

    def _publish(self, images: list[Gathered[pb.ImageMetadata]]) -> None:
        ring, out, counters = self._ring, self._out, self.counters
        if ring is None or out is None:
            return
        for image in images:
            message = next(iter(image.items.values()), image.anonymous)
            if not image.complete:
                message = self._finish(ring, image)
            if message is None:
                counters["lost"] += 1
                continue
            # A receiver may know of bytes that were never sent.
            message.status = max([message.status, *(part.status for part in image.items.values())])
            message.ClearField("forwarded_part")
            is_there = ring.publish(image.image_id)
            out.send(message.SerializeToString())
            counters["images"] += 1
            if not is_there:
                counters["overwritten"] += 1
            elif message.status == pb.good_image:
                counters["complete"] += 1
            else:
                counters["incomplete"] += 1

    def _tick(self) -> None:
        gatherer = self._gatherer
        self.counters["late"] = gatherer.n_late
        self.counters["duplicate"] = gatherer.n_duplicate
        self.counters["restarts"] = gatherer.n_restarts
        self.counters["queue"] = gatherer.n_waiting
        if self.config.detector_type not in CAMERAS:  # whose ids have gaps by themselves
            self.counters["skipped_ids"] = gatherer.n_skipped

    def _reset(self) -> None:
        self._publish(self._gatherer.flush())
        self._gatherer.reset_counts()

    def _close(self) -> None:
        try:
            self._publish(self._gatherer.flush())
            self._tick()
        finally:  # also if it was publishing that failed
            for handle in self._in:
                channels.close(handle)
            if self._out is not None:
                channels.close(self._out)
            if self._ring is not None:
                self._ring.close()
            self._in, self._out, self._ring = {}, None, None


class StreamSync(ForwardSync):
    """Joins the parts of images. An image that misses some goes on with zeros and `missing_packets`."""

    name = "sync-stream"

    def __init__(self, config: DaqConfig, idle_timeout_s: float = 1.0) -> None:
        self._parts = () if config.sender_sends_full_images else parts_of(config)
        self._all = tuple(part.number for part in self._parts if part.n_bytes)
        super().__init__(config, idle_timeout_s=idle_timeout_s)

    @property
    def active(self) -> bool:
        """Only if images come in parts."""
        return not self.config.sender_sends_full_images

    def _needed(self, image_id: int) -> tuple[int, ...]:
        return self._all

    def _connection(self, message: pb.ImageMetadata) -> int | None:
        if not message.forwarded_part:
            return None
        if message.forwarded_part - 1 not in self._all:
            raise ValueError(f"part {message.forwarded_part - 1}")
        return message.forwarded_part - 1

    def _finish(self, ring: RingOwner, image: Gathered[pb.ImageMetadata]) -> pb.ImageMetadata | None:
        self.counters["missing_parts"] += len(image.missing) - image.n_anonymous
        message = next(iter(image.items.values()), None)
        # Where a program does not say which part it stored, an older image's pixels cannot be cleared.
        if image.n_anonymous or message is None or ring.is_reused(image.image_id):
            return None
        slot = ring.slot(image.image_id)
        for number in image.missing:
            part = self._parts[number]
            slot[part.offset : part.end] = 0
        message.status = max(message.status, pb.missing_packets)
        message.n_missing_packets = max(message.n_missing_packets, 1)  # how many, the parts do not say
        return message


class MetadataSync(ForwardSync):
    """Orders whole images by a metadata stream of the first server.

    Parameters
    ----------
    address
        `tcp://HOST:PORT` of the metadata stream.
    """

    name = "sync-metadata"

    def __init__(self, config: DaqConfig, address: str, idle_timeout_s: float = 1.0) -> None:
        if not address.startswith("tcp://"):
            raise ConfigError(f"metadata stream's address {address!r}: allowed is tcp://HOST:PORT")
        self.address = address
        self._order: PersistentConnection | None = None
        super().__init__(config, idle_timeout_s=idle_timeout_s)

    @property
    def active(self) -> bool:
        """Only if images come whole."""
        return self.config.sender_sends_full_images

    @property
    def waits_for(self) -> str:
        """The metadata stream, while it is not connected."""
        order = self._order
        return f"the metadata at {self.address}" if order is not None and not order.is_connected else ""

    def _open(self) -> None:
        super()._open()
        if self.active:
            options: dict[int, int] = {zmq.MAXMSGSIZE: channels.MAX_MESSAGE_BYTES}
            self._order = PersistentConnection(zmq.SUB, self.address, channels.PIPELINE_HWM, options)
            self._listen(self._order.handle, True)

    def _tick(self) -> None:
        super()._tick()
        if self._order is None:
            return
        old = self._order.handle
        if self._order.look():
            self._in.pop(old)
            self._poller.unregister(old)
            self._listen(self._order.handle, True)

    def _close(self) -> None:
        super()._close()
        if self._order is not None:
            self._order.close()
        self._order = None

    def _needed(self, image_id: int) -> tuple[int, ...]:
        return (_ORDER, image_id % self.config.max_number_of_forwarders_spawned)

    def _connection(self, message: pb.ImageMetadata) -> int | None:
        return message.image_id % self.config.max_number_of_forwarders_spawned

    def _finish(self, ring: RingOwner, image: Gathered[pb.ImageMetadata]) -> pb.ImageMetadata | None:
        if image.missing != {_ORDER}:
            return None  # it was announced, and its pixels did not come
        self.counters["unordered"] += 1
        return next(iter(image.items.values()))
