"""Stream receiver: one part of every image, or every n-th image, from another server into our ring."""

import time
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.persistent import PersistentConnection
from tango_stddaq.io.ring import RingWriter
from tango_stddaq.model import Dtype
from tango_stddaq.processing import slots
from tango_stddaq.processing.gather import IDLE_S
from tango_stddaq.processing.parts import Part, carries, part_of
from tango_stddaq.processing.slots import MAX_IMAGE_ID
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stages.sync_link import SyncLink
from tango_stddaq.stats import Counter

_MESSAGES_PER_TURN: Final = 64
_QUEUE_BYTES: Final = 2**30
_MAX_HWM: Final = 1000


class StreamReceive(Stage):
    """Writes what a sender sends to our own ring and tells the synchronizer on `-sync`.

    Parameters
    ----------
    address
        `tcp://HOST:PORT` that the sender binds.
    part
        Which of `max_number_of_forwarders_spawned`, from 0.

    Raises
    ------
    ConfigError
        If address or part is not one.

    Attributes
    ----------
    last_fault
        Why a message was dropped the last time.
    """

    name = "stream-receive"
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images of which this part was stored and announced."),
        Counter("bytes", "bytes", "Pixel bytes stored."),
        Counter("connections", "times", "Times that the sender was connected."),
        Counter("disconnections", "times", "Times that a connection ended."),
        Counter("short_parts", "images", "Parts that came without their rest.", loss=True),
        Counter("late", "images", "Parts dropped: their image was published.", loss=True),
        Counter("duplicate", "images", "Parts dropped: had come before."),
        Counter("unannounced", "images", "Parts lost: no synchronizer took them.", loss=True),
        Counter("restarts", "restarts", "Times that image ids started again."),
        Counter("malformed", "messages", "Messages dropped: unreadable.", loss=True),
        Counter("refused_size", "messages", "Messages dropped: not of this part's size.", loss=True),
        Counter("foreign", "messages", "Images dropped: those of another sender.", loss=True),
    )  # fmt: skip

    def __init__(self, config: DaqConfig, address: str, part: int) -> None:
        super().__init__(config, str(part))
        if not address.startswith("tcp://"):
            raise ConfigError(f"sender's address {address!r}: allowed is tcp://HOST:PORT")
        self.address = address
        self.part: Part | None = part_of(config, part)
        self.last_fault = ""
        self._number = part
        self._in: PersistentConnection | None = None
        self._sync: SyncLink | None = None
        self._ring: RingWriter | None = None
        self._last = -1
        self._last_s = 0.0

    @property
    def waits_for(self) -> str:
        """The sender, while it is not connected."""
        source = self._in
        return f"the sender at {self.address}" if source is not None and not source.is_connected else ""

    def _open(self) -> None:
        slots.prepare()
        self._last = -1
        if self.part is None:
            return
        self._sync = SyncLink(self.config)
        # Large ones take seconds to map, and what does not fit shows now.
        self._ring = self._sync.ring_there()
        # Larger ones make ZeroMQ end the connection: nothing of them is stored anywhere.
        options: dict[int, int] = {zmq.MAXMSGSIZE: self.part.n_bytes + channels.MAX_MESSAGE_BYTES}
        hwm = max(2, min(_MAX_HWM, _QUEUE_BYTES // self.part.n_bytes))
        self._in = PersistentConnection(zmq.SUB, self.address, hwm, options)

    def _turn(self) -> None:
        if self._in is None:
            self._stop.wait(TURN_S)
            return
        source = self._in.handle
        if not source.poll(int(TURN_S * 1000)):
            return
        for _ in range(_MESSAGES_PER_TURN):
            try:
                frames = source.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                break
            self._take([frame.buffer for frame in frames])

    def _take(self, frames: Sequence[memoryview]) -> None:
        if len(frames) != 2 or len(frames[0]) > image_metadata.MAX_MESSAGE_BYTES:
            self._drop("malformed", f"message of {len(frames)} frames, {len(frames[0])} bytes the first")
            return
        try:
            message = image_metadata.parse(bytes(frames[0]))
        except ValueError as error:
            self._drop("malformed", str(error))
            return
        if message.image_id > MAX_IMAGE_ID:
            self._drop("malformed", f"image id {message.image_id} is above {MAX_IMAGE_ID}")
        elif not carries(self.config, self._number, message.image_id):
            self._drop("foreign", f"image {message.image_id} is not one of sender {self._number}")
        elif (reason := self._does_not_fit(message, len(frames[1]))) is not None:
            self._drop("refused_size", f"image {message.image_id}: {reason}")
        else:
            self.counters[self._store(message, frames[1])] += 1

    def _does_not_fit(self, message: pb.ImageMetadata, n_bytes: int) -> str | None:
        part, sizes = self.part, self.config.sizes
        if part is None or message.size > sizes.slot_bytes:
            return f"{message.size} bytes do not fit a slot of {sizes.slot_bytes}"
        if message.compression == pb.none:
            pixel_bytes = Dtype(message.dtype).numpy.itemsize if message.dtype else 0
            if message.height * message.width * pixel_bytes != message.size:
                return f"{message.size} bytes for {message.height} x {message.width} pixels"
        if self.config.sender_sends_full_images:
            allowed: tuple[int, ...] = (message.size,)
        else:
            allowed = part.n_bytes, part.existing_n_bytes
        if n_bytes not in allowed:
            return f"{n_bytes} bytes came, part {part.number} has {allowed[0]}; do both use one file?"
        return None

    def _store(self, message: pb.ImageMetadata, data: memoryview) -> str:
        """Write a part to the ring and announce it; returns the counter that it belongs to."""
        part, sync, image_id = self.part, self._sync, message.image_id
        if part is None or sync is None or not sync.is_heard():
            return "unannounced"
        ring = self._ring = sync.ring(self._ring)
        if ring is None:
            return "unannounced"
        now = time.monotonic()
        if image_id == self._last and now - self._last_s < IDLE_S:
            return "duplicate"
        self.counters["restarts"] += image_id < self._last
        self._last, self._last_s = image_id, now
        if ring.claim(image_id) is None:
            return "late"
        place = ring.slot(image_id)[part.offset : part.end]
        place[: len(data)] = np.frombuffer(data, np.uint8)
        if not self.config.sender_sends_full_images:
            message.forwarded_part = part.number + 1
            if len(data) < part.n_bytes:  # the rest was not sent: nobody knows these pixels
                place[len(data) :] = 0
                self.counters["short_parts"] += 1
                message.status = pb.missing_packets
        if not sync.send(message.SerializeToString()):
            return "unannounced"
        self.counters["bytes"] += len(data)
        return "images"

    def _drop(self, counter: str, reason: str) -> None:
        self.counters[counter] += 1
        self.last_fault = reason
        self.say_seldom(f"message dropped: {reason}")

    def _tick(self) -> None:
        if self._in is not None:
            self._in.look()
            self.counters["connections"] = self._in.n_connections
            self.counters["disconnections"] = self._in.n_disconnections

    def _reset(self) -> None:
        self.last_fault = ""
        if self._in is not None:
            self._in.n_connections = self._in.n_disconnections = 0

    def _close(self) -> None:
        if self._in is not None:
            self._in.close()
        if self._sync is not None:
            self._sync.close()
        if self._ring is not None:
            self._ring.close()
        self._in = self._sync = self._ring = None
