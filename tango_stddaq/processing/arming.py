"""Prediction: where the packets of the next receive call belong. Compiled; arrays as in `Workspace`."""

from typing import Final

import numpy as np
from numba import uint64

from tango_stddaq.processing.columns import (
    BUNDLE,
    CONTROL_STRIDE,
    CONTROLS_AT,
    ID,
    KERNEL_PLACES,
    N_PACKETS,
    N_PIECES,
    N_ROWS,
    NEXT,
    NO_ID,
    OPEN,
    PAYLOAD,
    PIECE,
    SCRATCH_AT,
    STEP,
)
from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.frames import claim_ahead, is_placed, received, slot_of

_CONTROL_BYTES: Final = 24


@compiled
def arm(source, n, table, offsets, iov, bundle_iov, messages, armed, geometry):
    """Make the next receive call of up to `n` messages ready; returns how many it shall take.

    Where the kernel lays pixels in place, each message is pointed at the packet that is expected next.
    While it hands over datagrams in bundles that is one message with a whole bundle: how many will come
    is not known, so that nothing could be said of the message behind it. Where pixels are converted it
    is one as well: it is still in the cache of the core when it is read.
    """
    bundle = table[source, BUNDLE]
    if not geometry[KERNEL_PLACES]:
        n = n if bundle == 1 else 1
    elif bundle > 1:
        n = 1
        messages[0, 2] = uint64(bundle_iov.ctypes.data)
        messages[0, 3] = uint64(bundle_iov.shape[0] * bundle_iov.shape[1] + 1)
        _aim(source, geometry[N_ROWS], bundle_iov, table, offsets, armed, geometry)
    else:
        messages[0, 2] = uint64(iov.ctypes.data)
        messages[0, 3] = uint64(iov.shape[1])
        _aim(source, n, iov, table, offsets, armed, geometry)
    for i in range(n):
        messages[i, 5] = uint64(_CONTROL_BYTES)
        messages[i, 6] = uint64(0)
        messages[i, 4] = uint64(geometry[CONTROLS_AT] + i * CONTROL_STRIDE)
    return n


@inner
def _aim(source, n, iov, table, offsets, armed, geometry):
    """Point `n` rows of vectors at the packets expected, but those that came, on into later frames."""
    n_packets, n_pieces, piece = geometry[N_PACKETS], geometry[N_PIECES], geometry[PIECE]
    scratch, stride = geometry[SCRATCH_AT], geometry[PAYLOAD]
    image_id, step = table[source, ID], table[source, STEP]
    packet = table[source, NEXT]
    placed = False
    if image_id >= 0:
        if table[source, OPEN]:
            placed = is_placed(table, source, 0)
        else:
            image_id += step
            packet = 0
            placed = claim_ahead(table, source, image_id)
    slot = slot_of(table, source, image_id) if placed else np.int64(0)
    for i in range(n):
        while image_id >= 0:
            if packet >= n_packets:
                image_id += step
                packet = 0
                placed = claim_ahead(table, source, image_id)
                slot = slot_of(table, source, image_id) if placed else np.int64(0)
            if image_id == table[source, ID] and received(table, source, 0, packet, geometry):
                packet += 1
                continue
            break
        if image_id < 0 or not placed:
            armed[i, 0] = NO_ID
            for k in range(n_pieces):
                iov[i, 1 + k, 0] = uint64(scratch + i * stride + k * piece)
        else:
            armed[i, 0] = image_id
            for k in range(n_pieces):
                iov[i, 1 + k, 0] = uint64(slot + offsets[source, packet, k])
        armed[i, 1] = packet
        packet += 1
