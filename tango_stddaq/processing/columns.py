"""Columns of the arrays that the compiled receive loop works on; see `assembly.Workspace`."""

from typing import Final

from tango_stddaq.detectors.layout import EVENT

COUNTERS: Final = (
    "packets",
    "bad_size",
    "bad_header",
    "duplicate",
    "late",
    "moved",
    "frames",
    "incomplete_frames",
    "missing_packets",
    "skipped_ids",
    "restarts",
    "unplaced_frames",
    "invalid_pixels",
)
"""Names of the columns of `Workspace.counters`, one row per source."""

# Of `Workspace.table`, a row a source. First what is under way: a source has two frames, the current one
# (ID, ...) and the one before it if packets of it may still come (OLD_ID, ...). BUNDLE is how many
# datagrams the kernel hands over in one message, SINGLES how many messages in a row had but one.
(
    ID, N, OPEN, PLACED, KEY, OLD_ID, OLD_N, OLD_OPEN, OLD_PLACED, OLD_KEY, NEXT,
    LATE_RUN, EPOCH, STEP, IDLE, BUNDLE, SINGLES,
) = range(17)  # fmt: skip
N_STATE: Final = 17
OLD: Final = 5
"""From a column of the current frame to the same of the older one."""
# Then the counters,
(
    PACKETS, BAD_SIZE, BAD_HEADER, DUPLICATE, LATE, MOVED, FRAMES, INCOMPLETE, MISSING,
    SKIPPED, RESTARTS, UNPLACED, INVALID_PIXELS,
) = range(N_STATE, N_STATE + len(COUNTERS))  # fmt: skip
# where the source's ring, its index and its packet masks are mapped,
RING: Final = N_STATE + len(COUNTERS)
BASE, SLOT_BYTES, N_SLOTS, INDEX, MASKS, MASK_STRIDE = range(RING, RING + 6)
# the header of the first packet of the current frame and of the older one, 64 bytes each, and, a bit a
# packet, which of the current frame have come, then of the older one.
FIRST_HEADER: Final = RING + 6
HEADER_WORDS: Final = 8
RECEIVED: Final = FIRST_HEADER + 2 * HEADER_WORDS

# Of `Workspace.geometry`: sizes and kinds, then where other memory of the workspace lies.
(
    HEADER_BYTES, PAYLOAD, LAST_PAYLOAD, N_PACKETS, N_PIECES, LAST_PIECES, PIECE, LAST_PIECE,
    HEADER_KIND, ROWS, FORMAT, FILL, KERNEL_PLACES, KEY_STEP, N_ROWS, MASK_WORDS, MAX_EVENTS,
    HEADERS_AT, BUFFERS_AT, SCRATCH_AT, CONTROLS_AT, EVENTS_AT,
) = range(22)  # fmt: skip

NO_ID: Final = -1
EVENT_BYTES: Final = EVENT.itemsize
HEADER_STRIDE: Final = 64
BUFFER_STRIDE: Final = 65536 + 64
"""Of the buffers that take whole messages; conversions read a little beyond the last pixel."""
CONTROL_STRIDE: Final = 32
MESSAGE_WORDS: Final = 8
"""A `struct mmsghdr` in 64-bit words: name, namelen, iov, iovlen, control, controllen, flags, len."""
