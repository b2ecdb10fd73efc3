"""Ring buffers of images in shared memory: one owner, any number of writers and readers, no locks.

The data segment `/<detector_name>-<suffix>` has no header: slot `image_id % n_slots` starts at byte
`slot * slot_bytes`. Existing programs read and write it so. Our index lies in a segment of its own
(`.index`, see `processing/slots.py`) and makes an overwritten image known as lost.
"""

import fcntl
import mmap
import os
import time
from types import TracebackType
from typing import Final, Self

import numpy as np

from tango_stddaq.config import segment_bytes
from tango_stddaq.errors import RingError
from tango_stddaq.io import segment
from tango_stddaq.io.segment import Segment
from tango_stddaq.model import INVALID_IMAGE_ID
from tango_stddaq.processing.slots import (
    EMPTY_CLAIM,
    EPOCH_MASK,
    EPOCH_SHIFT,
    ID_MASK,
    INDEX_ENTRY,
    INDEX_HEADER,
    MAGIC,
    WRITING,
)

_MEMORY_RESERVE: Final = 0.95
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2


def index_name(name: str) -> str:
    """Return the name of the index segment of a ring."""
    return f"{name}.index"


class _Mapped:
    """The data segment of a ring and its index, as all three roles see them."""

    def __init__(self, data: Segment, index: Segment | None, n_slots: int, slot_bytes: int) -> None:
        self.name = data.name
        self.n_slots = n_slots
        self.slot_bytes = slot_bytes
        self._data = data
        self._index = index
        size = n_slots * slot_bytes
        if data.array.size < size:
            has = data.array.size
            self.close()
            raise RingError(
                f"/dev/shm/{self.name}: has {has} bytes, {n_slots} slots of {slot_bytes} bytes need "
                f"{size}; is it left over from another configuration?"
            )
        self._slots = data.array[:size].reshape(n_slots, slot_bytes)
        if index is None:
            self._header = np.zeros(1, INDEX_HEADER)
            self._entries = np.zeros(0, INDEX_ENTRY)
        else:
            self._header = index.array[: INDEX_HEADER.itemsize].view(INDEX_HEADER)
            entries = index.array[INDEX_HEADER.itemsize :]
            self._entries = entries[: n_slots * INDEX_ENTRY.itemsize].view(INDEX_ENTRY)
        # Plain word views: reading a field of a structured scalar costs ten times as much.
        words = self._entries.view("<u8").reshape(-1, 4)
        self._claims, self._generations, self._ids = words[:, 0], words[:, 1], words[:, 2]
        self._head_word = self._header.view("<u8")[4:5]
        self._retired_word = self._header.view("<u8")[6:7]

    @property
    def has_index(self) -> bool:
        """Whether overwritten slots can be told; False for a ring of an existing program."""
        return self._index is not None

    @property
    def retired(self) -> bool:
        """Whether the owner gave the ring up: attach anew."""
        return bool(self._retired_word[0])

    @property
    def base_address(self) -> int:
        """Address of slot 0."""
        return self._data.address

    @property
    def index_address(self) -> int:
        """Address of the index header; 0 if there is no index."""
        return self._index.address if self._index is not None else 0

    def slot(self, image_id: int) -> np.ndarray:
        """Return the bytes of the slot that `image_id` belongs to, (slot_bytes,) uint8, unchecked."""
        return self._slots[image_id % self.n_slots]

    def close(self) -> None:
        """Unmap; harmless when called again."""
        self._slots = np.empty((0, 0), np.uint8)
        self._header = np.zeros(1, INDEX_HEADER)
        self._entries = np.zeros(0, INDEX_ENTRY)
        empty = np.empty(0, np.uint64)
        self._claims = self._generations = self._ids = self._head_word = empty
        self._retired_word = np.ones(1, np.uint64)
        self._data.close()
        if self._index is not None:
            self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class RingOwner(_Mapped):
    """The one that creates a ring, publishes its images and removes it.

    A segment that is there already is taken over in place, so that programs which have it mapped
    keep working: resized, and its old pixels cleared.

    Parameters
    ----------
    name
        Segment name, `<detector_name>-<suffix>`.
    n_slots, slot_bytes
        Shape of the ring.

    Raises
    ------
    RingError
        If another living process owns it, if it does not fit the machine, or cannot be created.
    """

    def __init__(self, name: str, n_slots: int, slot_bytes: int) -> None:
        n_bytes = segment_bytes(n_slots, slot_bytes)
        index_bytes = INDEX_HEADER.itemsize + n_slots * INDEX_ENTRY.itemsize
        index_fd = _lock_index(name)
        try:
            _check_room(name, n_bytes, n_slots, slot_bytes)
            old_header = _read_header(index_fd)
            data_fd, created = segment.open_or_create(name)
            try:
                os.ftruncate(data_fd, n_bytes)
                if not created:
                    _punch(data_fd, n_bytes)
            except OSError:
                os.close(data_fd)
                raise
            os.ftruncate(index_fd, index_bytes)
        except OSError as error:
            os.close(index_fd)
            raise RingError(f"/dev/shm/{name}: cannot be set up: {error.strerror}") from error
        except RingError:
            os.close(index_fd)
            raise
        index = Segment(index_name(name), index_fd, index_bytes, writable=True)
        super().__init__(Segment(name, data_fd, n_bytes, writable=True), index, n_slots, slot_bytes)
        # An existing program made the data segment: it is not ours to remove.
        self._remove_data = created or old_header is not None
        self._entries["claim"] = EMPTY_CLAIM
        self._entries["image_id"] = INVALID_IMAGE_ID
        header = self._header
        header["n_slots"], header["slot_bytes"] = n_slots, slot_bytes
        header["epoch"] = (int(old_header["epoch"][0]) + 1 if old_header is not None else 1) & EPOCH_MASK
        header["head"] = INVALID_IMAGE_ID
        header["owner_pid"] = os.getpid()
        header["retired"] = 0
        header["magic"] = MAGIC

    def begin(self, image_id: int) -> np.ndarray:
        """Mark the slot as being written and return it; for a ring with a single writer."""
        slot = image_id % self.n_slots
        epoch = int(self._header["epoch"][0])
        self._claims[slot] = WRITING | epoch << EPOCH_SHIFT | image_id & ID_MASK
        return self._slots[slot]

    def publish(self, image_id: int) -> None:
        """Declare the pixels of `image_id` complete; readers may have them from now on."""
        slot = image_id % self.n_slots
        claim = int(self._claims[slot])
        epoch = claim >> EPOCH_SHIFT & EPOCH_MASK
        if claim & ID_MASK != image_id & ID_MASK:  # an existing program wrote it, without a claim
            epoch = int(self._header["epoch"][0])
        self._generations[slot] += np.uint64(1)
        self._ids[slot] = image_id
        self._claims[slot] = epoch << EPOCH_SHIFT | image_id & ID_MASK
        self._head_word[0] = image_id

    def is_reused(self, image_id: int) -> bool:
        """Return whether the slot is being written for another image already."""
        claim = int(self._claims[image_id % self.n_slots])
        return bool(claim & WRITING) and claim & ID_MASK != image_id & ID_MASK

    def close(self) -> None:
        """Retire the ring and remove what this owner created; harmless when called again."""
        if self._index is None or self._index.fd < 0:
            return
        self._header["retired"] = 1
        if self._remove_data:
            segment.unlink(self.name)
        segment.unlink(index_name(self.name))
        super().close()


class RingWriter(_Mapped):
    """A receiver's or converter's view of a ring that another process owns."""

    @classmethod
    def attach(cls, name: str, n_slots: int, slot_bytes: int) -> "RingWriter":
        """Map an existing ring for writing.

        Raises
        ------
        FileNotFoundError
            If there is none yet.
        RingError
            If its shape is not the expected one.
        """
        data = Segment.attach(name, writable=True)
        index = _attach_index(name, data, n_slots, slot_bytes, writable=True)
        return cls(data, index, n_slots, slot_bytes)


class RingReader(_Mapped):
    """A consumer's view of a ring."""

    @classmethod
    def attach(cls, name: str, n_slots: int, slot_bytes: int) -> "RingReader":
        """Map an existing ring for reading; errors as for `RingWriter.attach`."""
        data = Segment.attach(name, writable=False)
        index = _attach_index(name, data, n_slots, slot_bytes, writable=False)
        return cls(data, index, n_slots, slot_bytes)

    def ticket(self, image_id: int) -> int | None:
        """Return proof that the slot holds `image_id` now, None if it does not.

        Read the pixels, then ask `still(image_id, ticket)`. Without an index the proof is 0: nothing
        is known, and everything is believed.
        """
        if self._index is None:
            return 0
        slot = image_id % self.n_slots
        generation = int(self._generations[slot])
        claim = int(self._claims[slot])
        if claim & WRITING or claim & ID_MASK != image_id & ID_MASK:
            return None
        return generation if int(self._ids[slot]) == image_id else None

    def still(self, image_id: int, ticket: int) -> bool:
        """Return whether nothing was written to the slot since `ticket` was given."""
        return self.ticket(image_id) == ticket

    def copy(self, image_id: int, out: np.ndarray) -> bool:
        """Copy the first `out.size` bytes of an image.

        Parameters
        ----------
        out
            (n,) uint8, n <= slot_bytes.

        Returns
        -------
        bool
            False if the slot holds another image, or was overwritten during the copy: `out` is then
            rubbish and the image is lost.
        """
        ticket = self.ticket(image_id)
        if ticket is None:
            return False
        np.copyto(out, self._slots[image_id % self.n_slots, : out.size])
        return self.still(image_id, ticket)


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
            for name in (path.name.removesuffix(".index"), path.name):
                segment.unlink(name)
                removed.append(name)
        finally:
            os.close(fd)
    return removed


def _lock_index(name: str) -> int:
    """Open the index and lock it: the lock is what makes its holder the owner."""
    for _ in range(10):
        fd, _ = segment.open_or_create(index_name(name))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            header = _read_header(fd)
            os.close(fd)
            pid = int(header["owner_pid"][0]) if header is not None else "unknown"
            raise RingError(
                f"/dev/shm/{name}: is owned by process {pid}, which is alive; stop it first, or use "
                "another detector_name"
            ) from None
        try:
            same = os.stat(segment.SHM_DIR / index_name(name)).st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            same = False
        if same:
            return fd
        os.close(fd)  # its owner removed it between our open and our lock
        time.sleep(0.01)
    raise RingError(f"/dev/shm/{index_name(name)}: is created and removed all the time")


def _read_header(fd: int) -> np.ndarray | None:
    data = os.pread(fd, INDEX_HEADER.itemsize, 0)
    if len(data) < INDEX_HEADER.itemsize:
        return None
    header = np.frombuffer(data, INDEX_HEADER)
    return header if int(header["magic"][0]) == MAGIC else None


def _attach_index(
    name: str, data: Segment, n_slots: int, slot_bytes: int, writable: bool
) -> Segment | None:
    try:
        index = Segment.attach(index_name(name), writable)
    except FileNotFoundError:
        return None
    except RingError:
        data.close()
        raise
    header = (
        index.array[: INDEX_HEADER.itemsize].view(INDEX_HEADER)
        if (index.array.size >= INDEX_HEADER.itemsize + n_slots * INDEX_ENTRY.itemsize)
        else None
    )
    if header is None or int(header["magic"][0]) != MAGIC:
        # Half made, or its shape differs so much that the entries do not fit.
        size = index.array.size
        index.close()
        data.close()
        if size < INDEX_HEADER.itemsize or header is not None:
            raise FileNotFoundError(name)
        raise RingError(f"/dev/shm/{name}: its index is too small for {n_slots} slots")
    found = int(header["n_slots"][0]), int(header["slot_bytes"][0])
    if found != (n_slots, slot_bytes):
        index.close()
        data.close()
        raise RingError(
            f"/dev/shm/{name}: has {found[0]} slots of {found[1]} bytes, the configuration says "
            f"{n_slots} of {slot_bytes}; do all services use the same file?"
        )
    return index


def _check_room(name: str, n_bytes: int, n_slots: int, slot_bytes: int) -> None:
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
