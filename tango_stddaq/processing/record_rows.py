"""`WriterAction` messages around the metadata of many images at once; compiled.

They are what `codecs.writer_action.encode` makes of one image; a test compares them.
"""

from typing import Final

import numpy as np
from numba import uint8

from tango_stddaq.codecs.image_metadata import MAX_MESSAGE_BYTES
from tango_stddaq.processing.compiled import compiled, inner

MAX_METADATA_BYTES: Final = MAX_MESSAGE_BYTES - 6
"""Longest metadata that fits an action of 512 bytes, which is what existing writers read."""
_RECORD_IMAGE: Final = 0x12
_IMAGE_METADATA: Final = 0x0A


@compiled
def record_rows(rows, lengths, is_dated, date, out, out_lengths):
    """Wrap messages.

    Parameters
    ----------
    rows, lengths
        (n, room) uint8 and (n,) int64: `ImageMetadata` messages.
    is_dated, date
        (n,): whether a message says when it was received, and what to append to those that do not, (m,)
        uint8 from `writer_action.received_at`.
    out, out_lengths
        (n, 512) uint8 and (n,) int64: get the actions. Metadata and date must not be longer than
        `MAX_METADATA_BYTES`.
    """
    for i in range(lengths.shape[0]):
        n_date = np.int64(0) if is_dated[i] else np.int64(date.shape[0])
        n_bytes = lengths[i] + n_date
        out[i, 0] = uint8(_RECORD_IMAGE)
        inner_bytes = n_bytes + (2 if n_bytes < 0x80 else 3)
        at = _put_length(out, i, 1, inner_bytes)
        out[i, at] = uint8(_IMAGE_METADATA)
        at = _put_length(out, i, at + 1, n_bytes)
        for k in range(lengths[i]):
            out[i, at + k] = rows[i, k]
        at += lengths[i]
        for k in range(n_date):
            out[i, at + k] = date[k]
        out_lengths[i] = at + n_date


@inner
def _put_length(out, i, at, value):
    """Write a varint below 2**14; returns where it ends."""
    if value < 0x80:
        out[i, at] = uint8(value)
        return at + 1
    out[i, at] = uint8(value & 0x7F) | uint8(0x80)
    out[i, at + 1] = uint8(value >> 7)
    return at + 2
