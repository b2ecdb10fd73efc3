"""Sends datagrams in batches: many packets per system call, at a steady rate of images."""

import ctypes
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.errors import ChannelError

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_BATCH: Final = 1024
_SEND_BUFFER_BYTES: Final = 8 * 2**20


class PacketSender(Closing):
    """A UDP socket that sends arrays of packets.

    Parameters
    ----------
    host
        Where the receivers run.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._sockets: dict[int, socket.socket] = {}
        # struct iovec and struct mmsghdr, see sendmmsg(2)
        self._iov = np.zeros((_BATCH, 2), np.uint64)
        self._messages = np.zeros((_BATCH, 8), np.uint64)
        self._messages[:, 2] = self._iov.ctypes.data + np.arange(_BATCH) * 16
        self._messages[:, 3] = 1
        self.n_sent = 0

    def send(self, port: int, packets: np.ndarray, sizes: np.ndarray | None = None) -> None:
        """Send packets, (n, packet_bytes) uint8; only the first `sizes[i]` bytes of packet i if given.

        Raises
        ------
        OSError
            If the system refuses.
        ChannelError
            If the host is not known.
        """
        handle = self._socket(port)
        packets = np.ascontiguousarray(packets)
        for first in range(0, len(packets), _BATCH):
            batch = packets[first : first + _BATCH]
            self._iov[: len(batch), 0] = batch.ctypes.data + np.arange(len(batch)) * batch.shape[1]
            self._iov[: len(batch), 1] = (
                batch.shape[1] if sizes is None else sizes[first : first + len(batch)]
            )
            done = 0
            while done < len(batch):
                n = _LIBC.sendmmsg(
                    handle.fileno(),
                    ctypes.c_void_p(self._messages[done:].ctypes.data),
                    len(batch) - done,
                    0,
                )
                if n < 0:
                    number = ctypes.get_errno()
                    raise OSError(number, f"port {port}: {os.strerror(number)}")
                done += n
        self.n_sent += len(packets)

    def close(self) -> None:
        """Close the sockets."""
        for handle in self._sockets.values():
            handle.close()
        self._sockets.clear()

    def _socket(self, port: int) -> socket.socket:
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


class Pace:
    """Keeps a steady rate without bursts after a delay.

    Parameters
    ----------
    rate_hz
        0 for as fast as possible.
    """

    def __init__(self, rate_hz: float) -> None:
        self._period_s = 1.0 / rate_hz if rate_hz > 0 else 0.0
        self._next_s = time.monotonic()

    def wait(self) -> None:
        """Wait until the next image is due."""
        if not self._period_s:
            return
        now = time.monotonic()
        if now < self._next_s:
            time.sleep(self._next_s - now)
        self._next_s += self._period_s
        if self._next_s <= now:
            self._next_s = now + self._period_s

    def fraction(self, part: int, parts: int) -> None:
        """Spread the parts of an image over its period, as modules that read out in parallel do."""
        if self._period_s and part:
            due = self._next_s - self._period_s * (1 - 0.8 * part / parts)
            delay = due - time.monotonic()
            if delay > 0:
                time.sleep(delay)


@contextmanager
def clean_errors() -> Iterator[None]:
    """Let a refused packet pass: nobody listens yet, which a detector does not mind either."""
    with suppress(ConnectionRefusedError):
        yield


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
