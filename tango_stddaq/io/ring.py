"""Ring buffers of images in shared memory: one owner, any number of writers and readers, no locks.

The data segment `/<detector_name>-<suffix>` has no header: slot `image_id % n_slots` starts at byte
`slot * slot_bytes`. Existing programs read and write it so. Our index lies in a segment of its own
(`.index`, see `processing/slots.py`) and makes an overwritten image known as lost.
"""

import os
from contextlib import suppress
from typing import Final

import numpy as np

from tango_stddaq.config import DaqConfig
from tango_stddaq.config_entries import RingMemoryConfig
from tango_stddaq.config_sizes import segment_bytes
from tango_stddaq.errors import RingError
from tango_stddaq.io import ring_segments, segment
from tango_stddaq.io.mapped_ring import MappedRing
from tango_stddaq.io.ring_segments import index_name
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
    next_epoch,
    publish_slots,
)

_PLAIN: Final = RingMemoryConfig()


class RingOwner(MappedRing):
    """The one that creates a ring, publishes its images and removes it.

    A segment that is there already is taken over in place, so that programs which have it mapped
    keep working: resized, and cleared if it was one of ours.

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
        index_fd = ring_segments.lock_index(name)
        old_header = ring_segments.read_header(index_fd)
        try:
            ring_segments.check_room(name, n_bytes, n_slots, slot_bytes)
            # Never made smaller: whoever has it mapped would die of reading it.
            n_index_bytes = max(n_index_bytes, os.fstat(index_fd).st_size)
            os.ftruncate(index_fd, n_index_bytes)
        except (OSError, RingError) as error:
            if old_header is None:
                segment.unlink(index_name(name))
            os.close(index_fd)
            raise ring_segments.set_up_error(name, error) from error
        index = Segment(index_name(name), index_fd, n_index_bytes, writable=True)
        # The index goes first: nobody may take the cleared pixels for those of an old image.
        ring_segments.clear_index(index, n_slots, mask_words)
        try:
            # Existing programs write and announce without an owner: what they have announced lies there.
            ours = old_header is not None and not old_header["adopted"][0]
            data, created = ring_segments.create_data(name, n_bytes, clear=ours)
        except (OSError, RingError) as error:
            segment.unlink(index_name(name))
            index.close()
            raise ring_segments.set_up_error(name, error) from error
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

    def publish(self, image_id: int, epoch: int = NO_EPOCH) -> bool:
        """Declare the pixels of `image_id` complete; readers may have them from now on.

        Returns
        -------
        bool
            False if the slot is of another image already, be it one of the same id but another epoch:
            nothing is published then.
        """
        ids, published = np.array([image_id], np.uint64).view(np.int64), np.zeros(1, bool)
        publish_slots(self.index_address, self.n_slots, ids, np.array([epoch]), published)
        return bool(published[0])

    def keep(self) -> None:
        """Leave the data segment behind at the end, as existing programs do.

        Those that have it mapped know nothing of an owner that goes and comes: the next one takes the
        segment over in place.
        """
        self._remove_data = False
        self._header["adopted"] = True

    def is_reused(self, image_id: int, epoch: int = NO_EPOCH) -> bool:
        """Return whether the slot is of another image already, as for `publish`."""
        claim = int(self._claims[image_id % self.n_slots])
        if epoch != NO_EPOCH:
            return claim & ~WRITING != epoch << EPOCH_SHIFT | image_id & ID_MASK
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


class RingWriter(MappedRing):
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
        ring = cls(*ring_segments.attach(name, n_slots, slot_bytes, writable=True), n_slots, slot_bytes)
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
        ring_segments.check_room(name, n_bytes, n_slots, slot_bytes)
        try:
            data, _ = ring_segments.create_data(name, n_bytes)
        except OSError as error:
            raise ring_segments.set_up_error(name, error) from error
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


class RingReader(MappedRing):
    """A consumer's view of a ring."""

    @classmethod
    def attach(
        cls, name: str, n_slots: int, slot_bytes: int, memory: RingMemoryConfig = _PLAIN
    ) -> "RingReader":
        """Map an existing ring for reading; errors as for `RingWriter.attach`."""
        ring = cls(*ring_segments.attach(name, n_slots, slot_bytes, writable=False), n_slots, slot_bytes)
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
