"""Live stream: sends images of a ring to any number of clients over TCP, as array-1.0 or bsread."""

import logging
import time
from typing import ClassVar, Final

import numpy as np

from tango_stddaq.codecs.bsread_compression import BsreadCompression, compress
from tango_stddaq.config import DaqConfig
from tango_stddaq.config_entries import LiveStreamConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.stream_socket import StreamSocket
from tango_stddaq.model import Compression, Image
from tango_stddaq.processing.preview import decimate
from tango_stddaq.processing.selection import selector
from tango_stddaq.processing.stream_format import StreamProtocol, can_send, stream_format
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

PREVIEW_PERIOD_S: Final = 0.2
_MAX_PORT: Final = 65_535
_IMAGES_PER_TURN: Final = 32


class LiveStream(Stage):
    """One stream of one address.

    An image is copied out of the ring and the copy checked before it is sent: what a client receives
    is never torn. A slow client loses images by itself, behind a queue of `StreamSocket.hwm` images.

    Parameters
    ----------
    address
        A key of `live_stream_configs`, or any `tcp://HOST:PORT` to forward every image.
    metadata_suffix, image_suffix
        Which stream announces the images and which ring holds their pixels.
    protocol
        What clients speak: `array-1.0` or `bsread`.
    compression
        `none` or `bitshuffle_lz4`: how bsread pixels are sent. Images that lie compressed in the ring
        (suffix `h5bitshuffle-lz4`) are sent as they are.
    rule
        Which images are sent, in place of what `live_stream_configs` says.

    Raises
    ------
    ConfigError
        If one of these is not possible.
    """

    name = "live-stream"
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images sent."),
        Counter("bytes", "bytes", "Pixel bytes sent, once for all clients."),
        Counter("skipped", "images", "Images left out by the stream's rule."),
        Counter("n_active_connections", "clients", "Clients that have subscribed now."),
        Counter("zmq_fails", "images", "Images that slow clients did not get, each client's added up."),
        Counter("disconnected", "clients", "Slow clients disconnected: queues took too much memory."),
        Counter("overwritten", "images", "Images lost: overwritten before they were read.", loss=True),
        Counter("refused", "images", "Images that cannot be sent: compressed, or too large.", loss=True),
        Counter("no_buffer", "images", "Images not sent: slow clients held all the memory.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not image metadata.", loss=True),
    )  # fmt: skip

    def __init__(
        self,
        config: DaqConfig,
        address: str,
        metadata_suffix: str = "image",
        image_suffix: str = "image",
        protocol: str = StreamProtocol.ARRAY10,
        compression: str = BsreadCompression.NONE,
        rule: LiveStreamConfig | None = None,
    ) -> None:
        super().__init__(config, address)
        check_address(address, config)
        self.address = address
        self.rule = rule or config.live_stream_configs.get(address, LiveStreamConfig(type="forward"))
        self.protocol, self.compression = _choice(protocol, compression)
        self._suffixes = metadata_suffix, image_suffix
        self._metadata: MetadataSource | None = None
        self._pixels: PixelSource | None = None
        self._out: StreamSocket | None = None
        self._format = stream_format(self.protocol, config.detector_name)
        self._select = selector(self.rule)
        self._next_preview_s = 0.0
        self._n_lost_before = 0
        self._endpoint = ""
        self.clients: list[str] = []
        """One line for each client: its address, how far behind it is, what it lost."""
        self.preview = np.zeros((1, 1), np.float32)
        self.preview_id = -1

    @property
    def endpoint(self) -> str:
        """Address that is really bound, where `address` leaves the port to the system."""
        return self._endpoint or self.address

    def _open(self) -> None:
        self._select = selector(self.rule)
        self._n_lost_before = 0
        self._out = StreamSocket(self.address, self.config.sizes.slot_bytes)
        self._endpoint = self._out.endpoint
        self._metadata = MetadataSource(self.config, self._suffixes[0])
        self._pixels = PixelSource(self.config, self._suffixes[1])

    def _turn(self) -> None:
        if self._metadata is None or self._pixels is None or self._out is None:
            return
        shown: tuple[Image, np.ndarray] | None = None
        for image in self._metadata.receive(int(TURN_S * 1000), _IMAGES_PER_TURN):
            if not self._select(image.image_id, time.monotonic()):
                self.counters["skipped"] += 1
            elif not can_send(self.protocol, image) or self._pixels.accepts(image):
                self.counters["refused"] += 1
            else:
                shown = self._send(image, self._pixels, self._out) or shown
        self.counters["malformed"] = self._metadata.n_malformed
        if shown is not None:
            self._show(*shown)

    def _send(
        self, image: Image, pixels: PixelSource, out: StreamSocket
    ) -> tuple[Image, np.ndarray] | None:
        """Send an image; returns it with its pixels, valid until the next one, if they can be shown."""
        found = out.buffer()
        if found is None:
            self.counters["no_buffer"] += 1
            return None
        number, buffer = found
        if not pixels.copy(image, buffer[: image.size]):
            self.counters["overwritten"] += 1
            return None
        size, compression = image.size, BsreadCompression.NONE
        if image.compression is not Compression.NONE:
            compression = BsreadCompression.BITSHUFFLE_LZ4
        elif self.compression is not BsreadCompression.NONE:
            size, compression = self._compress(image, buffer)
        before, after = self._format(image, compression, time.time_ns())
        out.send(before, number, size, after)
        self.counters["images"] += 1
        self.counters["bytes"] += size
        return (image, buffer) if compression is BsreadCompression.NONE else None

    def _compress(self, image: Image, buffer: np.ndarray) -> tuple[int, BsreadCompression]:
        """Compress pixels in place, unless that makes them larger; returns their size then, and how."""
        packed = compress(buffer[: image.size].view(image.dtype.numpy), self.compression)
        if len(packed) >= image.size:
            return image.size, BsreadCompression.NONE
        buffer[: len(packed)] = np.frombuffer(packed, np.uint8)
        return len(packed), self.compression

    def _show(self, image: Image, buffer: np.ndarray) -> None:
        """Make the preview, at a bounded rate and after all that waited was sent."""
        now = time.monotonic()
        if now >= self._next_preview_s:
            self._next_preview_s = now + PREVIEW_PERIOD_S
            array = buffer[: image.size].view(image.dtype.numpy).reshape(image.shape)
            self.preview = decimate(array)
            self.preview_id = image.image_id

    def _tick(self) -> None:
        if self._out is None:
            return
        gone = self._out.look()
        if gone:
            self.counters["disconnected"] += 1
            self.say(logging.WARNING, f"client {gone} disconnected: it is slow, and memory is short")
        clients = self._out.clients
        self.clients = clients.lines
        self.counters["n_active_connections"] = len(clients)
        self.counters["zmq_fails"] = clients.n_lost - self._n_lost_before

    def _program_keys(self) -> dict[str, str]:
        kind = "array10" if self.protocol is StreamProtocol.ARRAY10 else str(self.protocol)
        return {"port": self.label.rpartition(":")[2], "type": kind, "source": self._suffixes[0]}

    def _reset(self) -> None:
        if self._out is not None:
            self._n_lost_before = self._out.clients.n_lost
        if self._metadata is not None:
            self._metadata.n_malformed = 0

    def _close(self) -> None:
        if self._out is not None:
            self._out.close()
        if self._metadata is not None:
            self._metadata.close()
        if self._pixels is not None:
            self._pixels.close()
        self._out = self._metadata = self._pixels = None
        self.clients = []
        self.counters["n_active_connections"] = 0


def check_address(address: str, config: DaqConfig) -> None:
    """Check an address to bind.

    Raises
    ------
    ConfigError
        If it is not one.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    # ZeroMQ would take the port modulo 65536 without a word.
    if not address.startswith("tcp://") or not host or not _is_port(port):
        raise ConfigError(
            f"live stream address {address!r}: allowed are tcp://HOST:PORT and the keys of "
            f"live_stream_configs: {', '.join(config.live_stream_configs) or 'none there'}"
        )


def _is_port(text: str) -> bool:
    return text == "*" or (text.isdecimal() and int(text) <= _MAX_PORT)


def _choice(protocol: str, compression: str) -> tuple[StreamProtocol, BsreadCompression]:
    allowed = (BsreadCompression.NONE, BsreadCompression.BITSHUFFLE_LZ4)
    if protocol not in tuple(StreamProtocol):
        raise ConfigError(f"protocol {protocol!r}: allowed are {', '.join(StreamProtocol)}")
    if compression not in allowed:
        raise ConfigError(f"compression {compression!r}: allowed are {', '.join(allowed)}")
    if protocol == StreamProtocol.ARRAY10 and compression != BsreadCompression.NONE:
        raise ConfigError(f"compression {compression!r}: array-1.0 has none; allowed is none")
    return StreamProtocol(protocol), BsreadCompression(compression)
