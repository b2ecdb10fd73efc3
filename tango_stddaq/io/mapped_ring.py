"""A mapped ring: its slots and its index, as owner, writers and readers all see them."""

import os
from typing import Self

import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.config_entries import RingMemoryConfig
from tango_stddaq.errors import RingError
from tango_stddaq.io import ring_memory, segment
from tango_stddaq.io.ring_segments import index_name
from tango_stddaq.io.segment import Segment
from tango_stddaq.processing.slots import INDEX_ENTRY, INDEX_HEADER, masks_offset


class MappedRing(Closing):
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
