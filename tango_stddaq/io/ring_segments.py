"""How the two segments of a ring, its data and its index, come to be, are found and go."""

import fcntl
import mmap
import os
import time
from contextlib import suppress
from typing import Final

import numpy as np

from tango_stddaq.errors import RingError
from tango_stddaq.io import segment
from tango_stddaq.io.segment import Segment
from tango_stddaq.model import INVALID_IMAGE_ID
from tango_stddaq.processing.slots import (
    EMPTY_CLAIM,
    INDEX_ENTRY,
    INDEX_HEADER,
    MAGIC,
    index_bytes,
    masks_offset,
)

_MEMORY_RESERVE: Final = 0.95
_LOCK_TRIES: Final = 10
_LOCK_PERIOD_S: Final = 0.01


def index_name(name: str) -> str:
    """Return the name of the index segment of a ring."""
    return f"{name}.index"


def remove_abandoned(detector_name: str) -> list[str]:
    """Remove the rings of a detector whose owner died; returns the names of the segments removed."""
    removed = []
    for path in sorted(segment.SHM_DIR.glob(f"{detector_name}-*.index")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its owner lives
        else:
            if not _is_named(fd, path.name):
                continue  # its owner removed it just now, and what stands there is another's
            header = read_header(fd)
            if header is not None and not header["adopted"][0]:
                data_name = path.name.removesuffix(".index")
                segment.unlink(data_name)
                removed.append(data_name)
            segment.unlink(path.name)
            removed.append(path.name)
        finally:
            os.close(fd)
    return removed


def lock_index(name: str) -> int:
    """Open the index and lock it: the lock is what makes its holder the owner."""
    pid = "unknown"
    for _ in range(_LOCK_TRIES):
        fd, _ = segment.open_or_create(index_name(name))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody who looks for abandoned rings holds it for a moment only
            header = read_header(fd)
            pid = str(header["owner_pid"][0]) if header is not None else pid
        else:
            if _is_named(fd, index_name(name)):
                return fd
        os.close(fd)  # or its owner removed it between our open and our lock
        time.sleep(_LOCK_PERIOD_S)
    raise RingError(
        f"/dev/shm/{name}: is owned by process {pid}, which is alive; stop it first, or use another "
        "detector_name"
    )


def _is_named(fd: int, name: str) -> bool:
    """Return whether a segment still goes by this name, and was not removed since it was opened."""
    try:
        return os.stat(segment.SHM_DIR / name).st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def clear_index(index: Segment, n_slots: int, mask_words: int) -> None:
    """Make an index one that says nothing of any slot, and that nobody attaches to."""
    header = index.array[: INDEX_HEADER.itemsize].view(INDEX_HEADER)
    header["magic"] = 0
    header["mask_words"] = mask_words
    room = index.array.size - INDEX_HEADER.itemsize
    entries = index.array[INDEX_HEADER.itemsize :][: room // INDEX_ENTRY.itemsize * INDEX_ENTRY.itemsize]
    entries.view(INDEX_ENTRY)["claim"] = EMPTY_CLAIM
    entries.view(INDEX_ENTRY)["image_id"] = INVALID_IMAGE_ID
    index.array[masks_offset(n_slots) :] = 0


def create_data(name: str, n_bytes: int, clear: bool = False) -> tuple[Segment, bool]:
    """Create the data segment, or adopt the one that is there; returns it and whether it is new.

    One that is there is cleared if asked for.
    """
    fd, created = segment.open_or_create(name)
    try:
        os.ftruncate(fd, n_bytes)
        if clear and not created:
            _punch(fd, n_bytes)
    except OSError:
        if created:
            segment.unlink(name)
        os.close(fd)
        raise
    return Segment(name, fd, n_bytes, writable=True), created


def set_up_error(name: str, error: OSError | RingError) -> RingError:
    """Return the error of a ring that could not be made."""
    if isinstance(error, RingError):
        return error
    return RingError(f"/dev/shm/{name}: cannot be set up: {error.strerror}")


def read_header(fd: int) -> np.ndarray | None:
    """Return the header of an index; None if its owner has not finished it."""
    data = os.pread(fd, INDEX_HEADER.itemsize, 0)
    if len(data) < INDEX_HEADER.itemsize:
        return None
    header = np.frombuffer(data, INDEX_HEADER)
    return header if int(header["magic"][0]) == MAGIC else None


def attach(name: str, n_slots: int, slot_bytes: int, writable: bool) -> tuple[Segment, Segment | None]:
    """Map the two segments of a ring; both are closed when they cannot be used."""
    data = Segment.attach(name, writable)
    index = None
    try:
        with suppress(FileNotFoundError):
            index = Segment.attach(index_name(name), writable)
        if data.is_removed:  # by its owner, since we opened it: an index may be another's already
            raise FileNotFoundError(name)
        if index is not None:
            _check_index(name, index, n_slots, slot_bytes)
    except (FileNotFoundError, RingError):
        data.close()
        if index is not None:
            index.close()
        raise
    return data, index


def _check_index(name: str, index: Segment, n_slots: int, slot_bytes: int) -> None:
    if index.array.size < INDEX_HEADER.itemsize:
        raise FileNotFoundError(name)
    header = index.array[: INDEX_HEADER.itemsize].view(INDEX_HEADER)
    if int(header["magic"][0]) != MAGIC:  # its owner has not finished it yet
        raise FileNotFoundError(name)
    found = int(header["n_slots"][0]), int(header["slot_bytes"][0])
    if found != (n_slots, slot_bytes):
        raise RingError(
            f"/dev/shm/{name}: has {found[0]} slots of {found[1]} bytes, the configuration says "
            f"{n_slots} of {slot_bytes}; do all services use the same file?"
        )
    if index.array.size < index_bytes(n_slots, int(header["mask_words"][0])):
        raise RingError(f"/dev/shm/{name}: its index is too small for {n_slots} slots")


def check_room(name: str, n_bytes: int, n_slots: int, slot_bytes: int) -> None:
    """Check that the machine has the memory.

    Raises
    ------
    RingError
        If it has not; the text says how large a ring may be.
    """
    try:
        taken = os.stat(segment.SHM_DIR / name).st_blocks * 512
    except FileNotFoundError:
        taken = 0
    room = int(segment.room_bytes() * _MEMORY_RESERVE) + taken
    if n_bytes > room:
        raise RingError(
            f"/dev/shm/{name}: {n_slots} slots of {slot_bytes} bytes need {n_bytes / 2**30:.1f} GiB, "
            f"this machine has room for {room / 2**30:.1f} GiB; set ring_slots to at most "
            f"{room // slot_bytes} or lower ram_buffer_gb"
        )


def _punch(fd: int, n_bytes: int) -> None:
    """Clear a segment in place: whoever has it mapped sees zeros, and its pages are given back."""
    with mmap.mmap(fd, n_bytes) as view:
        view.madvise(mmap.MADV_REMOVE)
