"""Ring buffers of images in shared memory: one owner, any number of writers and readers, no locks.

The data segment `/<detector_name>-<suffix>` has no header: slot `image_id % n_slots` starts at byte
`slot * slot_bytes`. Existing programs read and write it so. Our index lies in a segment of its own
(`.index`, see `processing/slots.py`) and makes an overwritten image known as lost.
"""

import fcntl
import mmap
import os
import time
from contextlib import suppress
from typing import Final, Self

import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.config import DaqConfig
from tango_stddaq.config_entries import RingMemoryConfig
from tango_stddaq.config_sizes import segment_bytes
from tango_stddaq.errors import RingError
from tango_stddaq.io import ring_memory, segment
from tango_stddaq.io.segment import Segment
from tango_stddaq.model import INVALID_IMAGE_ID
from tango_stddaq.processing import slots
from tango_stddaq.processing.slots import (
    EMPTY_CLAIM,
    EPOCH_SHIFT,
    ID_MASK,
    INDEX_ENTRY,
    INDEX_HEADER,
    MAGIC,
    NO_EPOCH,
    WRITING,
    claim_slot,
    first_epoch,
    index_bytes,
    joined_epoch,
    masks_offset,
    next_epoch,
    publish_slots,
)

_MEMORY_RESERVE: Final = 0.95
_LOCK_TRIES: Final = 10
_LOCK_PERIOD_S: Final = 0.01
_PLAIN: Final = RingMemoryConfig()


def index_name(name: str) -> str:
    """Return the name of the index segment of a ring."""
    return f"{name}.index"


class _Mapped(Closing):
    """The data segment of a ring and its index, as all three roles see them."""

    def __init__(self, data: Segment, index: Segment | None, n_slots: int, slot_bytes: int) -> None:
        self.name = data.name
        self.n_slots = n_slots
        self.slot_bytes = slot_bytes
        self._data = data
        self._index = index
        self._index_path = str(segment.SHM_DIR / index_name(data.name))
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
        self._retired_word = self._header.view("<u8")[6:7]
        self.mask_words = int(self._header["mask_words"][0])
        self._masks = np.zeros((n_slots, 0), np.uint64)
        if index is not None and self.mask_words:
            masks = index.array[masks_offset(n_slots) :][: n_slots * self.mask_words * 8]
            self._masks = masks.view("<u8").reshape(n_slots, self.mask_words)

    @property
    def has_index(self) -> bool:
        """Whether overwritten slots can be told; False for a ring of an existing program."""
        return self._index is not None

    @property
    def retired(self) -> bool:
        """Whether to attach anew: the owner gave the ring up, or one came that keeps an index."""
        if self._index is None and os.path.exists(self._index_path):  # noqa: PTH110, for its speed
            return True
        return bool(self._retired_word[0])

    @property
    def base_address(self) -> int:
        """Address of slot 0."""
        return self._data.address

    @property
    def index_address(self) -> int:
        """Address of the index header; 0 if there is no index."""
        return self._index.address if self._index is not None else 0

    @property
    def masks_address(self) -> int:
        """Address of the packet masks of slot 0; 0 if there are none."""
        return self._masks.ctypes.data if self.mask_words else 0

    def missing_packets(self, image_id: int) -> np.ndarray | None:
        """Return the mask of missing packets of the slot that `image_id` belongs to, unchecked.

        Returns
        -------
        np.ndarray or None
            (mask_words,) uint64: a bit for each packet, set if it is missing; modules one behind the
            other, each begins with a new word. Where a module's frame came from an existing program
            its bits are clear, as that says only how many packets are missing. None if the ring
            keeps no masks.
        """
        return self._masks[image_id % self.n_slots] if self.mask_words else None

    def note_missing(self, image_id: int, first_word: int, words: np.ndarray) -> None:
        """Write a module's part of the mask of missing packets; nothing where the ring keeps none."""
        if self.mask_words:
            self._masks[image_id % self.n_slots, first_word : first_word + words.size] = words

    def slot(self, image_id: int) -> np.ndarray:
        """Return the bytes of the slot that `image_id` belongs to, (slot_bytes,) uint8, unchecked."""
        return self._slots[image_id % self.n_slots]

    def _prepare(self, memory: RingMemoryConfig, writable: bool = True, lock: bool = False) -> Self:
        """Map the memory as asked for; the ring is closed if that cannot be."""
        segments = [self._data, *([self._index] if self._index is not None else [])]
        try:
            ring_memory.prepare(segments, memory, writable, lock)
        except RingError:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Unmap; harmless when called again."""
        self._slots = np.empty((0, 0), np.uint8)
        self._header = np.zeros(1, INDEX_HEADER)
        self._entries = np.zeros(0, INDEX_ENTRY)
        empty = np.empty(0, np.uint64)
        self._claims = self._generations = self._ids = empty
        self._masks, self.mask_words = np.empty((0, 0), np.uint64), 0
        self._retired_word = np.ones(1, np.uint64)
        self._data.close()
        if self._index is not None:
            self._index.close()


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
    mask_words
        64-bit words of packet masks a slot; 0 for none.
    memory
        How it lies in memory.

    Raises
    ------
    RingError
        If another living process owns it, if it does not fit the machine, or cannot be created or
        mapped as asked for.
    """

    def __init__(
        self,
        name: str,
        n_slots: int,
        slot_bytes: int,
        mask_words: int = 0,
        memory: RingMemoryConfig = _PLAIN,
    ) -> None:
        slots.prepare()
        n_bytes = segment_bytes(n_slots, slot_bytes)
        n_index_bytes = index_bytes(n_slots, mask_words)
        index_fd = _lock_index(name)
        old_header = _read_header(index_fd)
        try:
            _check_room(name, n_bytes, n_slots, slot_bytes)
            # Never made smaller: whoever has it mapped would die of reading it.
            n_index_bytes = max(n_index_bytes, os.fstat(index_fd).st_size)
            os.ftruncate(index_fd, n_index_bytes)
        except (OSError, RingError) as error:
            if old_header is None:
                segment.unlink(index_name(name))
            os.close(index_fd)
            raise _set_up_error(name, error) from error
        index = Segment(index_name(name), index_fd, n_index_bytes, writable=True)
        # The index goes first: nobody may take the cleared pixels for those of an old image.
        _clear_index(index, n_slots, mask_words)
        try:
            data, created = _create_data(name, n_bytes)
        except (OSError, RingError) as error:
            segment.unlink(index_name(name))
            index.close()
            raise _set_up_error(name, error) from error
        super().__init__(data, index, n_slots, slot_bytes)
        adopted = not created and (old_header is None or bool(old_header["adopted"][0]))
        self._remove_data = not adopted
        header = self._header
        header["n_slots"], header["slot_bytes"] = n_slots, slot_bytes
        # Receivers that outlive a killed owner keep their epoch: in a new one they would be too late.
        header["epoch"] = int(old_header["epoch"][0]) if old_header is not None else 1
        header["head"] = EMPTY_CLAIM
        header["owner_pid"] = os.getpid()
        header["retired"] = 0
        header["adopted"] = adopted
        try:  # takes seconds, and an end that comes meanwhile shall leave nothing behind
            self._prepare(memory, lock=True)
        except BaseException:
            self.close()
            raise
        header["magic"] = MAGIC  # from now on others attach

    @classmethod
    def of_images(cls, config: DaqConfig, suffix: str, mask_words: int = 0) -> "RingOwner":
        """Become the owner of the ring of a suffix, with the sizes of the configuration."""
        sizes = config.sizes
        name = config.segment(suffix)
        return cls(name, sizes.n_slots, sizes.slot_bytes, mask_words, config.ring_memory)

    def copy_mask(self, image_id: int, source: "RingReader") -> None:
        """Take over which packets of an image are missing, from the ring that it was made of."""
        missing = source.missing_packets(image_id)
        if missing is not None and missing.size == self.mask_words:
            self.note_missing(image_id, 0, missing)

    def begin(self, image_id: int) -> np.ndarray:
        """Mark the slot as being written and return it; for a ring with a single writer."""
        slot = image_id % self.n_slots
        epoch = int(self._header["epoch"][0])
        self._claims[slot] = WRITING | epoch << EPOCH_SHIFT | image_id & ID_MASK
        return self._slots[slot]

    def publish(self, image_id: int) -> bool:
        """Declare the pixels of `image_id` complete; readers may have them from now on.

        Returns
        -------
        bool
            False if the slot is being written for another image already: nothing is published then.
        """
        return bool(self.publish_all(np.array([image_id], np.uint64).view(np.int64))[0])

    def publish_all(self, ids: np.ndarray) -> np.ndarray:
        """Publish several images: (n,) int64 ids, returns (n,) bool; as `publish`."""
        published = np.zeros(ids.size, bool)
        publish_slots(self.index_address, self.n_slots, ids, published)
        return published

    def keep(self) -> None:
        """Leave the data segment behind at the end, as existing programs do.

        Those that have it mapped know nothing of an owner that goes and comes: the next one takes the
        segment over in place.
        """
        self._remove_data = False
        self._header["adopted"] = True

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
    def attach(
        cls, name: str, n_slots: int, slot_bytes: int, memory: RingMemoryConfig = _PLAIN
    ) -> "RingWriter":
        """Map an existing ring for writing.

        Raises
        ------
        FileNotFoundError
            If there is none yet.
        RingError
            If its shape is not the expected one, or it cannot be mapped as asked for.
        """
        ring = cls(*_attach(name, n_slots, slot_bytes, writable=True), n_slots, slot_bytes)
        return ring._prepare(memory)

    @classmethod
    def attach_or_create(
        cls, name: str, n_slots: int, slot_bytes: int, memory: RingMemoryConfig = _PLAIN
    ) -> "RingWriter":
        """Map a ring for writing; create its data segment, without an index, if there is none.

        Existing programs do so: they know no owner. One of ours that comes later takes it over.

        Raises
        ------
        RingError
            If it cannot be created, or is of another shape.
        """
        with suppress(FileNotFoundError):
            return cls.attach(name, n_slots, slot_bytes, memory)
        n_bytes = segment_bytes(n_slots, slot_bytes)
        _check_room(name, n_bytes, n_slots, slot_bytes)
        try:
            data, _ = _create_data(name, n_bytes)
        except OSError as error:
            raise _set_up_error(name, error) from error
        return cls(data, None, n_slots, slot_bytes)._prepare(memory)

    def claim(self, image_id: int) -> int | None:
        """Claim the slot of an image for a writer whose ids go up, but for a restarted detector.

        Returns
        -------
        int or None
            The epoch that the image belongs to (0 without an index); None if it is too late for it.
        """
        if self._index is None:
            return NO_EPOCH
        index = self.index_address
        if self._epoch == NO_EPOCH:
            self._epoch = first_epoch(index, image_id)
        elif image_id <= self._last_id:
            self._epoch = next_epoch(index, self._epoch)
        else:
            self._epoch = joined_epoch(index, self._epoch, image_id, self.n_slots)
        self._last_id = image_id
        entry = index + INDEX_HEADER.itemsize + image_id % self.n_slots * INDEX_ENTRY.itemsize
        return self._epoch if claim_slot(entry, image_id, self._epoch) else None

    _epoch = NO_EPOCH
    _last_id = -1


class RingReader(_Mapped):
    """A consumer's view of a ring."""

    @classmethod
    def attach(
        cls, name: str, n_slots: int, slot_bytes: int, memory: RingMemoryConfig = _PLAIN
    ) -> "RingReader":
        """Map an existing ring for reading; errors as for `RingWriter.attach`."""
        ring = cls(*_attach(name, n_slots, slot_bytes, writable=False), n_slots, slot_bytes)
        return ring._prepare(memory, writable=False)

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
        if claim & WRITING or claim & ID_MASK != image_id & ID_MASK or image_id == INVALID_IMAGE_ID:
            return None
        return generation if int(self._ids[slot]) == image_id else None

    def still(self, image_id: int, ticket: int) -> bool:
        """Return whether nothing was written to the slot since `ticket` was given."""
        return self.ticket(image_id) == ticket

    def copy(self, image_id: int, out: np.ndarray, mask: np.ndarray | None = None) -> bool:
        """Copy the first `out.size` bytes of an image.

        Parameters
        ----------
        out
            (n,) uint8, n <= slot_bytes.
        mask
            (mask_words,) uint64: gets the mask of missing packets, zeros where the ring keeps none.

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
        if mask is not None:
            mask[:] = self._masks[image_id % self.n_slots] if self.mask_words == mask.size else 0
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
            if not _is_named(fd, path.name):
                continue  # its owner removed it just now, and what stands there is another's
            header = _read_header(fd)
            if header is not None and not header["adopted"][0]:
                data_name = path.name.removesuffix(".index")
                segment.unlink(data_name)
                removed.append(data_name)
            segment.unlink(path.name)
            removed.append(path.name)
        finally:
            os.close(fd)
    return removed


def _lock_index(name: str) -> int:
    """Open the index and lock it: the lock is what makes its holder the owner."""
    pid = "unknown"
    for _ in range(_LOCK_TRIES):
        fd, _ = segment.open_or_create(index_name(name))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody who looks for abandoned rings holds it for a moment only
            header = _read_header(fd)
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


def _clear_index(index: Segment, n_slots: int, mask_words: int) -> None:
    """Make an index one that says nothing of any slot, and that nobody attaches to."""
    header = index.array[: INDEX_HEADER.itemsize].view(INDEX_HEADER)
    header["magic"] = 0
    header["mask_words"] = mask_words
    room = index.array.size - INDEX_HEADER.itemsize
    entries = index.array[INDEX_HEADER.itemsize :][: room // INDEX_ENTRY.itemsize * INDEX_ENTRY.itemsize]
    entries.view(INDEX_ENTRY)["claim"] = EMPTY_CLAIM
    entries.view(INDEX_ENTRY)["image_id"] = INVALID_IMAGE_ID
    index.array[masks_offset(n_slots) :] = 0


def _create_data(name: str, n_bytes: int) -> tuple[Segment, bool]:
    """Create the data segment, or adopt the one that is there; returns it and whether it is new."""
    fd, created = segment.open_or_create(name)
    try:
        os.ftruncate(fd, n_bytes)
        if not created:
            _punch(fd, n_bytes)
    except OSError:
        if created:
            segment.unlink(name)
        os.close(fd)
        raise
    return Segment(name, fd, n_bytes, writable=True), created


def _set_up_error(name: str, error: OSError | RingError) -> RingError:
    if isinstance(error, RingError):
        return error
    return RingError(f"/dev/shm/{name}: cannot be set up: {error.strerror}")


def _read_header(fd: int) -> np.ndarray | None:
    data = os.pread(fd, INDEX_HEADER.itemsize, 0)
    if len(data) < INDEX_HEADER.itemsize:
        return None
    header = np.frombuffer(data, INDEX_HEADER)
    return header if int(header["magic"][0]) == MAGIC else None


def _attach(name: str, n_slots: int, slot_bytes: int, writable: bool) -> tuple[Segment, Segment | None]:
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
