"""UDP receive sockets, and the loop that lets the kernel lay packets where they belong."""

import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import zmq
from numba import types, uint32, uint64, uintp

from tango_stddaq.detectors.layout import FRAME_HEADER_BYTES
from tango_stddaq.errors import ReceiverError
from tango_stddaq.io import zmq_calls
from tango_stddaq.io.channels import MAX_MESSAGE_BYTES
from tango_stddaq.io.zmq_calls import EAGAIN, EINTR
from tango_stddaq.processing.accounting import account
from tango_stddaq.processing.arming import arm
from tango_stddaq.processing.assembly import IDLE, MAX_FINISHED_PER_MESSAGE, Workspace
from tango_stddaq.processing.clock import CLOCK_MONOTONIC, monotonic_ns
from tango_stddaq.processing.columns import MAX_EVENTS, PACKETS
from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.frame_headers import FrameHeaders, fill_headers
from tango_stddaq.processing.native import clock_nanosleep, errno_location, poll, recvmmsg

WANTED_BUFFER_BYTES: Final = 256 * 2**20
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_SOL_UDP: Final = 17
_UDP_GRO: Final = 104
_MEMINFO_DROPS: Final = 8
_POLLIN: Final = 1
_DONTWAIT: Final = 0x40
_ANNOUNCED: Final = 2
_INTERVAL: Final = 3
_CALLS: Final = 8
"""Messages taken from one source in a row, where they come one by one, before the next is served."""
ANNOUNCE_NS: Final = 1_000_000
"""Many frames announced together cost little more than one alone."""
_TURN_NS: Final = 20_000_000
MAX_HEADERS: Final = MAX_MESSAGE_BYTES // FRAME_HEADER_BYTES
"""Headers in one message."""
_NAP_NS: Final = 100_000
_NAP_BUFFER_BYTES: Final = 16 * 2**20
"""A smaller receive buffer could run over while the loop naps."""


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
            with suppress(OSError):  # a kernel that cannot bundle datagrams hands them over one by one
                handle.setsockopt(_SOL_UDP, _UDP_GRO, 1)
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
        One per source of the workspace, in its order; none for a turn that only compiles the loop.
    announce_ns
        Frames are announced with those that follow them within so long.
    headers, missing, target
        To announce them without Python: their headers, (n_sources,) int64 to which the packets that
        they miss are added, and a PUSH socket. Without a socket, or where it takes nothing, a turn ends
        with finished frames in the workspace, for the caller to announce.
    """

    def __init__(
        self,
        workspace: Workspace,
        sockets: list[UdpSocket],
        announce_ns: int = ANNOUNCE_NS,
        headers: FrameHeaders | None = None,
        missing: np.ndarray | None = None,
        target: "zmq.Socket[bytes] | None" = None,
    ) -> None:
        room = len(workspace.events)
        if room < len(workspace.messages) * MAX_FINISHED_PER_MESSAGE:
            raise ValueError(f"room for {room} events: one receive call may finish more frames")
        self._workspace = workspace
        # struct pollfd: int fd; short events; short revents
        self._poll = np.zeros(len(sockets), np.dtype([("fd", "<i4"), ("ev", "<i2"), ("re", "<i2")]))
        self._poll["fd"] = [entry.handle.fileno() for entry in sockets]
        self._poll["ev"] = _POLLIN
        room = min((entry.buffer_bytes for entry in sockets), default=0)
        self._nap_ns = _NAP_NS if room >= _NAP_BUFFER_BYTES else 0
        # struct timespec, then when frames were announced last and how long to wait until the next time
        self._clock = np.array([0, 0, 0, announce_ns], np.int64)
        self._target = zmq_calls.handle_of(target) if target is not None and headers is not None else 0
        nothing = np.zeros((1, 1), np.uint8), np.zeros(1, np.int64), np.zeros((1, 8), np.int64)
        self._headers = (
            headers.arrays(workspace.events, missing)
            if headers is not None
            else (*nothing, np.zeros(1, np.int64), nothing[0])
        )

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
                self._nap_ns,
                self._clock,
                self._target,
                self._headers,
                *workspace.arrays(),
            )
        )
        if found < 0:
            raise ReceiverError(f"receiving failed: {os.strerror(-found)}")
        return found


@compiled
def _receive(
    polls, timeout_ms, nap_ns, clock, target, headers, table, offsets, iov, bundle_iov, messages, armed,
    n_events, maps, geometry,
):  # fmt: skip
    """Take packets and announce frames until the timeout, or until there are some to announce elsewhere.

    A frame is announced at once where none was for the interval, and otherwise with those that follow
    within it. A negative result is an errno.
    """
    n_sources = table.shape[0]
    start_ns = monotonic_ns(clock)
    waited_ms = np.int64(0)
    total = 0
    while True:
        wait_ms = max(0, timeout_ms - waited_ms) if n_events[0] == 0 else 0
        ready = poll(uintp(polls.ctypes.data), uint64(polls.shape[0]), types.int32(wait_ms))
        if ready < 0:
            error = errno_location()[0]
            return total if error == EINTR else -error
        if ready == 0 and n_events[0] == 0:
            if total == 0:
                for source in range(n_sources):
                    table[source, IDLE] += 1
            return total
        n = _drain(
            start_ns, polls, clock, table, offsets, iov, bundle_iov, messages, armed, n_events, maps,
            geometry,
        )  # fmt: skip
        if n < 0:
            return n
        total += n
        now_ns = monotonic_ns(clock)
        waited_ms = (now_ns - start_ns) // 1_000_000
        is_full = n_events[0] + messages.shape[0] * MAX_FINISHED_PER_MESSAGE > geometry[MAX_EVENTS]
        is_due = nap_ns == 0 or is_full or now_ns - clock[_ANNOUNCED] >= clock[_INTERVAL]
        if n_events[0] > 0 and is_due:
            clock[_ANNOUNCED] = now_ns
            _announce(target, headers, n_events)
            if n_events[0] > 0:
                return total
        if waited_ms >= timeout_ms:
            return total
        # To be woken for every message costs more than to take it: a little later there are several.
        if nap_ns > 0:
            clock[0], clock[1] = 0, nap_ns
            clock_nanosleep(
                types.int32(CLOCK_MONOTONIC), types.int32(0), uintp(clock.ctypes.data), uintp(0)
            )


@inner
def _announce(target, headers, n_events):
    """Send the headers of finished frames; where they cannot go out now the events stay."""
    events, modules, rows, missing, out = headers
    if target == 0 or n_events[0] > MAX_HEADERS:
        return
    kept = missing.copy()
    fill_headers(n_events[0], events, modules, rows, missing, out)
    n_bytes = n_events[0] * FRAME_HEADER_BYTES
    if zmq_calls.send(target, out.ctypes.data, n_bytes) < 0:
        missing[:] = kept
    else:
        n_events[0] = 0


@inner
def _drain(
    start_ns, polls, clock, table, offsets, iov, bundle_iov, messages, armed, n_events, maps, geometry
):  # fmt: skip
    """Take what the sources have that are ready, in turn; returns packets, or minus an errno."""
    batch = messages.shape[0]
    total = 0
    while True:
        n_ready = 0
        for source in range(table.shape[0]):
            for _ in range(_CALLS):
                if (polls[source, 1] >> 16) & 0x7FFF == 0:
                    break
                if n_events[0] + batch * MAX_FINISHED_PER_MESSAGE > geometry[MAX_EVENTS]:
                    return total
                wanted = arm(source, batch, table, offsets, iov, bundle_iov, messages, armed, geometry)
                n = recvmmsg(
                    types.int32(polls[source, 0]), uintp(messages.ctypes.data), uint32(wanted),
                    types.int32(_DONTWAIT), uintp(0),
                )  # fmt: skip
                if n < 0:
                    error = errno_location()[0]
                    if error != EAGAIN and error != EINTR:
                        return -error
                    polls[source, 1] &= 0xFFFF
                    break
                before = table[source, PACKETS]
                account(
                    source, n, table, offsets, iov, bundle_iov, messages, armed, n_events, maps, geometry
                )  # fmt: skip
                total += table[source, PACKETS] - before
                if n < wanted:
                    polls[source, 1] &= 0xFFFF
                if wanted > 1:
                    break
            n_ready += (polls[source, 1] >> 16) & 0x7FFF != 0
        now_ns = monotonic_ns(clock)
        is_due = n_events[0] > 0 and now_ns - clock[_ANNOUNCED] >= clock[_INTERVAL]
        if n_ready == 0 or is_due or now_ns - start_ns > _TURN_NS:
            return total
