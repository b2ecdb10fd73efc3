"""Buffers that ZeroMQ sends from without copying, and that say themselves when they are free again.

pyzmq can do the same with `copy=False, track=True`, but tells of a sent message through a Python thread
and an event. That is 40 us a message (timed in a loop), where 1 MB takes 300 us on the wire.
"""

import ctypes
import errno
from typing import Final

import numpy as np
import zmq
from numba import cfunc

from tango_stddaq.closing import Closing
from tango_stddaq.errors import ChannelError
from tango_stddaq.io.zmq_calls import libzmq
from tango_stddaq.processing.native import swap_u64_if

_MESSAGE_BYTES: Final = 64
"""Size of a `zmq_msg_t`; part of ZeroMQ's stable interface."""
_KEPT: Final = 4
"""Buffers that are kept while nothing is sent."""

libzmq.zmq_msg_init_data.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] + [ctypes.c_void_p] * 2
libzmq.zmq_msg_send.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
libzmq.zmq_msg_close.argtypes = [ctypes.c_void_p]


@cfunc("void(uintp, uintp)", cache=True)
def _release(_data, flag):
    """Mark a buffer as free: ZeroMQ's own thread calls it when the last client has the bytes."""
    swap_u64_if(flag, 1, 0)


class SendBuffers(Closing):
    """A pool of equal buffers. The lowest free one is taken: its memory is still in the cache.

    It grows while slow clients' queues hold buffers, and shrinks when they let go of them.

    Parameters
    ----------
    n_bytes
        Size of a buffer.
    max_buffers
        Most there may be.
    """

    def __init__(self, n_bytes: int, max_buffers: int) -> None:
        self.n_bytes = n_bytes
        self.max_buffers = max(_KEPT, max_buffers)
        self._busy = np.zeros(self.max_buffers, np.uint64)
        self._arrays: list[np.ndarray] = [self._new() for _ in range(_KEPT)]
        self._message = np.zeros(_MESSAGE_BYTES // 8, np.uint64)
        self._highest = 0

    def _new(self) -> np.ndarray:
        array = np.empty(self.n_bytes, np.uint8)
        array[::4096] = 0  # touched here, not while an image is copied
        return array

    @property
    def n_busy(self) -> int:
        """Buffers that some client's queue holds."""
        return int(np.count_nonzero(self._busy))

    def free(self) -> int | None:
        """Return the number of a free buffer; None if clients hold all that there may be."""
        number = int(self._busy[: len(self._arrays)].argmin())
        if self._busy[number]:
            if len(self._arrays) == self.max_buffers:
                return None
            number = len(self._arrays)
            self._arrays.append(self._new())
        self._highest = max(self._highest, number)
        return number

    def __getitem__(self, number: int) -> np.ndarray:
        """Bytes of a buffer, (n_bytes,) uint8."""
        return self._arrays[number]

    def send(self, handle: "zmq.Socket[bytes]", number: int, n_bytes: int, flags: int = 0) -> None:
        """Send the first bytes of a free buffer; it stays busy until every client has them.

        Raises
        ------
        ChannelError
            If ZeroMQ refuses it.
        """
        message, flag = self._message.ctypes.data, self._busy.ctypes.data + 8 * number
        self._busy[number] = 1
        libzmq.zmq_msg_init_data(
            message, self._arrays[number].ctypes.data, n_bytes, _release.address, flag
        )
        while libzmq.zmq_msg_send(message, handle.underlying, flags) < 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:
                libzmq.zmq_msg_close(message)  # which frees the buffer
                raise ChannelError(f"live stream: not sent: {zmq.strerror(code)}")

    def shrink(self) -> None:
        """Give up the buffers that were not used since the last call."""
        keep = max(_KEPT, self._highest + 1)
        while len(self._arrays) > keep and not self._busy[len(self._arrays) - 1]:
            self._arrays.pop()
        self._highest = 0

    def close(self) -> None:
        """Let go of the memory; only after the context of the sockets has ended."""
        self._arrays.clear()
