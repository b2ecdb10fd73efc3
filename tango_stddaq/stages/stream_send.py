"""Stream sender: one part of every image, or every n-th image, to another server over TCP."""

from typing import ClassVar, Final

import numpy as np

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.stream_socket import StreamSocket
from tango_stddaq.processing.parts import Part, carries, part_of
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stages.live_stream import check_address
from tango_stddaq.stats import Counter

_IMAGES_PER_TURN: Final = 64


class StreamSend(Stage):
    """Sends [metadata, bytes] of each image that the part belongs to. Metadata pass byte for byte.

    Bytes are copied out of the ring and the copy checked: what is sent is never torn. A receiver that is
    slow, or gone, loses images by itself, behind a queue of `StreamSocket.hwm` images.

    Parameters
    ----------
    address
        To bind: `tcp://HOST:PORT`; the system chooses the port where it is `*`.
    part
        Which of `max_number_of_forwarders_spawned`, from 0.
    suffix
        Which images: `image`, ...

    Raises
    ------
    ConfigError
        If address or part is not one.
    """

    name = "stream-send"
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images of which this part was sent."),
        Counter("bytes", "bytes", "Pixel bytes sent, once for all receivers."),
        Counter("others", "images", "Images left to the other senders."),
        Counter("n_active_connections", "receivers", "Receivers that have subscribed now."),
        Counter("zmq_fails", "images", "Images that slow receivers did not get.", loss=True),
        Counter("disconnected", "receivers", "Receivers disconnected: slow, and memory short."),
        Counter("overwritten", "images", "Images lost: overwritten before they were read.", loss=True),
        Counter("refused", "images", "Images lost: larger than a slot.", loss=True),
        Counter("no_buffer", "images", "Images lost: slow receivers held all the memory.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not image metadata.", loss=True),
    )  # fmt: skip

    def __init__(self, config: DaqConfig, address: str, part: int, suffix: str = "image") -> None:
        super().__init__(config, str(part))
        check_address(address, config)
        self.address = address
        self.suffix = suffix
        self.part: Part | None = part_of(config, part)
        self._number = part
        self._metadata: MetadataSource | None = None
        self._pixels: PixelSource | None = None
        self._out: StreamSocket | None = None
        self._n_lost_before = 0
        self._endpoint = ""
        self.clients: list[str] = []
        """One line for each receiver: its address, how far behind it is, what it lost."""

    @property
    def endpoint(self) -> str:
        """Address that is really bound, where `address` leaves the port to the system."""
        return self._endpoint or self.address

    def _open(self) -> None:
        self._n_lost_before = 0
        if self.part is None:
            return
        self._out = StreamSocket(self.address, self.part.n_bytes)
        self._endpoint = self._out.endpoint
        self._pixels = PixelSource(self.config, self.suffix)
        self._metadata = MetadataSource(self.config, self.suffix)

    def _turn(self) -> None:
        part = self.part
        if self._metadata is None or self._pixels is None or self._out is None or part is None:
            self._stop.wait(TURN_S)
            return
        for message in self._metadata.receive_messages(int(TURN_S * 1000), _IMAGES_PER_TURN):
            try:
                found = image_metadata.parse(message)
            except ValueError:
                self.counters["malformed"] += 1
                continue
            if len(message) > image_metadata.MAX_MESSAGE_BYTES:
                self.counters["malformed"] += 1
            elif not carries(self.config, self._number, found.image_id):
                self.counters["others"] += 1
            elif found.size > self.config.sizes.slot_bytes:
                self.counters["refused"] += 1
            else:
                # A whole image may be smaller than its slot; a part is always of the same size.
                whole = self.config.sender_sends_full_images
                n_bytes = found.size if whole else part.n_bytes
                self.counters[self._send(message, found.image_id, part.offset, n_bytes)] += 1

    def _send(self, message: bytes, image_id: int, offset: int, n_bytes: int) -> str:
        """Send the bytes of one image; returns the counter that it belongs to."""
        if self._pixels is None or self._out is None:
            return "overwritten"
        free = self._out.buffer()
        if free is None:
            return "no_buffer"
        number, buffer = free
        reader = self._pixels.reader()
        ticket = None if reader is None else reader.ticket(image_id)
        if reader is None or ticket is None:
            return "overwritten"
        np.copyto(buffer[:n_bytes], reader.slot(image_id)[offset : offset + n_bytes])
        if not reader.still(image_id, ticket):
            return "overwritten"
        self._out.send([message], number, n_bytes)
        self.counters["bytes"] += n_bytes
        return "images"

    def _tick(self) -> None:
        if self._out is None:
            return
        self.counters["disconnected"] += bool(self._out.look())
        clients = self._out.clients
        self.clients = clients.lines
        self.counters["n_active_connections"] = len(clients)
        self.counters["zmq_fails"] = clients.n_lost - self._n_lost_before

    def _reset(self) -> None:
        if self._out is not None:
            self._n_lost_before = self._out.clients.n_lost

    def _close(self) -> None:
        for handle in (self._out, self._metadata, self._pixels):
            if handle is not None:
                handle.close()
        self._out = self._metadata = self._pixels = None
        self.clients = []
        self.counters["n_active_connections"] = 0
