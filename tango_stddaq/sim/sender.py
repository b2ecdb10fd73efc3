"""Sends datagrams in batches: many packets per system call."""

import os
import socket
from collections.abc import Sequence
from typing import Final

import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.errors import ChannelError
from tango_stddaq.sim.send_loop import MESSAGE_BYTES, send_all

_BATCH: Final = 1024
_SEND_BUFFER_BYTES: Final = 8 * 2**20


class PacketSender(Closing):
    """UDP sockets, one a port, that send arrays of packets.

    Nobody needs to listen: a detector does not mind either.

    Parameters
    ----------
    host
        Where the receivers run.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._sockets: dict[int, socket.socket] = {}
        self._iov, self._messages = message_table(_BATCH)
        self.n_sent = 0
        self.n_bytes = 0

    def send(self, port: int, packets: np.ndarray, sizes: np.ndarray | None = None) -> None:
        """Send packets, (n, packet_bytes) uint8; only the first `sizes[i]` bytes of packet i if given.

        Raises
        ------
        OSError
            If the system refuses.
        ChannelError
            If the host is not known.
        """
        handle = self.socket(port).fileno()
        packets = np.ascontiguousarray(packets)
        for first in range(0, len(packets), _BATCH):
            batch = packets[first : first + _BATCH]
            self._iov[: len(batch), 0] = batch.ctypes.data + np.arange(len(batch)) * batch.shape[1]
            self._iov[: len(batch), 1] = (
                batch.shape[1] if sizes is None else sizes[first : first + len(batch)]
            )
            error = send_all(handle, self._messages.ctypes.data, len(batch))
            if error:
                raise OSError(error, f"port {port}: {os.strerror(error)}")
        self.n_sent += len(packets)
        self.n_bytes += packets.size if sizes is None else int(sizes.sum())

    def close(self) -> None:
        """Close the sockets."""
        for handle in self._sockets.values():
            handle.close()
        self._sockets.clear()

    def socket(self, port: int) -> socket.socket:
        """Return the socket that sends to a port.

        Raises
        ------
        ChannelError
            If the host is not known.
        """
        handle = self._sockets.get(port)
        if handle is None:
            handle = self._sockets[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            try:
                handle.connect((self._host, port))
            except OSError as error:
                raise ChannelError(
                    f"host {self._host!r}: cannot be sent to: {error.strerror}"
                ) from error
        return handle


def message_table(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n struct iovec, (n, 2) uint64, and n struct mmsghdr that point to one each: sendmmsg(2)."""
    iov = np.zeros((n, 2), np.uint64)
    messages = np.zeros((n, MESSAGE_BYTES // 8), np.uint64)
    messages[:, 2] = iov.ctypes.data + np.arange(n) * iov.itemsize * 2
    messages[:, 3] = 1
    return iov, messages


def split(packets: Sequence[bytes | memoryview]) -> list[np.ndarray]:
    """Group packets of equal size that follow one another into arrays (n, packet_bytes)."""
    groups: list[list[np.ndarray]] = []
    for packet in packets:
        array = np.frombuffer(packet, np.uint8)
        if groups and groups[-1][0].size == array.size:
            groups[-1].append(array)
        else:
            groups.append([array])
    return [np.stack(group) for group in groups]
