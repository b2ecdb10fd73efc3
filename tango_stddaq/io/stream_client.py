"""The receiving end of a live stream, array-1.0 or bsread: for people who look at it."""

import json
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import zmq

from tango_stddaq.closing import Closing
from tango_stddaq.codecs import array10, bsread
from tango_stddaq.errors import ChannelError
from tango_stddaq.io import channels

_QUEUE: Final = 4
_MAX_PER_LOOK: Final = 256
"""Of a stream that never pauses: then the newest of so many is shown."""


@dataclass(frozen=True, slots=True)
class StreamImage:
    """An image of a live stream.

    Attributes
    ----------
    pixels
        (height, width), in the byte order of the sender.
    protocol
        What it came as.
    """

    image_id: int
    pixels: np.ndarray
    protocol: str


class StreamClient(Closing):
    """Subscribes to a live stream and takes the newest image; the others are only counted.

    Attributes
    ----------
    n_received
        Messages that came, shown or not.
    n_malformed, last_fault
        Messages that could not be read, and why the last one could not.

    Raises
    ------
    ChannelError
        If the address is not one.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith("tcp://"):
            raise ChannelError(f"stream address {address!r}: allowed is tcp://HOST:PORT")
        self.n_received = 0
        self.n_malformed = 0
        self.last_fault = ""
        self._decoder = bsread.Decoder()
        options = {int(zmq.MAXMSGSIZE): array10.MAX_ARRAY_BYTES}
        self._socket = channels.connect(zmq.SUB, address, _QUEUE, options)

    def newest(self, timeout_s: float) -> StreamImage | None:
        """Return the newest image that has come; None if none comes in time or it cannot be read."""
        deadline_s = time.monotonic() + timeout_s
        frames = self._receive(int(timeout_s * 1000))
        for _ in range(_MAX_PER_LOOK):
            if (more := self._receive(0)) is None:
                break
            frames = more
        if frames is None:
            return None
        try:
            return self._decode(frames)
        except ValueError as error:
            self.n_malformed += 1
            self.last_fault = str(error)
            time.sleep(max(0.0, min(0.01, deadline_s - time.monotonic())))
            return None

    def _receive(self, timeout_ms: int) -> list[memoryview] | None:
        if not self._socket.poll(timeout_ms):
            return None
        self.n_received += 1
        return [frame.buffer for frame in self._socket.recv_multipart(copy=False)]

    def _decode(self, frames: list[memoryview]) -> StreamImage:
        if len(frames[0]) > array10.MAX_HEADER_BYTES:
            raise ValueError(f"header of {len(frames[0])} bytes: neither array-1.0 nor bsread")
        first = bytes(frames[0])
        try:
            header = json.loads(first)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"header is not JSON: {error}") from error
        kind = header.get("htype") if isinstance(header, dict) else None
        if kind == bsread.MAIN_HTYPE:
            message = self._decoder.decode(frames)
            channel = message.channel
            out = np.empty(channel.n_bytes, np.uint8)
            bsread.unpack(channel, message.data, out)
            pixels = out.view(channel.dtype.newbyteorder("<")).reshape(channel.shape)
            return StreamImage(message.main.pulse_id, pixels, "bsread")
        if len(frames) != 2:
            raise ValueError(f"message of {len(frames)} frames with htype {kind!r:.40}")
        image_id, pixels = array10.decode(first, frames[1])
        return StreamImage(image_id, pixels, "array-1.0")

    def close(self) -> None:
        """Disconnect; harmless when called again."""
        channels.close(self._socket)
