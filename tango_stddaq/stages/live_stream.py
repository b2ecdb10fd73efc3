"""Live stream: sends images of a ring to any number of clients over TCP as array-1.0."""

import time
from collections import deque
from typing import ClassVar, Final

import numpy as np
import zmq

from tango_stddaq.codecs import array10
from tango_stddaq.config import DaqConfig, LiveStreamConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.model import Image
from tango_stddaq.processing.preview import decimate
from tango_stddaq.processing.selection import selector
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

PREVIEW_PERIOD_S: Final = 0.2
_MAX_POOL: Final = 32
_MAX_PORT: Final = 65_535


class LiveStream(Stage):
    """One stream of one address.

    An image is copied out of the ring and the copy checked before it is sent: what a client receives
    is never torn. A slow client loses images by itself, behind `channels.STREAM_HWM` messages.

    Parameters
    ----------
    address
        A key of `live_stream_configs`, or any `tcp://HOST:PORT` to forward every image.
    metadata_suffix, image_suffix
        Which stream announces the images and which ring holds their pixels.
    """

    name = "live-stream"
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images sent."),
        Counter("bytes", "bytes", "Pixel bytes sent."),
        Counter("skipped", "images", "Images left out by the stream's rule."),
        Counter("overwritten", "images", "Images lost: overwritten before they were read.", loss=True),
        Counter("refused", "images", "Images that cannot be sent: compressed, or too large.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not image metadata.", loss=True),
    )  # fmt: skip

    def __init__(
        self,
        config: DaqConfig,
        address: str,
        metadata_suffix: str = "image",
        image_suffix: str = "image",
    ) -> None:
        super().__init__(config, address)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        # ZeroMQ would take the port modulo 65536 without a word.
        if not address.startswith("tcp://") or not host or not _is_port(port):
            raise ConfigError(
                f"live stream address {address!r}: allowed are tcp://HOST:PORT and the keys of "
                f"live_stream_configs: {', '.join(config.live_stream_configs) or 'none there'}"
            )
        self.address = address
        self._rule_config = config.live_stream_configs.get(address, LiveStreamConfig(type="forward"))
        self._suffixes = metadata_suffix, image_suffix
        self._metadata: MetadataSource | None = None
        self._pixels: PixelSource | None = None
        self._out: zmq.Socket[bytes] | None = None
        self._pool: deque[tuple[np.ndarray, zmq.MessageTracker]] = deque()
        self._select = selector(self._rule_config)
        self._next_preview_s = 0.0
        self._endpoint = ""
        self.preview = np.zeros((1, 1), np.float32)
        self.preview_id = -1

    @property
    def endpoint(self) -> str:
        """Address that is really bound, where `address` leaves the port to the system."""
        return self._endpoint or self.address

    def _open(self) -> None:
        self._select = selector(self._rule_config)
        self._out = channels.bind(zmq.PUB, self.address, channels.STREAM_HWM)
        self._endpoint = self._out.getsockopt_string(zmq.LAST_ENDPOINT)
        self._metadata = MetadataSource(self.config, self._suffixes[0])
        self._pixels = PixelSource(self.config, self._suffixes[1])

    def _turn(self) -> None:
        if self._metadata is None or self._pixels is None or self._out is None:
            return
        for image in self._metadata.receive(int(TURN_S * 1000), limit=32):
            if not self._select(image.image_id, time.monotonic()):
                self.counters["skipped"] += 1
            elif image.compression or not image.dtype or self._pixels.accepts(image):
                self.counters["refused"] += 1
            else:
                self._send(image, self._pixels, self._out)
        self.counters["malformed"] = self._metadata.n_malformed

    def _send(self, image: Image, pixels: PixelSource, out: "zmq.Socket[bytes]") -> None:
        buffer = self._buffer()
        if not pixels.copy(image, buffer[: image.size]):
            self.counters["overwritten"] += 1
            return
        out.send(array10.encode_header(image), zmq.SNDMORE)
        tracker = out.send(buffer[: image.size].data, copy=False, track=True)
        self._pool.append((buffer, tracker))
        self.counters["images"] += 1
        self.counters["bytes"] += image.size
        now = time.monotonic()
        if now >= self._next_preview_s:
            self._next_preview_s = now + PREVIEW_PERIOD_S
            array = buffer[: image.size].view(image.dtype.numpy).reshape(image.shape)
            self.preview = decimate(array)
            self.preview_id = image.image_id

    def _buffer(self) -> np.ndarray:
        """Return a buffer that no message uses any more: the oldest sent, or a new one."""
        if self._pool and self._pool[0][1].done:
            return self._pool.popleft()[0]
        while len(self._pool) > _MAX_POOL:
            self._pool.popleft()  # ZeroMQ keeps it alive as long as a slow client needs it
        return np.empty(self.config.sizes.slot_bytes, np.uint8)

    def _close(self) -> None:
        if self._out is not None:
            channels.close(self._out)
        if self._metadata is not None:
            self._metadata.close()
        if self._pixels is not None:
            self._pixels.close()
        self._out = self._metadata = self._pixels = None
        self._pool.clear()


def _is_port(text: str) -> bool:
    return text == "*" or (text.isdecimal() and int(text) <= _MAX_PORT)
