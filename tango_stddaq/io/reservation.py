"""Room on the disk that is taken before it is written: HDF5 does not survive a disk that says no."""

import ctypes
import errno
import os
from typing import Final

_KEEP_SIZE: Final = 1
_CANNOT: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_libc = ctypes.CDLL(None, use_errno=True)


def reserve(fd: int, start: int, end: int) -> bool:
    """Let the file system find room for the bytes `start` to `end` of a file; its length stays.

    Returns
    -------
    bool
        False where the file system, like NFS before 4.2, cannot be asked.

    Raises
    ------
    OSError
        If there is no room, or a quota is met.
    """
    if _libc.fallocate(fd, _KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(end - start)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number))
