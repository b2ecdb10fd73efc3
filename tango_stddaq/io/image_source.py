"""Images from another stage: the metadata stream to listen to, and the ring that holds the pixels."""

import numpy as np
import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels, zmq_calls
from tango_stddaq.io.ring import RingReader
from tango_stddaq.io.zmq_calls import handle_of, receive_rows
from tango_stddaq.model import Image


class MetadataSource:
    """Subscriber of a metadata stream.

    Parameters
    ----------
    config
        Names the detector.
    suffix
        Which product: `image`, `filter`, ...
    hwm
        Messages that may wait.
    """

    def __init__(
        self, config: DaqConfig, suffix: str = "image", hwm: int = channels.PIPELINE_HWM
    ) -> None:
        self._socket = channels.connect(zmq.SUB, channels.ipc_address(config.detector_name, suffix), hwm)
        self.n_malformed = 0

    def receive(self, timeout_ms: int, limit: int = 256) -> list[Image]:
        """Return the images announced, at most `limit`; waits for the first one."""
        if not self._socket.poll(timeout_ms):
            return []
        images: list[Image] = []
        while len(images) < limit:
            try:
                data = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                images.append(image_metadata.decode(data))
            except ValueError:
                self.n_malformed += 1
        return images

    def receive_messages(self, timeout_ms: int, limit: int = 256) -> list[bytes]:
        """Return the messages as they came, at most `limit`; waits for the first one."""
        messages: list[bytes] = []
        if self._socket.poll(timeout_ms):
            try:
                while len(messages) < limit:
                    messages.append(self._socket.recv(zmq.DONTWAIT))
            except zmq.Again:
                pass
        return messages

    def receive_rows(self, timeout_ms: int, rows: np.ndarray, lengths: np.ndarray) -> int:
        """Take messages without an object for each; waits for the first one.

        Parameters
        ----------
        rows, lengths
            (n, room) uint8 and (n,) int64: get at most `n` messages. What is longer than `room` is cut.

        Returns
        -------
        int
            How many came.

        Raises
        ------
        ChannelError
            If the socket fails.
        """
        return zmq_calls.check(int(receive_rows(handle_of(self._socket), timeout_ms, rows, lengths)))

    def close(self) -> None:
        """Stop listening."""
        channels.close(self._socket)


class PixelSource:
    """The ring of an image source, attached when its first image is read.

    It is attached anew after its owner was restarted, and read on trust where an existing program
    owns it and there is no index.
    """

    def __init__(self, config: DaqConfig, suffix: str = "image") -> None:
        self._name = config.segment(config.ring_of(suffix))
        self._sizes = config.sizes
        self._memory = config.ring_memory
        self._reader: RingReader | None = None

    def reader(self) -> RingReader | None:
        """Return the ring; None while there is none.

        Raises
        ------
        RingError
            If there is one of another shape.
        """
        if self._reader is not None and self._reader.retired:
            self._reader.close()
            self._reader = None
        if self._reader is None:
            try:
                self._reader = RingReader.attach(
                    self._name, self._sizes.n_slots, self._sizes.slot_bytes, self._memory
                )
            except FileNotFoundError:
                return None
        return self._reader

    def copy(self, image: Image, out: np.ndarray) -> bool:
        """Copy an image's bytes; False if it was overwritten or there is no ring.

        Parameters
        ----------
        out
            (image.size,) uint8.
        """
        reader = self.reader()
        return reader is not None and reader.copy(image.image_id, out)

    def accepts(self, image: Image) -> str | None:
        """Return why this image cannot lie in the ring; None if it can."""
        if image.size > self._sizes.slot_bytes:
            return f"{image.size} bytes do not fit a slot of {self._sizes.slot_bytes}"
        if not image.compression:
            needed = image.height * image.width * image.dtype.numpy.itemsize if image.dtype else 0
            if image.size != needed:
                return f"{image.size} bytes for {image.height} x {image.width} {image.dtype.name}"
        return None

    def close(self) -> None:
        """Detach."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
