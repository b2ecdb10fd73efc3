"""Sends the packets of images at a rate: with compiled code and segmentation offload where it can."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import Detector
from tango_stddaq.sim.cycle import PacketCycle
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.pace import Pace
from tango_stddaq.sim.send_loop import send_all, send_frames
from tango_stddaq.sim.sender import PacketSender, message_table

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_MAX_SEGMENTS: Final = 64
_MAX_DATAGRAM_BYTES: Final = 65_507
_GSO_REFUSED: Final = frozenset({5, 22, 90, 92, 95})  # EIO EINVAL EMSGSIZE ENOPROTOOPT EOPNOTSUPP
_BLOCK_S: Final = 0.02
_BLOCK_BYTES: Final = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was really sent, and how fast."""

    images: int
    packets: int
    n_bytes: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        """Mean rate of images."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Mean rate of datagram bytes."""
        return self.n_bytes / self.seconds if self.seconds else 0.0


class Transmission(Closing):
    """The open line from a simulated detector to its receivers.

    Parameters
    ----------
    frames
        Gives the packets of an image by connection.
    cycle
        Packets made in advance; with them and without faults, compiled code sends them.
    host
        Where the receivers run.
    gso
        Let the kernel cut many packets out of one message (UDP_SEGMENT), where it can.

    Attributes
    ----------
    pace
        The rate; may be changed while it runs.
    gso
        Whether messages of many packets are sent.
    """

    def __init__(
        self,
        config: DaqConfig,
        detector: Detector,
        frames: Callable[[int], dict[int, np.ndarray]],
        cycle: PacketCycle | None = None,
        host: str = "127.0.0.1",
        gso: bool = True,
    ) -> None:
        self.pace = Pace(0)
        self.gso = gso and cycle is not None and detector.layout.packets_per_frame > 1
        self._config = config
        self._detector = detector
        self._frames = frames
        self._cycle = cycle
        self._sizes = detector.packet_sizes()
        self._chunk = max(1, min(_MAX_SEGMENTS, _MAX_DATAGRAM_BYTES // detector.layout.packet_bytes))
        """Packets that go at once: in one message with segmentation offload."""
        self._sender = PacketSender(host)
        self._n_images = self._n_packets = self._n_bytes = 0
        self._started_s = self._ended_s = 0.0
        # Compile now: that shall not count as time of sending.
        self.pace.wait()
        send_all(0, 0, 0)
        if cycle is not None:
            self._open(cycle)

    def send(self, first_id: int, n_images: int, faults: Faults) -> int:
        """Send a few of n images that follow one another, when they are due.

        Returns
        -------
        int
            How many were sent: at least one, and as many as are due in a short time.

        Raises
        ------
        OSError
            If the system refuses.
        ChannelError
            If the host is not known.
        """
        if not self._n_images:
            self._started_s = time.monotonic()
        if self._cycle is None or faults.any:
            self._send_image(first_id, faults)
            n = 1
        else:
            n = min(n_images, self._block_images(self._cycle))
            self._send_block(self._cycle, first_id, n)
        self._n_images += n
        self._ended_s = time.monotonic()
        return n

    @property
    def throughput(self) -> Throughput:
        """What was sent since the start."""
        return Throughput(
            self._n_images,
            self._n_packets + self._sender.n_sent,
            self._n_bytes + self._sender.n_bytes,
            self._ended_s - self._started_s,
        )

    def close(self) -> None:
        """Close the sockets."""
        self._sender.close()

    # -- one image, by its packets -----------------------------------------------------------------

    def _send_image(self, image_id: int, faults: Faults) -> None:
        header_bytes = self._detector.layout.header.itemsize
        faults.begin_image()
        frames = self._frames(image_id)
        n_chunks = -(-self._sizes.size // self._chunk) if self.pace.rate_hz else 1
        for place, (connection, packets) in enumerate(frames.items()):
            sent, n_bytes = faults.apply(image_id, connection, packets, self._sizes, header_bytes)
            cuts = np.arange(n_chunks + 1) * len(sent) // n_chunks
            for number, (begin, end) in enumerate(pairwise(cuts)):
                self.pace.wait(place * n_chunks + number, len(frames) * n_chunks)
                port = self._config.start_udp_port + connection
                self._sender.send(port, sent[begin:end], n_bytes[begin:end])

    # -- many images, by compiled code -------------------------------------------------------------

    def _open(self, cycle: PacketCycle) -> None:
        n_modules = len(self._detector.modules)
        self._sockets = [
            self._sender.socket(self._config.start_udp_port + connection)
            for connection in self._detector.connections
        ]
        handles = [handle.fileno() for handle in self._sockets]
        self._handles = np.array(handles, np.int32).reshape(-1, n_modules)
        self._progress = np.zeros(1, np.int64)
        if self.gso:
            self.gso = self._set_segment(self._detector.layout.packet_bytes)
        self._make_messages(cycle)
        self._send_messages(0, 0)

    def _set_segment(self, n_bytes: int) -> bool:
        try:
            for handle in self._sockets:
                handle.setsockopt(_SOL_UDP, _UDP_SEGMENT, n_bytes)
        except OSError:
            return False
        return True

    def _make_messages(self, cycle: PacketCycle) -> None:
        """Lay out the messages of all frames of the cycle, each of as many packets as fit in one."""
        layout = self._detector.layout
        group = self._chunk if self.gso else 1
        firsts = np.arange(0, layout.packets_per_frame, group)
        self._per_frame = len(firsts)
        n_frames = cycle.n_images * len(self._detector.modules)
        self._iov, self._messages = message_table(n_frames * self._per_frame)
        frame_bytes = layout.packets_per_frame * layout.packet_bytes
        starts = np.arange(n_frames)[:, None] * frame_bytes + firsts * layout.packet_bytes
        self._iov[:, 0] = (cycle.packets.ctypes.data + starts).reshape(-1)
        self._iov[:, 1] = np.tile(np.add.reduceat(self._sizes, firsts), n_frames)

    def _block_images(self, cycle: PacketCycle) -> int:
        rate_hz = self.pace.rate_hz
        wanted = rate_hz * _BLOCK_S if rate_hz else _BLOCK_BYTES / cycle.image_bytes
        return max(1, min(cycle.n_images, int(wanted)))

    def _send_block(self, cycle: PacketCycle, first_id: int, n: int) -> None:
        cycle.stamp(first_id, n)
        self._progress[0] = 0
        while True:
            error = self._send_messages(first_id % cycle.n_images, n)
            if not error:
                break
            if not (self.gso and error in _GSO_REFUSED):
                raise OSError(error, f"port {self._port_at(first_id)}: {os.strerror(error)}")
            # The way to the receiver cannot cut messages, or its packets are smaller than ours.
            self.gso = False
            self._set_segment(0)
            self._make_messages(cycle)
        self._n_packets += n * len(self._detector.modules) * self._sizes.size
        self._n_bytes += n * cycle.image_bytes

    def _send_messages(self, first: int, n: int) -> int:
        n_cycle = self._messages.shape[0] // self._per_frame // self._handles.shape[1]
        messages, chunk = self._messages.ctypes.data, 1 if self.gso else self._chunk
        return int(
            send_frames(
                self._handles, messages, self._per_frame, chunk, n_cycle, first, n, self.pace.state,
                self.pace.clock, self._progress,
            )
        )  # fmt: skip

    def _port_at(self, first_id: int) -> int:
        image, part = divmod(int(self._progress[0]), len(self._detector.modules))
        connection = self._detector.connections_of(first_id + image)[part]
        return self._config.start_udp_port + connection
