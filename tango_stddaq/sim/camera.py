"""A simulated camera: binds a socket and sends whole images as bsread or array-1.0 messages."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from tango_stddaq.closing import Closing
from tango_stddaq.codecs import array10, bsread
from tango_stddaq.codecs.bsread_compression import BsreadCompression
from tango_stddaq.codecs.bsread_message import Channel
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ChannelError
from tango_stddaq.io import channels
from tango_stddaq.model import Dtype, Image
from tango_stddaq.sim.pace import Pace
from tango_stddaq.sim.picture import DiffractionPicture

FIRST_TIMESTAMP: Final = (1_700_000_000, 5)
"""(seconds, nanoseconds) of pulse 0; every pulse is a second and 10 ns later than the one before."""
_QUEUED_IMAGES: Final = 16
_LINGER_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class CameraFormat:
    """How a camera sends an image; it may change between two images.

    Attributes
    ----------
    compression, header_compression
        Of pixels and data header; bsread only.
    encoding
        Byte order: little or big.
    roi
        (first row, first column, height, width) that is sent; None for the whole image.
    """

    protocol: Literal["bsread", "array-1.0"] = "bsread"
    compression: BsreadCompression = BsreadCompression.NONE
    header_compression: BsreadCompression = BsreadCompression.NONE
    encoding: Literal["little", "big"] = "little"
    roi: tuple[int, int, int, int] | None = None
    channel_name: str = "STDDAQ-SIM:FPICTURE"


class SimulatedCamera(Closing):
    """Sends pictures that a person recognises; a context manager.

    Parameters
    ----------
    shape
        (height, width) of the whole image.
    dtype
        Unsigned.
    address
        To bind; the system chooses a free port where it is `*`.
    socket_type
        `push` hands the images out in turn to all connections, `pub` sends each to all of them.

    Raises
    ------
    ChannelError
        If the address cannot be bound.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: np.dtype,
        camera_format: CameraFormat | None = None,
        address: str = "tcp://127.0.0.1:*",
        socket_type: Literal["push", "pub"] = "push",
    ) -> None:
        self.format = camera_format if camera_format is not None else CameraFormat()
        self._picture = DiffractionPicture(shape, dtype)
        self._is_push = socket_type == "push"
        # XPUB is PUB to its subscribers, and tells who they are.
        self._socket = channels.bind(zmq.PUSH if self._is_push else zmq.XPUB, address, _QUEUED_IMAGES)
        self._monitor = (
            self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            if self._is_push
            else None
        )
        self._n_connections = 0
        self.n_sent = 0

    @classmethod
    def of(cls, config: DaqConfig) -> "SimulatedCamera":
        """Play the camera of a configuration, at its `camera_address`.

        Raises
        ------
        ConfigError
            If the configuration does not say where it sends from.
        ChannelError
            If that address cannot be bound.
        """
        address, sizes = config.require_camera_address(), config.sizes
        camera_format = CameraFormat(protocol=config.camera_protocol)
        return cls(sizes.shape, sizes.dtype.numpy, camera_format, address)

    @property
    def endpoint(self) -> str:
        """Address that receivers connect to."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def timestamp(self, image_id: int) -> tuple[int, int]:
        """Return (seconds, nanoseconds) of a pulse."""
        return (FIRST_TIMESTAMP[0] + image_id, (FIRST_TIMESTAMP[1] + 10 * image_id) % 10**9)

    def truth(self, image_id: int) -> np.ndarray:
        """Return the image as it must arrive in the present format, (height, width)."""
        image = self._picture.image(image_id)
        if self.format.roi is None:
            return image
        row, column, height, width = self.format.roi
        return np.ascontiguousarray(image[row : row + height, column : column + width])

    def message(self, image_id: int) -> list[bytes]:
        """Return the frames of an image in the present format."""
        image, now = self.truth(image_id), self.format
        height, width = image.shape
        if now.protocol == "bsread":
            channel = Channel(
                now.channel_name, (height, width), image.dtype.name, now.encoding, now.compression
            )
            stamp = self.timestamp(image_id)
            return bsread.encode(image_id, stamp, channel, image, now.header_compression)
        header = array10.encode_header(
            Image(image_id, height, width, image.nbytes, Dtype.from_numpy(image.dtype))
        )
        if now.encoding == "big":
            header = header[:-1] + b', "endianness":"big"}'
        order: Literal["<", ">"] = ">" if now.encoding == "big" else "<"
        return [header, image.astype(image.dtype.newbyteorder(order)).tobytes()]

    def send(self, image_id: int, timeout_s: float = 10.0) -> None:
        """Send an image; PUSH waits while no connection takes it.

        Raises
        ------
        ChannelError
            If none does within the timeout.
        """
        self.send_frames(self.message(image_id), timeout_s)

    def send_frames(self, frames: list[bytes], timeout_s: float = 10.0) -> None:
        """Send any frames, malformed ones as well; errors as for `send`."""
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT):
            raise ChannelError(f"{self.endpoint}: no receiver took an image within {timeout_s:g} s")
        self._socket.send_multipart(frames, copy=True)
        self.n_sent += 1

    def run(
        self,
        n_images: int,
        rate_hz: float,
        first_id: int = 1,
        step: int = 1,
        on_image: Callable[[int], None] | None = None,
    ) -> None:
        """Send images with ids `step` apart; a rate of 0 is as fast as possible."""
        pace = Pace(rate_hz)
        for image_id in range(first_id, first_id + n_images * step, step):
            frames = self.message(image_id)
            pace.wait()
            self.send_frames(frames)
            if on_image is not None:
                on_image(image_id)

    def wait_for_connections(self, n_connections: int, timeout_s: float = 10.0) -> None:
        """Wait until so many connections take images.

        Raises
        ------
        ChannelError
            If they do not within the timeout.
        """
        deadline = time.monotonic() + timeout_s
        while self._n_connections < n_connections:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ChannelError(
                    f"{self.endpoint}: {self._n_connections} of {n_connections} connections are there; "
                    "does the receiver run (stddaq up)?"
                )
            self._count_connections(int(left_s * 1000))

    def _count_connections(self, timeout_ms: int) -> None:
        if self._monitor is None:
            if self._socket.poll(timeout_ms):
                self._n_connections += 1 if self._socket.recv()[:1] == b"\x01" else -1
        elif self._monitor.poll(timeout_ms):
            arrived = recv_monitor_message(self._monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self._n_connections += 1 if arrived else -1

    def close(self) -> None:
        """Send what is queued, then close; harmless when called again."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        self._socket.close(_LINGER_MS)
