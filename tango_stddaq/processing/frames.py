"""Frames under way: their slots, their beginning and their end. Compiled; arrays as in `Workspace`."""

import numpy as np
from numba import uint64, uintp

from tango_stddaq.processing.columns import (
    BASE,
    EPOCH,
    EVENT_BYTES,
    EVENTS_AT,
    FILL,
    FIRST_HEADER,
    FRAMES,
    HEADER_BYTES,
    HEADER_WORDS,
    ID,
    INCOMPLETE,
    INDEX,
    KEY,
    KEY_STEP,
    LAST_PIECE,
    LAST_PIECES,
    LATE_RUN,
    MASK_STRIDE,
    MASK_WORDS,
    MASKS,
    MAX_EVENTS,
    MISSING,
    N_PACKETS,
    N_PIECES,
    N_SLOTS,
    NEXT,
    NO_ID,
    OLD,
    OLD_ID,
    OLD_OPEN,
    OPEN,
    PIECE,
    PLACED,
    RECEIVED,
    RESTARTS,
    SKIPPED,
    SLOT_BYTES,
    STEP,
    UNPLACED,
    N,
)
from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.native import memcpy, memset, write_u64
from tango_stddaq.processing.slots import (
    INDEX_ENTRY,
    INDEX_HEADER,
    claim_slot,
    first_epoch,
    holds_slot,
    joined_epoch,
    next_epoch,
)

_ENTRY_BYTES = INDEX_ENTRY.itemsize
_INDEX_HEADER_BYTES = INDEX_HEADER.itemsize


@inner
def slot_of(table, source, image_id):
    """Return the address of an image's slot."""
    return table[source, BASE] + (image_id % table[source, N_SLOTS]) * table[source, SLOT_BYTES]


@inner
def _entry(table, source, image_id):
    slot = image_id % table[source, N_SLOTS]
    return table[source, INDEX] + _INDEX_HEADER_BYTES + slot * _ENTRY_BYTES


@inner
def _claim(table, source, image_id):
    if table[source, INDEX] == 0:
        return True
    return claim_slot(_entry(table, source, image_id), image_id, table[source, EPOCH])


@inner
def claim_ahead(table, source, image_id):
    """Claim the slot of a frame that is only predicted: never one of a frame under way."""
    oldest = table[source, OLD_ID] if table[source, OLD_OPEN] else table[source, ID]
    return image_id - oldest < table[source, N_SLOTS] and _claim(table, source, image_id)


@inner
def is_placed(table, source, which):
    """Return whether a frame under way has its slot, and may be written.

    It loses it when the ring's owner publishes the image without it, or when another receiver is a
    whole ring ahead.
    """
    column = OLD * which
    if table[source, PLACED + column] and table[source, INDEX] != 0:
        image_id = table[source, ID + column]
        if not holds_slot(_entry(table, source, image_id), image_id, table[source, EPOCH]):
            table[source, PLACED + column] = 0
    return table[source, PLACED + column] != 0


@inner
def received(table, source, which, packet, geometry):
    """Return 1 if a packet of a frame under way has come."""
    word = RECEIVED + which * geometry[MASK_WORDS] + (packet >> 6)
    return (table[source, word] >> (packet & 63)) & 1


@inner
def _fill_missing(slot, source, which, table, offsets, geometry):
    """Set the pixels of the packets that did not come to the fill value."""
    n_packets = geometry[N_PACKETS]
    for packet in range(n_packets):
        if received(table, source, which, packet, geometry):
            continue
        last = packet == n_packets - 1
        n_pieces = geometry[LAST_PIECES] if last else geometry[N_PIECES]
        piece = geometry[LAST_PIECE] if last else geometry[PIECE]
        for k in range(n_pieces):
            target = uintp(slot + offsets[source, packet, k])
            memset(target, np.int32(geometry[FILL]), uintp(piece))


@inner
def _note_missing(table, source, which, image_id, geometry):
    """Write the mask of missing packets beside the ring, where its consumers find it."""
    n_packets = geometry[N_PACKETS]
    at = table[source, MASKS] + (image_id % table[source, N_SLOTS]) * table[source, MASK_STRIDE]
    for word in range(geometry[MASK_WORDS]):
        n_bits = min(64, n_packets - 64 * word)
        valid = ~uint64(0) >> uint64(64 - n_bits)
        came = uint64(table[source, RECEIVED + which * geometry[MASK_WORDS] + word])
        write_u64(uintp(at + 8 * word), ~came & valid)


@inner
def finish(source, which, table, offsets, n_events, geometry):
    """End a frame: fill what is missing and append the event. `which`: 0 current, 1 old."""
    column = OLD * which
    image_id = table[source, ID + column]
    missing = geometry[N_PACKETS] - table[source, N + column]
    table[source, OPEN + column] = 0
    if not is_placed(table, source, which):
        table[source, UNPLACED] += 1
        return
    if missing > 0:
        _fill_missing(slot_of(table, source, image_id), source, which, table, offsets, geometry)
        table[source, INCOMPLETE] += 1
        table[source, MISSING] += missing
    if table[source, MASKS] != 0:
        _note_missing(table, source, which, image_id, geometry)
    table[source, FRAMES] += 1
    at = n_events[0]
    if at < geometry[MAX_EVENTS]:
        event = geometry[EVENTS_AT] + at * EVENT_BYTES
        write_u64(uintp(event), uint64(image_id))
        write_u64(uintp(event + 8), uint64(missing))
        write_u64(uintp(event + 16), uint64(source))
        write_u64(uintp(event + 24), uint64(table[source, EPOCH]))
        for word in range(HEADER_WORDS):
            value = table[source, FIRST_HEADER + which * HEADER_WORDS + word]
            write_u64(uintp(event + 32 + 8 * word), uint64(value))
        n_events[0] = at + 1


@compiled
def flush(source, table, offsets, n_events, geometry):
    """Finish the frames of a source that are under way, the older one first."""
    for which in (1, 0):
        if table[source, OPEN + OLD * which]:
            finish(source, which, table, offsets, n_events, geometry)


@inner
def _next_epoch_of(source, key, image_id, restart, table, geometry):
    """Return the epoch of a frame that begins; counts the ids that were skipped before it."""
    index, epoch = table[source, INDEX], table[source, EPOCH]
    if table[source, ID] == NO_ID:
        return first_epoch(index, image_id) if index != 0 else epoch
    if restart:
        table[source, RESTARTS] += 1
        return next_epoch(index, epoch) if index != 0 else epoch
    table[source, SKIPPED] += (key - table[source, KEY] - 1) // geometry[KEY_STEP]
    if image_id > table[source, ID]:
        table[source, STEP] = (image_id - table[source, ID]) // (key - table[source, KEY])
        return joined_epoch(index, epoch, image_id, table[source, N_SLOTS]) if index != 0 else epoch
    # Bunch ids may go back while frame numbers go on.
    return next_epoch(index, epoch) if index != 0 else epoch


@inner
def begin(source, key, image_id, restart, header, table, offsets, n_events, geometry):
    """Make `image_id` the current frame; the one before may still get its stragglers.

    `header` is the address of its first packet's header.
    """
    n_slots = table[source, N_SLOTS]
    epoch = _next_epoch_of(source, key, image_id, restart, table, geometry)
    # A frame of another epoch, or one whose slot the new frame takes, gets no stragglers any more.
    ends = restart or epoch != table[source, EPOCH] or (image_id - table[source, ID]) % n_slots == 0
    for which in (1, 0):
        if table[source, OPEN + OLD * which] and (ends or which == 1):
            finish(source, which, table, offsets, n_events, geometry)
    if table[source, OPEN]:
        for column in (ID, N, OPEN, PLACED, KEY):
            table[source, column + OLD] = table[source, column]
        for word in range(geometry[MASK_WORDS]):
            old = RECEIVED + geometry[MASK_WORDS] + word
            table[source, old] = table[source, RECEIVED + word]
        for word in range(HEADER_WORDS):
            old = FIRST_HEADER + HEADER_WORDS + word
            table[source, old] = table[source, FIRST_HEADER + word]
    table[source, EPOCH] = epoch
    table[source, STEP] = max(1, table[source, STEP])
    table[source, KEY] = key
    table[source, ID] = image_id
    table[source, N] = 0
    table[source, OPEN] = 1
    table[source, NEXT] = 0
    table[source, LATE_RUN] = 0
    table[source, PLACED] = 1 if _claim(table, source, image_id) else 0
    for word in range(geometry[MASK_WORDS]):
        table[source, RECEIVED + word] = 0
    kept = np.int64(table.ctypes.data) + 8 * (source * table.shape[1] + FIRST_HEADER)
    memcpy(uintp(kept), uintp(header), uintp(geometry[HEADER_BYTES]))
