"""The outgoing side of a live stream: a PUB socket that knows its clients and bounds its memory."""

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import zmq

from tango_stddaq.closing import Closing
from tango_stddaq.io import channels
from tango_stddaq.io.send_buffers import SendBuffers
from tango_stddaq.io.stream_clients import StreamClients

CLIENT_BYTES: Final = 2**30
"""Most that the queue of one client may hold; for images above 10 MB it holds less than 100 of them."""
STREAM_BYTES: Final = 4 * 2**30
"""Most that the queues of all clients may hold together."""
_MIN_HWM: Final = 4
_MAX_IO_THREADS: Final = 4
_KEEPALIVE_S: Final = (30, 10, 6)
"""Idle time, interval, probes: a host that is gone without a word is found after a minute and a half."""
_SHORT_FRAME: Final = 255
_WELCOMES: Final = 64
_COMMON_START: Final = b'{"htype":"'
"""How every message of a live stream begins; a subscription to a part of it is one to all images."""
SEND_BUFFER_BYTES: Final = 512 * 1024
"""The kernel's buffer of a connection. Left to itself it grows to megabytes, and pixels go to the
network from memory instead of the cache: see docs/streams.md."""


class StreamSocket(Closing):
    """Sends messages of one large frame and some small ones to all subscribers.

    The socket is an XPUB: to its clients the same as a PUB, but it tells us who subscribes. It has a
    ZeroMQ context of its own, so that metadata do not wait behind pixels in one I/O thread.

    Parameters
    ----------
    address
        `tcp://HOST:PORT`; the system chooses the port where it is `*`.
    max_bytes
        Longest large frame.

    Raises
    ------
    ChannelError
        If the address cannot be bound.
    """

    def __init__(self, address: str, max_bytes: int) -> None:
        self.hwm = max(_MIN_HWM, min(channels.STREAM_HWM, CLIENT_BYTES // max_bytes))
        n_threads = max(1, min(_MAX_IO_THREADS, (os.cpu_count() or 1) // 2))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(n_threads)
        idle_s, interval_s, probes = _KEEPALIVE_S
        options: dict[int, int] = {
            zmq.XPUB_VERBOSER: 1,  # each subscription and each that ends, not only the first of a topic
            zmq.MAXMSGSIZE: channels.MAX_MESSAGE_BYTES,  # of what clients send to us
            zmq.SNDBUF: SEND_BUFFER_BYTES,
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: idle_s,
            zmq.TCP_KEEPALIVE_INTVL: interval_s,
            zmq.TCP_KEEPALIVE_CNT: probes,
        }
        try:
            self._socket = channels.bind(zmq.XPUB, address, self.hwm, self._context, options)
        except BaseException:
            self._context.term()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._port = int(self.endpoint.rpartition(":")[2])
        self.clients = StreamClients(self.hwm)
        self._buffers = SendBuffers(max_bytes, max(self.hwm + _MIN_HWM, STREAM_BYTES // max_bytes))

    def buffer(self) -> tuple[int, np.ndarray] | None:
        """Return a free buffer and its number, (max_bytes,) uint8; None if slow clients hold all.

        It may be filled and not sent: it stays free.
        """
        number = self._buffers.free()
        return None if number is None else (number, self._buffers[number])

    def send(
        self, before: Sequence[bytes], number: int, n_bytes: int, after: bytes | None = None
    ) -> None:
        """Send small frames, the first bytes of a buffer and perhaps another small frame.

        It never waits: who cannot take the message loses it.
        """
        self._welcome()
        for frame in before:
            self._socket.send(frame, zmq.SNDMORE)
        if after is None:
            self._buffers.send(self._socket, number, n_bytes)
        else:
            self._buffers.send(self._socket, number, n_bytes, zmq.SNDMORE)
            self._socket.send(after)
        sizes = [*map(len, before), n_bytes, *([] if after is None else [len(after)])]
        self.clients.published(sum(map(_bytes_on_wire, sizes)))

    def look(self) -> str:
        """Do what is due a few times a second; returns the address of a client that was disconnected."""
        self._welcome()
        self.clients.look()
        self._buffers.shrink()
        if self._buffers.n_busy < self._buffers.max_buffers - _MIN_HWM:
            return ""
        return self.clients.disconnect_slowest()

    def _welcome(self) -> None:
        for _ in range(_WELCOMES):  # a client that sends nonsense without end must not hold us up
            if not self._socket.poll(0):
                break
            frame = self._socket.recv(copy=False)
            data = frame.bytes
            if not _COMMON_START.startswith(data[1:]):
                continue  # a subscription that no image matches
            try:
                fd = int(frame.get(zmq.SRCFD))
            except zmq.ZMQError:
                continue  # its connection has ended already
            if data[:1] == b"\x01":
                self.clients.add(fd, self._port)
            elif data[:1] == b"\x00":
                self.clients.remove(fd, self._port)

    def close(self) -> None:
        """Close; what slow clients have not taken is gone. Harmless when called again."""
        if self._context.closed:
            return
        self.clients.close()
        channels.close(self._socket)
        self._context.term()  # from here on ZeroMQ uses no buffer any more
        self._buffers.close()


def _bytes_on_wire(n_bytes: int) -> int:
    """Return the size of a ZMTP frame: flags, size in one byte or eight, data."""
    return n_bytes + (2 if n_bytes <= _SHORT_FRAME else 9)
