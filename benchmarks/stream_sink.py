"""A subscriber that drops what it receives in the kernel, as if it were on another machine.

Called as `stream_client` is. It speaks just enough of ZMTP 3.0 to subscribe to everything, reads the
head of each frame, and lets the kernel throw its body away (MSG_TRUNC): a client on this machine takes a
core that a real one has to itself.
"""

import ctypes
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.stream_client import BYTES, N_IMAGES, N_TIMES, TIMES, shared

_GREETING: Final = (
    b"\xff" + bytes(8) + b"\x7f" + bytes((3, 0)) + b"NULL".ljust(20, b"\0") + bytes(1) + bytes(31)
)
_MORE, _LONG, _COMMAND = 1, 2, 4
_READY_BODY: Final = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 3) + b"SUB"
_READY: Final = bytes((_COMMAND, len(_READY_BODY))) + _READY_BODY
_SUBSCRIBE: Final = bytes((0, 1)) + b"\x01"
_MSG_TRUNC: Final = 0x20
_recv: Final = ctypes.CDLL(None, use_errno=True).recv
_recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_recv.restype = ctypes.c_ssize_t


def main(address: str, path: str, client: str) -> None:
    """Receive until killed."""
    words = shared(Path(path))[int(client)]
    handle = _connect(address)
    handle.sendall(_GREETING + _READY)
    _exactly(handle, len(_GREETING))
    _frame(handle)
    handle.sendall(_SUBSCRIBE)
    n_images = 0
    while True:
        flags, n_bytes = _frame(handle)
        if flags & (_COMMAND | _MORE):
            continue
        words[TIMES + n_images % N_TIMES] = time.monotonic_ns()
        n_images += 1
        words[BYTES] = n_bytes
        words[N_IMAGES] = n_images


def _connect(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").partition(":")
    while True:
        try:
            return socket.create_connection((host, int(port)))
        except ConnectionRefusedError:
            time.sleep(0.05)


def _exactly(handle: socket.socket, n_bytes: int) -> bytes:
    data = handle.recv(n_bytes, socket.MSG_WAITALL)
    if len(data) < n_bytes:
        sys.exit(0)
    return data


def _frame(handle: socket.socket) -> tuple[int, int]:
    """Read the head of a frame and drop its body; returns its flags and length."""
    flags = _exactly(handle, 1)[0]
    n_bytes = struct.unpack(">Q", _exactly(handle, 8))[0] if flags & _LONG else _exactly(handle, 1)[0]
    left = n_bytes
    while left:
        n = _recv(handle.fileno(), None, left, _MSG_TRUNC)
        if n <= 0:
            sys.exit(0)
        left -= n
    return flags, n_bytes


if __name__ == "__main__":
    main(*sys.argv[1:])
