"""Account: what came, compared with what was expected. Compiled; arrays as in `Workspace`."""

from typing import Final

import numpy as np
from numba import uint64, uintp

from tango_stddaq.processing.columns import (
    BAD_HEADER,
    BAD_SIZE,
    BUFFER_STRIDE,
    BUFFERS_AT,
    BUNDLE,
    DUPLICATE,
    HEADER_BYTES,
    HEADER_STRIDE,
    HEADERS_AT,
    ID,
    IDLE,
    INVALID_PIXELS,
    KERNEL_PLACES,
    KEY,
    LAST_PAYLOAD,
    LATE,
    LATE_RUN,
    MASK_WORDS,
    MOVED,
    N_PACKETS,
    N_PIECES,
    NEXT,
    NO_ID,
    OLD,
    OLD_KEY,
    OLD_OPEN,
    OPEN,
    PACKETS,
    PAYLOAD,
    PIECE,
    RECEIVED,
    SCRATCH_AT,
    SINGLES,
    N,
)
from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.frames import begin, finish, is_placed, received, slot_of
from tango_stddaq.processing.native import load_u64, memcpy, memmove
from tango_stddaq.processing.packets import datagram_bytes, message_bytes, parse, place
from tango_stddaq.processing.slots import MAX_IMAGE_ID

_FAR_BACK: Final = 16
"""A packet that many frames older is no straggler: the detector has started its count again."""
_IDLE_POLLS: Final = 2
"""So many receive calls in a row without a packet mean that the detector had stopped."""
_SINGLES: Final = 16
"""So many messages of one datagram in a row mean that the kernel bundles no more."""
_NOT_THERE: Final = -1


@compiled
def account(
    source, n, table, offsets, iov, bundle_iov, messages, armed, n_events, maps, geometry
):  # fmt: skip
    """Compare what came in `n` messages with what was expected, and put right what differs."""
    in_rows = geometry[KERNEL_PLACES] != 0
    bundled = in_rows and table[source, BUNDLE] > 1
    packet_bytes = geometry[HEADER_BYTES] + geometry[PAYLOAD]
    if in_rows:  # first save every payload that landed in a wrong place: a later step may write there
        rows = bundle_iov if bundled else iov
        _save_misplaced(n, bundled, packet_bytes, rows, messages, armed, geometry)
    scratch, stride = geometry[SCRATCH_AT], geometry[PAYLOAD]
    for m in range(n):
        length = message_bytes(messages, m)
        size = datagram_bytes(messages, m, length, geometry)
        n_datagrams = max(1, -(-length // size))
        is_cut_as_foreseen = in_rows and size == packet_bytes
        if length < 0 or (in_rows and not is_cut_as_foreseen and n_datagrams == 1):
            table[source, PACKETS] += 1
            table[source, BAD_SIZE] += 1
            continue
        _note_bundle(table, source, n_datagrams)
        buffer = geometry[BUFFERS_AT] + m * BUFFER_STRIDE
        for s in range(n_datagrams):
            n_bytes = min(size, length - s * size)
            row = (s if bundled else m) if is_cut_as_foreseen and (bundled or s == 0) else _NOT_THERE
            if row != _NOT_THERE:
                header, payload = geometry[HEADERS_AT] + row * HEADER_STRIDE, scratch + row * stride
            else:  # whole, in a buffer; behind the first datagram, where that has a row of vectors
                header = buffer + (s - is_cut_as_foreseen) * size
                payload = header + geometry[HEADER_BYTES]
            _take(
                source, header, payload, n_bytes, row, table, offsets, armed, n_events, maps, geometry
            )  # fmt: skip


@inner
def _save_misplaced(n, bundled, packet_bytes, rows, messages, armed, geometry):
    n_pieces, piece = geometry[N_PIECES], geometry[PIECE]
    scratch, stride = geometry[SCRATCH_AT], geometry[PAYLOAD]
    for m in range(n):
        length = message_bytes(messages, m)
        if length < 0:
            continue
        size = datagram_bytes(messages, m, length, geometry)
        if size != packet_bytes:
            if size < length:
                _gather(m, length, messages, geometry[BUFFERS_AT] + m * BUFFER_STRIDE)
            continue
        n_rows = length // packet_bytes if bundled else 1
        for row in range(m, m + n_rows):
            if armed[row, 0] == NO_ID:
                continue
            _, image_id, packet = parse(geometry[HEADERS_AT] + row * HEADER_STRIDE, geometry)
            if armed[row, 0] != image_id or armed[row, 1] != packet:
                for k in range(n_pieces):
                    target = scratch + row * stride + k * piece
                    memcpy(uintp(target), uintp(rows[row, 1 + k, 0]), uintp(piece))


@inner
def _gather(m, length, messages, buffer):
    """Bring a bundle of datagrams of another size, laid all over its vectors, together in its buffer."""
    vectors, n_vectors = messages[m, 2], messages[m, 3]
    at = np.int64(0)
    for k in range(n_vectors):
        address = np.int64(load_u64(uintp(vectors + uint64(16) * k)))
        if address == buffer:  # the last one: its part stands there already, and moves up
            memmove(uintp(buffer + at), uintp(buffer), uintp(length - at))
            break
        at += min(length - at, np.int64(load_u64(uintp(vectors + uint64(16) * k + uint64(8)))))
    at = np.int64(0)
    for k in range(n_vectors):
        address = np.int64(load_u64(uintp(vectors + uint64(16) * k)))
        if address == buffer or at == length:
            break
        part = min(length - at, np.int64(load_u64(uintp(vectors + uint64(16) * k + uint64(8)))))
        memcpy(uintp(buffer + at), uintp(address), uintp(part))
        at += part


@inner
def _note_bundle(table, source, n_datagrams):
    """Learn from a message how many datagrams the next ones may have."""
    if n_datagrams > 1:
        table[source, SINGLES] = 0
        table[source, BUNDLE] = max(table[source, BUNDLE], n_datagrams)
    else:
        table[source, SINGLES] += 1
        if table[source, SINGLES] >= _SINGLES:
            table[source, BUNDLE] = 1


@inner
def _take(source, header, payload, n_bytes, row, table, offsets, armed, n_events, maps, geometry):
    """Take one datagram: its header and payload at these addresses, or the payload in place (`row`)."""
    n_packets = geometry[N_PACKETS]
    table[source, PACKETS] += 1
    payload_bytes = n_bytes - geometry[HEADER_BYTES]
    if payload_bytes < 0:
        table[source, BAD_SIZE] += 1
        return
    key, image_id, packet = parse(header, geometry)
    if packet >= n_packets or key < 0 or image_id < 0 or image_id > MAX_IMAGE_ID:
        table[source, BAD_HEADER] += 1
        return
    if payload_bytes != (geometry[LAST_PAYLOAD] if packet == n_packets - 1 else geometry[PAYLOAD]):
        table[source, BAD_SIZE] += 1
        return
    which = _frame_of(source, key, image_id, packet, header, table, offsets, n_events, geometry)
    if which == _NOT_THERE:
        return
    column = OLD * which
    if image_id != table[source, ID + column]:
        table[source, BAD_HEADER] += 1  # one frame number, two image ids
        return
    if received(table, source, which, packet, geometry):
        table[source, DUPLICATE] += 1
        return
    if which == 0:
        table[source, LATE_RUN] = 0
        table[source, NEXT] = packet + 1
    in_place = row != _NOT_THERE and armed[row, 0] == image_id and armed[row, 1] == packet
    if not in_place and is_placed(table, source, which):
        slot = slot_of(table, source, image_id)
        table[source, INVALID_PIXELS] += place(payload, slot, source, packet, offsets, maps, geometry)
        table[source, MOVED] += geometry[KERNEL_PLACES]
    word = RECEIVED + which * geometry[MASK_WORDS] + (packet >> 6)
    table[source, word] |= np.int64(1) << (packet & 63)
    table[source, N + column] += 1
    if table[source, N + column] == n_packets:
        if which == 0 and table[source, OLD_OPEN]:  # frames are announced in their order
            finish(source, 1, table, offsets, n_events, geometry)
        finish(source, which, table, offsets, n_events, geometry)


@inner
def _frame_of(source, key, image_id, packet, header, table, offsets, n_events, geometry):
    """Return to which frame under way a packet belongs (0 current, 1 old), -1 if it comes too late."""
    idle = table[source, IDLE] >= _IDLE_POLLS
    table[source, IDLE] = 0
    current = table[source, KEY]
    restart = False
    if key == current:
        if table[source, OPEN]:
            return 0
        if not idle:
            bin_of = DUPLICATE if received(table, source, 0, packet, geometry) else LATE
            table[source, bin_of] += 1
            return _NOT_THERE
        restart = True  # one and the same id again: a straggler does not come so late
    elif key < current:
        if table[source, OLD_OPEN] and key == table[source, OLD_KEY]:
            return 1
        table[source, LATE_RUN] += 1
        far_back = current - key > _FAR_BACK
        if not (idle or far_back or table[source, LATE_RUN] >= max(geometry[N_PACKETS], _FAR_BACK)):
            table[source, LATE] += 1
            return _NOT_THERE
        restart = True
    begin(source, key, image_id, restart, header, table, offsets, n_events, geometry)
    return 0
