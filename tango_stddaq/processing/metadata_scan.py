"""What the writer driver must know of `ImageMetadata` messages, read for many at once; compiled.

Messages that are written as every program writes them are read here. Whatever else protobuf allows is
left to `codecs.image_metadata`, which knows all of it and takes its time.
"""

from typing import Final

import numpy as np
from numba import uint64

from tango_stddaq.model import Compression, Dtype, Status
from tango_stddaq.processing.compiled import compiled, inner

ORDINARY, IMAGE_ID, STATUS, IS_DATED = range(4)
"""Columns of `scan`'s result: whether the message was read here; what it says; whether it says when
the driver received the image."""
N_COLUMNS: Final = 4

_VARINT, _BYTES = 0, 2  # wire types
_ID, _HEIGHT, _WIDTH, _SIZE, _DTYPE, _STATUS, _COMPRESSION = range(1, 8)
_FIRST_DETECTOR, _LAST_DETECTOR = 8, 11
_MISSING_PACKETS, _MISSING_MODULES, _RECEIVED_NS = 100, 101, 102
_MAX_SIDE: Final = uint64(2**32)
_MAX_ID: Final = uint64(2**63)
_ALLOWED: Final = tuple(
    sum(1 << int(member) for member in kind) for kind in (Dtype, Status, Compression)
)
"""A bit for each value that the enums have, which are all below 64."""
_DTYPES, _STATUSES, _COMPRESSIONS = (uint64(bits) for bits in _ALLOWED)
_BAD: Final = -1
_NUMBER, _SHORT = 9, 2
"""Bytes that are read of a number at most (63 bits: more is nothing ordinary), and of keys and lengths,
which protobuf refuses if they are longer than 5."""
_MAX_BYTES: Final = 480
"""With the date and an action around it any message up to here fits 512 bytes."""


@compiled
def scan(rows, lengths, found):
    """Read messages.

    Parameters
    ----------
    rows, lengths
        (n, room) uint8 and (n,) int64.
    found
        (n, `N_COLUMNS`) int64, gets the columns named above.
    """
    for i in range(lengths.shape[0]):
        found[i, ORDINARY] = 0
        if 0 < lengths[i] <= _MAX_BYTES:
            found[i, ORDINARY] = _scan_one(rows[i], lengths[i], found[i])


@inner
def _varint(data, at, end, n_bytes):
    """Read a number of at most `n_bytes`; returns it and where it ends, `_BAD` if it does not."""
    value = uint64(0)
    for k in range(n_bytes):
        if at + k >= end:
            break
        byte = data[at + k]
        value |= uint64(byte & 0x7F) << uint64(7 * k)
        if byte < 0x80:
            return value, at + k + 1
    return value, _BAD


@inner
def _scan_one(data, end, found):
    """Return whether a message is an ordinary one of an image that can be."""
    height, width, dtype = uint64(0), uint64(0), uint64(0)
    status, compression = uint64(0), uint64(0)
    found[IMAGE_ID] = found[IS_DATED] = 0
    at = np.int64(0)
    while at < end:
        key, at = _varint(data, at, end, _SHORT)
        if at == _BAD:
            return False
        number, kind = key >> uint64(3), key & uint64(7)
        value, at = _varint(data, at, end, _SHORT if kind == _BYTES else _NUMBER)
        if at == _BAD:
            return False
        if kind == _BYTES:
            if not _FIRST_DETECTOR <= number <= _LAST_DETECTOR or value > uint64(end - at):
                return False
            if not _is_plain(data, at, at + np.int64(value)):
                return False
            at += np.int64(value)
        elif kind != _VARINT:
            return False
        elif number == _ID:
            found[IMAGE_ID] = np.int64(value)
        elif number == _HEIGHT:
            height = value
        elif number == _WIDTH:
            width = value
        elif number == _DTYPE:
            dtype = value
        elif number == _STATUS:
            status = value
        elif number == _COMPRESSION:
            compression = value
        elif number == _RECEIVED_NS:
            found[IS_DATED] = value > uint64(0)
        elif number != _SIZE and number != _MISSING_PACKETS and number != _MISSING_MODULES:
            return False
    found[STATUS] = np.int64(status)
    return (
        uint64(0) < height < _MAX_SIDE
        and uint64(0) < width < _MAX_SIDE
        and _is_one_of(dtype, _DTYPES)
        and _is_one_of(status, _STATUSES)
        and _is_one_of(compression, _COMPRESSIONS)
    )


@inner
def _is_one_of(value, allowed):
    return value < uint64(64) and (allowed >> value) & uint64(1) != uint64(0)


@inner
def _is_plain(data, at, end):
    """Return whether a detector's part consists of numbers and ASCII texts."""
    while at < end:
        key, at = _varint(data, at, end, _SHORT)
        if at == _BAD or key < uint64(8):
            return False
        is_text = key & uint64(7) == uint64(_BYTES)
        value, at = _varint(data, at, end, _SHORT if is_text else _NUMBER)
        if at == _BAD:
            return False
        if is_text:
            if value > uint64(end - at):
                return False
            for k in range(at, at + np.int64(value)):
                if data[k] >= 0x80:
                    return False
            at += np.int64(value)
        elif key & uint64(7) != uint64(_VARINT):
            return False
    return True
