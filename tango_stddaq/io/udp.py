"""UDP receive sockets, and the loop that lets the kernel lay packets where they belong."""

import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit, types, uint32, uint64, uintp

from tango_stddaq.errors import ReceiverError
from tango_stddaq.processing.assembly import (
    IDLE,
    MAX_FINISHED_PER_MESSAGE,
    Workspace,
    account,
    arm,
)
from tango_stddaq.processing.native import errno_location, poll, recvmmsg

WANTED_BUFFER_BYTES: Final = 256 * 2**20
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_MEMINFO_DROPS: Final = 8
_POLLIN: Final = 1
_DONTWAIT: Final = 0x40
_EAGAIN: Final = 11
_EINTR: Final = 4
_MAX_ROUNDS: Final = 64


@dataclass(slots=True)
class UdpSocket:
    """One bound port.

    Attributes
    ----------
    buffer_bytes
        Size of the kernel's receive buffer as it was granted.
    """

    handle: socket.socket
    port: int
    buffer_bytes: int

    @classmethod
    def bind(cls, port: int, host: str = "0.0.0.0") -> "UdpSocket":
        """Bind a port; detectors send to it from other hosts.

        Raises
        ------
        ReceiverError
            If it is in use or not allowed.
        """
        handle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            try:
                handle.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, WANTED_BUFFER_BYTES)
            except PermissionError:  # without CAP_NET_ADMIN net.core.rmem_max is the limit
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WANTED_BUFFER_BYTES)
            handle.setblocking(False)
            handle.bind((host, port))
        except OSError as error:
            handle.close()
            raise ReceiverError(
                f"UDP port {port}: cannot be bound: {error.strerror}; is another receiver running?"
            ) from error
        granted = handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        return cls(handle, handle.getsockname()[1], granted)

    def kernel_drops(self) -> int:
        """Return how many packets the kernel dropped because the receive buffer was full."""
        info = self.handle.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
        words = struct.unpack(f"{len(info) // 4}I", info)
        return words[_MEMINFO_DROPS] if len(words) > _MEMINFO_DROPS else 0

    def drain(self, limit: int = 1_000_000) -> int:
        """Drop the packets that wait, at most `limit`; returns how many they were."""
        for n in range(limit):
            try:
                self.handle.recv(1)
            except BlockingIOError:
                return n
        return limit


class PacketLoop:
    """Receives the packets of several sockets into the places that a workspace prescribes.

    Parameters
    ----------
    sockets
        One per source of the workspace, in its order.
    """

    def __init__(self, workspace: Workspace, sockets: list[UdpSocket]) -> None:
        self._workspace = workspace
        # struct pollfd: int fd; short events; short revents
        self._poll = np.zeros(len(sockets), np.dtype([("fd", "<i4"), ("ev", "<i2"), ("re", "<i2")]))
        self._poll["fd"] = [entry.handle.fileno() for entry in sockets]
        self._poll["ev"] = _POLLIN

    def turn(self, timeout_ms: int) -> int:
        """Wait for packets and take what is there; the GIL is free meanwhile.

        Returns
        -------
        int
            Packets received; 0 if none came within the timeout.

        Raises
        ------
        ReceiverError
            If a receive call fails.
        """
        workspace = self._workspace
        found = int(
            _receive(
                self._poll.view(np.int32).reshape(-1, 2),
                timeout_ms,
                *workspace._arrays(),
            )
        )
        if found < 0:
            raise ReceiverError(f"receiving failed: {os.strerror(-found)}")
        return found


@njit(cache=True, nogil=True)
def _receive(
    polls, timeout_ms, state, masks, first_headers, counters, offsets, rings, iov, messages,
    headers, scratch, armed, events, n_events, maps, geometry,
):  # fmt: skip
    """Poll, then take whole batches of every source that has some until nothing more is there.

    Returns as soon as frames were finished and every source was served once, so that they are
    announced without delay. A negative result is an errno.
    """
    n_sources = state.shape[0]
    batch = messages.shape[0]
    message_address = uintp(messages.ctypes.data)
    total = 0
    ready = poll(uintp(polls.ctypes.data), uint64(n_sources), types.int32(timeout_ms))
    if ready < 0:
        error = errno_location()[0]
        return 0 if error == _EINTR else -error
    if ready == 0:
        for source in range(n_sources):
            state[source, IDLE] += 1
        return 0
    for _ in range(_MAX_ROUNDS):
        served = 0
        for source in range(n_sources):
            if (polls[source, 1] >> 16) & 0x7FFF == 0:
                continue
            if n_events[0] + batch * MAX_FINISHED_PER_MESSAGE > events.shape[0]:
                return total
            arm(
                source, batch, state, masks, first_headers, counters, offsets, rings, iov, messages,
                headers, scratch, armed, events, n_events, maps, geometry,
            )  # fmt: skip
            n = recvmmsg(
                types.int32(polls[source, 0]), message_address, uint32(batch), types.int32(_DONTWAIT),
                uintp(0),
            )  # fmt: skip
            if n < 0:
                error = errno_location()[0]
                if error != _EAGAIN and error != _EINTR:
                    return -error
                polls[source, 1] &= 0xFFFF
                continue
            account(
                source, n, state, masks, first_headers, counters, offsets, rings, iov, messages,
                headers, scratch, armed, events, n_events, maps, geometry,
            )  # fmt: skip
            total += n
            if n < batch:
                polls[source, 1] &= 0xFFFF
            else:
                served += 1
        if served == 0 or n_events[0] > 0:
            break
    return total
