"""The index of a ring: which image each slot holds, and whether it is being written right now.

The index is a segment of its own beside the header-less data segment, because existing programs know
nothing of it. One 64-bit word per slot, the *claim*, is what all parties agree on:

====  ======  ==================================================
bits  name    meaning
====  ======  ==================================================
63    writing the slot's pixels are being written
48-62 epoch   changes when image ids start again at a lower number
0-47  id      low 48 bits of the image id
====  ======  ==================================================

Several receivers may claim a slot for the same image at the same time (compare and swap); the ring's
owner alone publishes it. A reader is sure of its pixels when claim, generation and image id are the
same before and after it read them, and the claim is not being written.
"""

from typing import Final

import numpy as np
from numba import njit, uint64, uintp

from tango_stddaq.processing.native import load_u64, swap_u64_if

MAGIC: Final = int.from_bytes(b"STDQIDX1", "little")

INDEX_HEADER: Final = np.dtype(
    {
        "names": ["magic", "n_slots", "slot_bytes", "epoch", "head", "owner_pid", "retired"],
        "formats": ["<u8"] * 7,
        "offsets": [0, 8, 16, 24, 32, 40, 48],
        "itemsize": 4096,
    }
)
"""Start of the index segment. `head` is the image id published last (2**64-1: none yet), `retired` is
set when the owner gives the ring up: whoever has it mapped attaches anew."""

INDEX_ENTRY: Final = np.dtype(
    [("claim", "<u8"), ("generation", "<u8"), ("image_id", "<u8"), ("reserved", "<u8")]
)
"""One slot: `generation` counts the images published in it, `image_id` is the last of them."""

EPOCH_OFFSET: Final = 24
HEAD_OFFSET: Final = 32
WRITING: Final = 1 << 63
EPOCH_SHIFT: Final = 48
EPOCH_MASK: Final = 0x7FFF
ID_MASK: Final = (1 << EPOCH_SHIFT) - 1
MAX_IMAGE_ID: Final = ID_MASK - 1
"""Largest image id that a receiver takes from a packet; a larger one is a malformed header."""
NO_EPOCH: Final = 0
"""Of frames that come from an existing program, which knows no epochs."""
EMPTY_CLAIM: Final = ID_MASK
"""A slot that never held an image."""

_WRITING = uint64(WRITING)
_ID_MASK = uint64(ID_MASK)
_EPOCH_MASK = uint64(EPOCH_MASK)
_EPOCH_SHIFT = uint64(EPOCH_SHIFT)
_EMPTY = uint64(EMPTY_CLAIM)
_HALF = uint64(0x4000)


def is_later_epoch(epoch: int, than: int) -> bool:
    """Return whether an epoch came after another; they wrap around."""
    return 0 < (epoch - than) & EPOCH_MASK < 0x4000


@njit(cache=True, nogil=True)
def claim_slot(entry: int, image_id: int, epoch: int) -> bool:
    """Claim a slot for writing one image.

    Parameters
    ----------
    entry
        Address of its `INDEX_ENTRY`.
    image_id, epoch
        Of the image that shall be written.

    Returns
    -------
    bool
        False if the image is too late: it is published already, or the slot holds a newer one.
    """
    wanted = _WRITING | (uint64(epoch) << _EPOCH_SHIFT) | uint64(image_id)
    while True:
        found = load_u64(uintp(entry))
        if found == wanted:
            return True
        found_epoch = (found >> _EPOCH_SHIFT) & _EPOCH_MASK
        found_id = found & _ID_MASK
        if found_id != _EMPTY:
            if found_epoch == uint64(epoch):
                if found_id >= uint64(image_id):
                    return False
            elif ((found_epoch - uint64(epoch)) & _EPOCH_MASK) < _HALF:
                return False  # the ids started again, and this image is of the time before
        if swap_u64_if(uintp(entry), found, wanted):
            return True


@njit(cache=True, nogil=True)
def current_epoch(header: int) -> int:
    """Return the epoch of the index whose header stands at address `header`."""
    return int(load_u64(uintp(header + EPOCH_OFFSET)))


@njit(cache=True, nogil=True)
def published_head(header: int) -> int:
    """Return the image id published last (2**64-1: none) of the index at address `header`."""
    return load_u64(uintp(header + HEAD_OFFSET))


@njit(cache=True, nogil=True)
def next_epoch(header: int, mine: int) -> int:
    """Begin a new epoch, or join the one that another receiver has begun; returns it.

    Parameters
    ----------
    header
        Address of the index header.
    mine
        The caller's epoch: only who still has the current one begins a new one.
    """
    swap_u64_if(uintp(header + EPOCH_OFFSET), uint64(mine), uint64((mine + 1) & EPOCH_MASK))
    return int(load_u64(uintp(header + EPOCH_OFFSET)))
