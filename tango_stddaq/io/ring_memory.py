"""How the memory of a ring is mapped: faulted in beforehand, in huge pages, locked.

The calls go to libc through ctypes, which releases the GIL: to fault in 20 GB takes seconds, and the
module `mmap` would hold the GIL all the while.
"""

import ctypes
import errno
import logging
import mmap
import os
import resource
from pathlib import Path
from typing import Final

from tango_stddaq.config_entries import RingMemoryConfig
from tango_stddaq.errors import RingError
from tango_stddaq.io.segment import SHM_DIR, Segment

_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23
"""Linux 5.14; Python 3.11 does not name them."""
_SHMEM_POLICY: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_HUGE_MOUNTS: Final = ("huge=always", "huge=within_size", "huge=advise")

_log = logging.getLogger("tango_stddaq.ring")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def prepare(segments: list[Segment], memory: RingMemoryConfig, writable: bool, lock: bool) -> None:
    """Do to mapped segments what the configuration asks for.

    Parameters
    ----------
    segments
        Of one ring; the pixels come first, and they alone may get huge pages.
    writable
        Whether they are mapped for writing.
    lock
        Whether this is the mapping to lock. One locked mapping keeps the pages in memory for all.

    Raises
    ------
    RingError
        If the pages cannot be had or cannot be locked.
    """
    pixels = segments[0]
    if memory.huge_pages:
        _advise_huge(pixels)
    if memory.prefault:
        for entry in segments:
            _populate(entry, writable)
    if memory.lock and lock:
        for entry in segments:
            _lock(entry)


def why_no_huge_pages() -> str | None:
    """Return why the kernel gives no huge pages in `/dev/shm`; None if it may.

    A mount of tmpfs has a policy of its own, the option `huge`. The policy of the whole machine,
    `shmem_enabled`, stands above it only with the words `force` and `deny`.
    """
    try:
        policy = _SHMEM_POLICY.read_text()
    except OSError:
        return "this kernel has no transparent huge pages for shared memory"
    if "[force]" in policy:
        return None
    if "[deny]" in policy:
        return f"{_SHMEM_POLICY} is deny"
    if any(option in _HUGE_MOUNTS for option in _mount_options()):
        return None
    return (
        f"{SHM_DIR} is mounted without huge=advise; "
        f"`mount -o remount,huge=advise {SHM_DIR}` (as root) allows them"
    )


def _mount_options() -> list[str]:
    """Return the options of the file system in `/dev/shm`: of the mount that lies on top."""
    options: list[str] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, _, found, *_ = line.split()
        if where == str(SHM_DIR):
            options = found.split(",")
    return options


def _advise_huge(entry: Segment) -> None:
    reason = why_no_huge_pages()
    if reason is None and _libc.madvise(entry.address, entry.array.size, mmap.MADV_HUGEPAGE):
        reason = os.strerror(ctypes.get_errno())
    if reason is not None:
        _log.warning("/dev/shm/%s: no huge pages: %s", entry.name, reason)


def _populate(entry: Segment, writable: bool) -> None:
    advice = _MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ
    if not _libc.madvise(entry.address, entry.array.size, advice):
        return
    number = ctypes.get_errno()
    if number == errno.EINVAL:
        _log.warning(
            "/dev/shm/%s: not prefaulted: needs Linux 5.14 or newer; pages come as they are used",
            entry.name,
        )
        return
    raise RingError(
        f"/dev/shm/{entry.name}: {entry.array.size} bytes cannot be prefaulted: "
        f"{os.strerror(number)}; is there so much free memory? Else lower ring_slots or set "
        "ring_memory.prefault to false"
    )


def _lock(entry: Segment) -> None:
    if not _libc.mlock(entry.address, entry.array.size):
        return
    number = ctypes.get_errno()
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
    raise RingError(
        f"/dev/shm/{entry.name}: {entry.array.size} bytes cannot be locked: {os.strerror(number)}; "
        f"the limit of locked memory (RLIMIT_MEMLOCK, `ulimit -l`) of this process is {limit}: raise it "
        "(systemd: LimitMEMLOCK=infinity) or set ring_memory.lock to false"
    )
