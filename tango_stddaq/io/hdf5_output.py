"""HDF5 files that are written, of which an error stays their own.

After a write that failed HDF5 cannot close a file any more, tries to write to it for as long as the
process lives, and takes each new file that gets its inode number for the same one. So it opens another
file, in memory, in whose place the real one is put; and the real one is taken away from it in the end.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import h5py

from tango_stddaq.io.creation import FILE_ERRORS, Place
from tango_stddaq.io.reservation import reserve

LIBVER: Final = ("v110", "v110")
_IN_MEMORY: Final = Path("/dev/shm")
"""A file system that does not give an inode number again."""
_PREFIX: Final = "hdf5-"
_HEAD_BYTES: Final = 64 * 1024
"""All that HDF5 reads again when it closes a file lies in its first bytes."""
_MARGIN_BYTES: Final = 2**18
_broken: list[Any] = []
"""Files that HDF5 could not close: when they are collected it complains of them again and again."""


def create(place: Place, **options: Any) -> tuple[Any, int]:
    """Create a file.

    Parameters
    ----------
    options
        For `h5py.File`.

    Returns
    -------
    tuple
        The file as h5py has it, and a descriptor of it; `let_go` closes both.

    Raises
    ------
    OSError
        If it cannot be created.
    """
    fd = os.open(place.hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    h5: Any = None
    try:
        h5 = _stand_in(options)
        handle = h5.id.get_vfd_handle()
        os.pwrite(fd, os.pread(handle, _HEAD_BYTES, 0), 0)
        os.dup2(fd, handle, inheritable=False)
    except BaseException:
        if h5 is not None:
            h5.close()
        os.close(fd)
        raise
    return h5, fd


def _stand_in(options: dict[str, Any]) -> Any:
    """Create a file in memory, which is gone when HDF5 closes it."""
    for path in _IN_MEMORY.glob(f"{_PREFIX}*"):  # of processes killed right here
        if not Path(f"/proc/{path.name.split('-')[1]}").exists():
            with suppress(OSError):
                path.unlink()
    path = _IN_MEMORY / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        return h5py.File(path, "x", libver=LIBVER, locking=False, **options)
    finally:
        path.unlink(missing_ok=True)


def let_go(h5: Any, fd: int) -> None:
    """Close a file; what HDF5 still writes goes nowhere, and never fails."""
    nowhere = os.memfd_create("hdf5")
    try:
        os.pwrite(nowhere, os.pread(fd, _HEAD_BYTES, 0), 0)
        os.dup2(nowhere, h5.id.get_vfd_handle(), inheritable=False)
        h5.close()
    except FILE_ERRORS:
        _broken.append(h5)
    finally:
        os.close(nowhere)
        os.close(fd)


@contextmanager
def created(place: Place, n_bytes: int) -> Iterator[Any]:
    """Create a file, and close it with all that was written; owner and mode are those of the rules.

    Parameters
    ----------
    n_bytes
        Of rows that it will hold: there is room for them, and for what goes with them, before HDF5
        writes.

    Raises
    ------
    OSError, RuntimeError, ValueError
        If it cannot be created or written.
    """
    h5, fd = create(place)
    try:
        reserve(fd, 0, n_bytes + _MARGIN_BYTES)
        yield h5
        h5.flush()
        os.ftruncate(fd, os.fstat(fd).st_size)  # gives back what was reserved and not needed
        place.adopt(fd)
        h5.close()
    finally:
        if h5:
            let_go(h5, fd)
        else:
            os.close(fd)
