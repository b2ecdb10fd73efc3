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
from numba import uint64, uintp

from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.native import load_u64, swap_u64_if, write_u64

MAGIC: Final = int.from_bytes(b"STDQIDX2", "little")

INDEX_HEADER: Final = np.dtype(
    {
        "names": ["magic", "n_slots", "slot_bytes", "epoch", "head", "owner_pid", "retired", "adopted",
                  "mask_words"],
        "formats": ["<u8"] * 9,
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64],
        "itemsize": 4096,
    }
)  # fmt: skip
"""Start of the index segment. `head` is the claim published last (`EMPTY_CLAIM`: none yet), `retired` is
set when the owner gives the ring up: whoever has it mapped attaches anew. `adopted` is set when an
existing program made the data segment: it is not ours to remove. Behind the entries of all slots stand
`mask_words` 64-bit words a slot: a bit for every packet of every module, set if it is missing."""

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
_HEADER_BYTES: Final = INDEX_HEADER.itemsize
_ENTRY_BYTES: Final = INDEX_ENTRY.itemsize


@compiled
def is_later_epoch(epoch: int, than: int) -> bool:
    """Return whether an epoch came after another; they wrap around."""
    return 0 < (epoch - than) & EPOCH_MASK < 0x4000


def prepare() -> None:
    """Compile, or load, what Python calls here: the first image shall not wait for it."""
    index = np.zeros(index_bytes(1, 0), np.uint8)
    header, entry = index.ctypes.data, index.ctypes.data + INDEX_HEADER.itemsize
    first_epoch(header, 1)
    joined_epoch(header, 0, 1, 1)
    claim_slot(entry, 1, next_epoch(header, 0))
    one = np.ones(1, np.int64)
    publish_slots(header, 1, one, one, np.zeros(1, bool))


def masks_offset(n_slots: int) -> int:
    """Return where in the index the packet masks begin, in bytes."""
    return INDEX_HEADER.itemsize + n_slots * INDEX_ENTRY.itemsize


def index_bytes(n_slots: int, mask_words: int) -> int:
    """Return the size of an index."""
    return masks_offset(n_slots) + n_slots * mask_words * 8


@compiled
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


@compiled
def holds_slot(entry: int, image_id: int, epoch: int) -> bool:
    """Return whether a slot is still claimed for writing this image; arguments as in `claim_slot`."""
    return load_u64(uintp(entry)) == _WRITING | (uint64(epoch) << _EPOCH_SHIFT) | uint64(image_id)


@compiled
def publish_slots(
    index: int, n_slots: int, ids: np.ndarray, epochs: np.ndarray, published: np.ndarray
) -> None:
    """Declare the pixels of images complete: turn their claims into published ones.

    An image of an epoch lies only where it was claimed for: the slot may hold the image of the same id
    since ids started again, and nothing since its owner was restarted.

    Parameters
    ----------
    index
        Address of the index header.
    ids, epochs
        (n,) int64 each; `NO_EPOCH` if it is not known.
    published
        (n,) bool, gets whether each was; False if its slot is of another image already.
    """
    entries = index + _HEADER_BYTES
    for i in range(ids.shape[0]):
        image_id = uint64(ids[i])
        entry = entries + np.int64(image_id % uint64(n_slots)) * _ENTRY_BYTES
        claim = load_u64(uintp(entry))
        epoch = (claim >> _EPOCH_SHIFT) & _EPOCH_MASK
        published[i] = False
        if epochs[i] != NO_EPOCH and not _is_for(claim, ids[i], epochs[i]):
            continue
        if claim & _ID_MASK != image_id & _ID_MASK:
            if claim & _WRITING:
                continue
            epoch = uint64(current_epoch(index))  # an existing program wrote it, without a claim
        # Generation and id first: a reader that sees the new claim shall see them as well.
        write_u64(uintp(entry + 8), load_u64(uintp(entry + 8)) + uint64(1))
        write_u64(uintp(entry + 16), image_id)
        now = (epoch << _EPOCH_SHIFT) | (image_id & _ID_MASK)
        if swap_u64_if(uintp(entry), claim, now):
            write_u64(uintp(index + HEAD_OFFSET), now)
            published[i] = True


@inner
def _is_for(claim: int, image_id: int, epoch: int) -> bool:
    wanted = (uint64(epoch) << _EPOCH_SHIFT) | (uint64(image_id) & _ID_MASK)
    return claim == wanted or claim == (wanted | _WRITING)


@compiled
def is_of_other_epoch(index: int, n_slots: int, image_id: int, epoch: int) -> bool:
    """Return whether a slot is of an image of this id, but of another epoch.

    Who asks for it by its id gets the pixels of that one.
    """
    entry = index + _HEADER_BYTES + np.int64(uint64(image_id) % uint64(n_slots)) * _ENTRY_BYTES
    claim = load_u64(uintp(entry))
    is_same_id = claim & _ID_MASK == uint64(image_id) & _ID_MASK
    return epoch != NO_EPOCH and is_same_id and not _is_for(claim, image_id, epoch)


@compiled
def current_epoch(header: int) -> int:
    """Return the epoch of the index whose header stands at address `header`."""
    return int(np.int64(load_u64(uintp(header + EPOCH_OFFSET))))


@compiled
def next_epoch(header: int, mine: int) -> int:
    """Begin a new epoch, or join the one that another receiver has begun; returns it.

    Parameters
    ----------
    header
        Address of the index header.
    mine
        The caller's epoch: only who still has the current one begins a new one.
    """
    swap_u64_if(uintp(header + EPOCH_OFFSET), uint64(mine), uint64(1 + mine % EPOCH_MASK))
    return int(np.int64(load_u64(uintp(header + EPOCH_OFFSET))))


@compiled
def first_epoch(header: int, image_id: int) -> int:
    """Return the epoch for a receiver whose first image is `image_id`.

    It is a new one if a later image was published already in the current one: the ids have started
    again. While nothing is published in the current epoch another receiver has just begun it.
    """
    epoch = current_epoch(header)
    head = load_u64(uintp(header + HEAD_OFFSET))
    if _published_in(head, epoch) and uint64(image_id) <= head & _ID_MASK:
        return next_epoch(header, epoch)
    return epoch


@compiled
def joined_epoch(header: int, mine: int, image_id: int, n_slots: int) -> int:
    """Return the epoch for a receiver whose ids go on: its own, or one that it was left out of.

    Another receiver may have taken a straggler for a restart. The images published since then tell: in
    a true restart they are far below the ids of a receiver that still has frames of the time before.
    """
    epoch = current_epoch(header)
    if epoch != mine:
        head = load_u64(uintp(header + HEAD_OFFSET))
        last = head & _ID_MASK
        if _published_in(head, epoch) and last < uint64(image_id) <= last + uint64(n_slots):
            return epoch
    return mine


@inner
def _published_in(head: int, epoch: int) -> bool:
    return head & _ID_MASK != _EMPTY and (head >> _EPOCH_SHIFT) & _EPOCH_MASK == uint64(epoch)
