"""Calls of libzmq for compiled loops: many messages with no Python for each.

What Python costs here is less its time than its size: on a core that also moves gigabytes a second, an
interpreter that is woken a thousand times a second finds none of itself in the cache.
"""

import ctypes
from typing import Final

import llvmlite.binding as llvm
import numpy as np
import zmq
import zmq.backend.cython._zmq as _backend
from numba import types, uint64, uintp

from tango_stddaq.errors import ChannelError
from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.native import errno_location

EAGAIN: Final = 11
EINTR: Final = 4
_POLLIN: Final = 1
_DONTWAIT: Final = 1

# The extension module is linked to the very libzmq that made the sockets, wherever that lies.
libzmq: Final = ctypes.CDLL(_backend.__file__, use_errno=True)
for _name in ("zmq_send", "zmq_recv", "zmq_poll"):
    llvm.add_symbol(_name, ctypes.cast(getattr(libzmq, _name), ctypes.c_void_p).value)

_zmq_send = types.ExternalFunction(
    "zmq_send", types.int32(types.uintp, types.uintp, types.uintp, types.int32)
)
_zmq_recv = types.ExternalFunction(
    "zmq_recv", types.int32(types.uintp, types.uintp, types.uintp, types.int32)
)
_zmq_poll = types.ExternalFunction("zmq_poll", types.int32(types.uintp, types.int32, types.int64))


def handle_of(socket: "zmq.Socket[bytes]") -> int:
    """Return the address by which libzmq knows a socket; 0 is none."""
    return int(socket.underlying)


def check(result: int) -> int:
    """Return what a compiled loop returned, if it is no error.

    Raises
    ------
    ChannelError
        If it is -errno, but for those that mean *later*.
    """
    if result < 0 and -result not in (EAGAIN, EINTR):
        raise ChannelError(f"ZeroMQ: {zmq.strerror(-result)}")
    return result


@inner
def wait(handle, timeout_ms):
    """Wait until there is a message, at most so long; returns whether there is."""
    item = np.zeros(2, np.uint64)  # struct zmq_pollitem_t: void *socket; int fd; short events, revents
    item[0] = uint64(handle)
    item[1] = uint64(_POLLIN) << uint64(32)
    n = _zmq_poll(uintp(item.ctypes.data), types.int32(1), np.int64(timeout_ms))
    return n > 0 and item[1] >> uint64(48) != 0  # used behind the call: otherwise it is freed before it


@inner
def receive(handle, address, n_bytes):
    """Take a message if one is there; returns its length, even if more than `n_bytes`, or -errno."""
    n = _zmq_recv(uintp(handle), uintp(address), uintp(n_bytes), types.int32(_DONTWAIT))
    return np.int64(n) if n >= 0 else -np.int64(errno_location()[0])


@inner
def send(handle, address, n_bytes):
    """Send a message if it can go out now; returns its length or -errno."""
    n = _zmq_send(uintp(handle), uintp(address), uintp(n_bytes), types.int32(_DONTWAIT))
    return np.int64(n) if n >= 0 else -np.int64(errno_location()[0])


@compiled
def receive_rows(handle, timeout_ms, rows, lengths):
    """Take messages until there are no more; waits for the first one.

    Parameters
    ----------
    rows, lengths
        (n, room) uint8 and (n,) int64: get the messages. Of one that is longer than `room` only so much.

    Returns
    -------
    int
        How many there are, or -errno.
    """
    n_messages = 0
    while n_messages < rows.shape[0]:
        n = receive(handle, np.int64(rows.ctypes.data) + n_messages * rows.shape[1], rows.shape[1])
        if n < 0:
            if n == -EINTR:
                continue
            if n != -EAGAIN:
                return n
            if n_messages or timeout_ms == 0 or not wait(handle, timeout_ms):
                break
            timeout_ms = 0
            continue
        lengths[n_messages] = n
        n_messages += 1
    return n_messages


@compiled
def send_rows(handle, rows, lengths, first, step):
    """Send every `step`-th row from `first` on until one must wait; returns how many went, or -errno.

    A row of negative length goes nowhere.
    """
    n_sent = 0
    for row in range(first, lengths.shape[0], step):
        if lengths[row] < 0:
            n_sent += 1
            continue
        n = send(handle, np.int64(rows.ctypes.data) + row * rows.shape[1], lengths[row])
        while n == -EINTR:
            n = send(handle, np.int64(rows.ctypes.data) + row * rows.shape[1], lengths[row])
        if n < 0:
            return n_sent if n == -EAGAIN else n
        n_sent += 1
    return n_sent
