"""Who receives a live stream, and how much of it: asked of the kernel, connection by connection.

ZeroMQ drops messages for a client whose queue is full and tells nobody. But the kernel knows how many
bytes it took for each connection (`TCP_INFO`), and we know how many were published since the client
subscribed. What is missing either waits in the client's queue, of known length, or was dropped.
"""

import fcntl
import os
import socket
import struct
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Final

_TCP_INFO_BYTES: Final = 256
_ESTABLISHED: Final = 1
_BYTES_ACKED: Final = struct.Struct("<120xQ")
"""`tcpi_bytes_acked` of `struct tcp_info` (linux/tcp.h), in all kernels since 4.2."""
_SIOCOUTQ: Final = 0x5411
_IDLE_LOOKS: Final = 3
_IN_HAND: Final = 2
"""Images that ZeroMQ may hold for a client besides its queue."""


@dataclass(slots=True)
class Client:
    """One connection that has subscribed.

    Attributes
    ----------
    taken_bytes
        What the kernel had taken for it when it subscribed.
    given_bytes
        What was published since it subscribed; `older_bytes` is the same at the last looks.
    n_idle
        Looks in a row that found nothing waiting for it in the kernel.
    n_behind
        Images published that it does not have yet, lost ones not counted.
    n_lost
        Images that its full queue made ZeroMQ drop. Never too many; exact once it has caught up.
    """

    handle: socket.socket
    address: str
    taken_bytes: int
    given_bytes: int = 0
    older_bytes: deque[int] = field(default_factory=lambda: deque([0], maxlen=_IDLE_LOOKS))
    n_idle: int = 0
    n_images: int = 0
    lost_bytes: int = 0
    n_behind: int = 0
    n_lost: int = 0

    @property
    def text(self) -> str:
        """One line for a person."""
        return f"{self.address}: {self.n_behind} images behind, {self.n_lost} lost"


class StreamClients:
    """The clients of one bound TCP socket.

    Parameters
    ----------
    hwm
        Images that ZeroMQ queues for a client.
    """

    def __init__(self, hwm: int) -> None:
        self._hwm = hwm
        self._clients: list[Client] = []
        self._n_lost_by_former = 0

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def n_lost(self) -> int:
        """Images lost by slow clients, each client's added up, since the start."""
        return self._n_lost_by_former + sum(client.n_lost for client in self._clients)

    @property
    def lines(self) -> list[str]:
        """One line for each client."""
        return [client.text for client in self._clients]

    def add(self, fd: int, port: int) -> None:
        """Take in a connection that subscribed just now; the descriptor stays ZeroMQ's.

        By now it may be closed, or be another file: a duplicate is looked at, and only a connection to
        our own port is taken in.
        """
        handle, address = _connection(fd, port)
        if handle is None:
            return
        taken = _taken_bytes(handle)
        if taken is None or any(client.address == address for client in self._clients):
            handle.close()  # gone already, or its second subscription
            return
        self._clients.append(Client(handle, address, taken))

    def remove(self, fd: int, port: int) -> None:
        """Forget a connection that ended its subscription and stays connected; else as `add`."""
        handle, address = _connection(fd, port)
        if handle is not None:
            handle.close()
            for client in [client for client in self._clients if client.address == address]:
                self._forget(client)

    def published(self, n_bytes: int) -> None:
        """Note an image of so many bytes on the wire."""
        for client in self._clients:
            client.given_bytes += n_bytes
            client.n_images += 1

    def look(self) -> None:
        """Ask the kernel how far each client is; forget those that have gone."""
        for client in list(self._clients):
            taken = _taken_bytes(client.handle)
            if taken is None:
                self._forget(client)
            elif client.n_images:
                self._account(client, taken - client.taken_bytes)

    def _forget(self, client: Client) -> None:
        self._n_lost_by_former += client.n_lost
        self._clients.remove(client)
        client.handle.close()

    def _account(self, client: Client, taken: int) -> None:
        image_bytes = client.given_bytes / client.n_images
        missing = client.given_bytes - taken
        lost = missing - (self._hwm + _IN_HAND) * image_bytes
        client.n_idle = client.n_idle + 1 if _unsent_bytes(client.handle) == 0 else 0
        if client.n_idle >= _IDLE_LOOKS:
            # Nothing waits for it: what was published some looks ago and is not with it was dropped. One
            # look is not enough, ZeroMQ's thread may be late on a busy machine.
            lost = max(lost, client.older_bytes[0] - taken)
        client.lost_bytes = max(client.lost_bytes, int(lost))
        client.n_lost = round(client.lost_bytes / image_bytes)
        client.n_behind = max(0, round(missing / image_bytes) - client.n_lost)
        client.older_bytes.append(client.given_bytes)

    def disconnect_slowest(self) -> str:
        """Break the connection of the client that is furthest behind: what its queue holds is freed.

        Returns
        -------
        str
            Its address; "" if nobody is behind. ZeroMQ clients connect again by themselves.
        """
        slowest = max(self._clients, key=lambda client: client.n_behind, default=None)
        if slowest is None or not slowest.n_behind:
            return ""
        try:
            slowest.handle.shutdown(socket.SHUT_RDWR)
        except OSError:
            return ""  # it went by itself
        return slowest.address

    def close(self) -> None:
        """Forget all."""
        for client in self._clients:
            client.handle.close()
        self._clients.clear()


def _connection(fd: int, port: int) -> tuple[socket.socket | None, str]:
    """Duplicate a descriptor; returns it and the peer's address if it is a connection to `port`."""
    try:
        handle = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None, ""
    try:
        if handle.getsockname()[1] == port:
            host, peer_port = handle.getpeername()[:2]
            return handle, f"{host}:{peer_port}"
    except (OSError, IndexError, TypeError):
        pass
    handle.close()
    return None, ""


def _taken_bytes(handle: socket.socket) -> int | None:
    """Return how many bytes the kernel took for a connection since it was made; None if it has ended."""
    info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if info[0] != _ESTABLISHED:
        return None
    acked: int = _BYTES_ACKED.unpack_from(info)[0]
    return acked + _unsent_bytes(handle)


def _unsent_bytes(handle: socket.socket) -> int:
    """Return how many bytes wait in the kernel for the peer to take them."""
    buffer = bytearray(4)
    fcntl.ioctl(handle, _SIOCOUTQ, buffer)
    return int.from_bytes(buffer, sys.byteorder)
