"""What the receivers of cameras share: parallel connections in, order, ring and metadata out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

import numpy as np
import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import INVALID_IMAGE_ID, DetectorMetadata, Dtype, Image
from tango_stddaq.processing.ordering import Reorderer
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

MAX_CONNECTIONS: Final = 64
_QUEUE_BYTES: Final = 2**30
"""Images that may wait in front of us, over all connections; the camera's program keeps the rest."""
_WINDOW_BYTES: Final = 2**28
_MAX_WINDOW: Final = 64
_ROUNDS_PER_TURN: Final = 16
_LAG_S: Final = 0.001


class SocketType(StrEnum):
    """How the connections receive."""

    PULL = "pull"
    """The source hands its images out in turn to all connections."""
    SUB = "sub"
    """The source sends every image to every connection."""


@dataclass(frozen=True, slots=True)
class CameraImage:
    """An image as a message announces it.

    Attributes
    ----------
    shape
        (height, width).
    dtype
        As sent; its byte order does not matter here.
    write_to
        Writes the pixels, little endian, to an array of `n_bytes` uint8. Raises ValueError if they are
        not what the message said.
    """

    image_id: int
    shape: tuple[int, int]
    dtype: np.dtype
    write_to: Callable[[np.ndarray], None]
    detector: DetectorMetadata | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the pixels, uncompressed."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


class CameraReceiver(Stage):
    """Receives whole images from a camera's program; owner of the image ring.

    A subclass reads its messages: see `_decode`. Messages wait undecoded for their turn, so that the
    ring holds no image that was not announced.

    Parameters
    ----------
    address
        `tcp://HOST:PORT` that the source binds.
    n_connections
        Parallel connections. With `sub` one is opened: more would receive every image again.
    socket_type
        `pull` or `sub`.
    reorder_timeout_s
        How long an image waits for a connection that may have a lower id but delivers nothing.

    Attributes
    ----------
    last_fault
        Why a message was dropped the last time.
    """

    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images published."),
        Counter("bytes", "bytes", "Pixel bytes published, uncompressed."),
        Counter("smaller", "images", "Images smaller than configured (ROI) among them."),
        Counter("messages", "messages", "Messages received."),
        Counter("empty", "messages", "Messages without an image, as a source may send them."),
        Counter("malformed_headers", "messages", "Messages dropped: unreadable.", loss=True),
        Counter("malformed_pixels", "images", "Images dropped: pixels damaged.", loss=True),
        Counter("refused_size", "images", "Images dropped: larger than configured.", loss=True),
        Counter("refused_dtype", "images", "Images dropped: not of the configured type.", loss=True),
        Counter("late", "images", "Images dropped: a newer one was published.", loss=True),
        Counter("duplicate", "images", "Images dropped: their id had come before."),
        Counter("restarts", "restarts", "Times that image ids started again."),
        Counter("queue", "images", "Images waiting for lower ids now."),
    )

    def __init__(
        self,
        config: DaqConfig,
        address: str,
        n_connections: int = 4,
        socket_type: str = "pull",
        reorder_timeout_s: float = 0.5,
    ) -> None:
        super().__init__(config, address)
        if not address.startswith("tcp://"):
            raise ConfigError(f"camera address {address!r}: allowed is tcp://HOST:PORT")
        if not 1 <= n_connections <= MAX_CONNECTIONS:
            raise ConfigError(f"connections {n_connections}: allowed are 1 to {MAX_CONNECTIONS}")
        if socket_type not in tuple(SocketType):
            raise ConfigError(f"socket type {socket_type!r}: allowed are {', '.join(SocketType)}")
        self.address = address
        self.socket_type = SocketType(socket_type)
        self.n_connections = n_connections if self.socket_type is SocketType.PULL else 1
        self.last_fault = ""
        self._reorder_timeout_s = reorder_timeout_s
        self._order = self._new_order()
        self._ring: RingOwner | None = None
        self._out: zmq.Socket[bytes] | None = None
        self._in: list[zmq.Socket[bytes]] = []
        self._poller = zmq.Poller()

    # -- what a receiver implements ----------------------------------------------------------------

    def _decode(self, frames: Sequence[memoryview]) -> CameraImage | None:
        """Read a message but not its pixels; None if it has no image.

        Raises
        ------
        ValueError
            If it is malformed.
        """
        raise NotImplementedError

    # -- the stage ---------------------------------------------------------------------------------

    def _new_order(self) -> Reorderer[CameraImage]:
        images = _WINDOW_BYTES // self.config.sizes.slot_bytes
        window = max(2 * self.n_connections, min(images, _MAX_WINDOW))
        return Reorderer(self.n_connections, window, self._reorder_timeout_s)

    def _open(self) -> None:
        name, sizes = self.config.detector_name, self.config.sizes
        self._out = channels.bind(zmq.PUB, channels.ipc_address(name, "image"))
        self._ring = RingOwner.of_images(self.config, "image")
        self._order = self._new_order()
        self._poller = zmq.Poller()
        hwm = _QUEUE_BYTES // (sizes.slot_bytes * self.n_connections)
        kind = zmq.PULL if self.socket_type is SocketType.PULL else zmq.SUB
        for _ in range(self.n_connections):
            handle = channels.connect(kind, self.address, max(2, min(hwm, channels.PIPELINE_HWM)))
            self._in.append(handle)
            self._poller.register(handle, zmq.POLLIN)

    def _turn(self) -> None:
        wait_ms = int(TURN_S * 1000)
        for _ in range(_ROUNDS_PER_TURN):
            ready = dict(self._poller.poll(wait_ms))
            if not ready:
                break
            wanted = [c for c, h in enumerate(self._in) if h in ready and self._order.wants(c)]
            if not wanted:  # the others wait in ZeroMQ until the one that lags behind has delivered
                self._stop.wait(_LAG_S)
                break
            # One of each, so that the connections stay in step.
            for connection in wanted:
                self._receive(connection, self._in[connection])
            wait_ms = 0
        self._publish(self._order.expire(time.monotonic()))

    def _receive(self, connection: int, handle: "zmq.Socket[bytes]") -> None:
        try:
            frames = handle.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return
        self.counters["messages"] += 1
        try:
            image = self._decode([frame.buffer for frame in frames])
        except ValueError as error:
            self._drop("malformed_headers", str(error))
            return
        if image is None:
            self.counters["empty"] += 1
        elif self._accepts(image):
            now = time.monotonic()
            self._publish(self._order.add(connection, image.image_id, image, now))

    def _accepts(self, image: CameraImage) -> bool:
        sizes = self.config.sizes
        if image.image_id == INVALID_IMAGE_ID:
            self._drop("malformed_headers", f"image id {image.image_id} is the invalid one")
        elif Dtype.from_numpy(image.dtype) != sizes.dtype:
            self._drop(
                "refused_dtype",
                f"image {image.image_id}: {image.dtype.name}, configured is {sizes.dtype.name.lower()}",
            )
        elif image.shape[0] > sizes.height or image.shape[1] > sizes.width:
            self._drop(
                "refused_size",
                f"image {image.image_id}: {image.shape[0]} x {image.shape[1]} pixels, configured are at "
                f"most {sizes.height} x {sizes.width}",
            )
        else:
            return True
        return False

    def _publish(self, released: list[tuple[int, CameraImage]]) -> None:
        ring, out, sizes = self._ring, self._out, self.config.sizes
        if ring is None or out is None:
            return
        for image_id, image in released:
            slot = ring.begin(image_id)
            try:
                image.write_to(slot[: image.n_bytes])
            except ValueError as error:  # the slot stays without an image: its pixels are half written
                self._drop("malformed_pixels", f"image {image_id}: {error}")
                continue
            ring.publish(image_id)
            announced = Image(
                image_id,
                *image.shape,
                image.n_bytes,
                sizes.dtype,
                detector=image.detector,
            )
            out.send(image_metadata.encode(announced))
            self.counters["images"] += 1
            self.counters["bytes"] += image.n_bytes
            self.counters["smaller"] += image.shape != sizes.shape

    def _drop(self, counter: str, reason: str) -> None:
        self.counters[counter] += 1
        self.last_fault = reason
        self.say_seldom(f"message dropped: {reason}")

    def _tick(self) -> None:
        order = self._order
        self.counters["late"] = order.n_late
        self.counters["duplicate"] = order.n_duplicate
        self.counters["restarts"] = order.n_restarts
        self.counters["queue"] = order.n_waiting

    def _reset(self) -> None:
        self.last_fault = ""
        order = self._order
        order.n_late = order.n_duplicate = order.n_restarts = 0

    def _close(self) -> None:
        try:
            self._publish(self._order.flush())
            self._tick()
        finally:  # also if it was publishing that failed
            for handle in self._in:
                channels.close(handle)
            if self._out is not None:
                channels.close(self._out)
            if self._ring is not None:
                self._ring.close()
            self._in, self._out, self._ring = [], None, None
