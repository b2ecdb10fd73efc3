"""Shared-memory segments by their POSIX names, mapped into numpy arrays."""

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from tango_stddaq.errors import RingError

SHM_DIR: Final = Path("/dev/shm")
MODE: Final = 0o660
"""Owner and group only: no other user of the machine may read or write pixels."""


class Segment:
    """One mapped segment.

    Parameters
    ----------
    name
        As in `shm_open`, without the leading slash.
    fd
        Open descriptor; the segment takes it over.
    n_bytes
        Bytes to map.
    writable
        Whether the array may be written.
    """

    def __init__(self, name: str, fd: int, n_bytes: int, writable: bool) -> None:
        self.name = name
        self.fd = fd
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        try:
            self._map = mmap.mmap(fd, n_bytes, access=access)
        except (OSError, ValueError) as error:
            os.close(fd)
            raise RingError(f"/dev/shm/{name}: cannot be mapped: {error}") from error
        self.array = np.frombuffer(self._map, np.uint8)
        self.address = int(self.array.ctypes.data)
        """Where it is mapped. Kept: numpy takes microseconds to say it, and stages ask per image."""

    @property
    def is_removed(self) -> bool:
        """Whether its name was taken away: nobody else can find it any more."""
        return os.fstat(self.fd).st_nlink == 0

    def close(self) -> None:
        """Unmap; harmless when called again. Arrays still in use keep their memory mapped."""
        if self.fd < 0:
            return
        self.array = np.empty(0, np.uint8)
        self.address = 0
        with suppress(BufferError):  # a view is still held: the map goes with the last one
            self._map.close()
        os.close(self.fd)
        self.fd = -1

    @classmethod
    def attach(cls, name: str, writable: bool) -> "Segment":
        """Map an existing segment whole.

        Raises
        ------
        FileNotFoundError
            If there is none.
        RingError
            If it may not be opened.
        """
        flags = os.O_RDWR if writable else os.O_RDONLY
        try:
            fd = os.open(SHM_DIR / name, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RingError(f"/dev/shm/{name}: cannot be opened: {error.strerror}") from error
        n_bytes = os.fstat(fd).st_size
        if n_bytes == 0:  # its creator has not set the size yet
            os.close(fd)
            raise FileNotFoundError(name)
        return cls(name, fd, n_bytes, writable)


def open_or_create(name: str) -> tuple[int, bool]:
    """Open a segment for reading and writing; returns the descriptor and whether it is new."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        for _ in range(2):
            try:
                return os.open(SHM_DIR / name, flags), False
            except FileNotFoundError:
                pass
            try:
                fd = os.open(SHM_DIR / name, flags | os.O_CREAT | os.O_EXCL, MODE)
            except FileExistsError:
                continue
            os.fchmod(fd, MODE)  # whatever the umask is
            return fd, True
    except OSError as error:
        raise RingError(f"/dev/shm/{name}: cannot be created: {error.strerror}") from error
    raise RingError(f"/dev/shm/{name}: appears and vanishes; is another program creating it?")


def unlink(name: str) -> None:
    """Remove a segment; harmless if there is none."""
    (SHM_DIR / name).unlink(missing_ok=True)


def room_bytes() -> int:
    """Return how many bytes of new shared memory the machine can hold."""
    stat = os.statvfs(SHM_DIR)
    free = stat.f_bavail * stat.f_frsize
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min(free, int(line.split()[1]) * 1024)
    return free
