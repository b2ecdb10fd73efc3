"""`ImageMetadata` of many images at once: what they share is serialized once, the rest is patched in.

The bytes are those that `image_metadata.encode` makes (protobuf, fields in the order of their numbers,
zeros left out); a test compares them. At tens of thousands of images a second an object for each would
cost more than their pixels.
"""

from typing import Final

import numpy as np
from numba import uint8, uint64

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config_sizes import Sizes
from tango_stddaq.detectors.fields import MetadataFields
from tango_stddaq.detectors.layout import FRAME_HEADER, HEADER_MARK
from tango_stddaq.model import Image, Status
from tango_stddaq.processing.compiled import compiled, inner

_MAX_BYTES: Final = 256
"""Longest message that a template makes: all numbers at their largest."""
_ID_KEY: Final = 1 << 3
_STATUS_KEY: Final = 6 << 3
_MISSING_PACKETS_KEY: Final = 100 << 3
_MISSING_MODULES_KEY: Final = 101 << 3
_LENGTH_DELIMITED: Final = 2
_GOOD, _MISSING = int(Status.GOOD_IMAGE), int(Status.MISSING_PACKETS)
_fields = FRAME_HEADER.fields or {}
_MARK_AT: Final = _fields["mark"][1]


class MetadataTemplate:
    """The metadata of the images of one ring.

    Parameters
    ----------
    sizes
        Shape and type of its images.
    fields
        What the detector says of an image; None if nothing.
    frame_header
        The detector's frame header, whose fields `fields` names.
    """

    def __init__(self, sizes: Sizes, fields: MetadataFields | None, frame_header: np.dtype) -> None:
        # Id and status 0 are left out: what remains is height, width, size and dtype.
        shared = Image(0, sizes.height, sizes.width, sizes.slot_bytes, sizes.dtype, Status.UNDEFINED)
        self._shared = np.frombuffer(image_metadata.encode(shared), np.uint8)
        self._key = 0 if fields is None else fields.number << 3 | _LENGTH_DELIMITED
        rows = [] if fields is None else [field.row(frame_header) for field in fields.fields]
        self._rows = np.array(rows, np.int64).reshape(-1, 5)

    def arrays(self, n: int) -> tuple[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray]:
        """Return what `encode_rows` takes from its fifth argument on, with room for `n` messages."""
        out, ends = np.zeros((n, _MAX_BYTES), np.uint8), np.zeros(n, np.int64)
        return self._shared, self._key, self._rows, out, ends


@inner
def _put(out, i, at, value):
    """Write a varint; returns where it ends."""
    while value >= uint64(0x80):
        out[i, at] = uint8(value & uint64(0x7F)) | uint8(0x80)
        value >>= uint64(7)
        at += 1
    out[i, at] = uint8(value)
    return at + 1


@inner
def _put_field(out, i, at, key, value):
    """Write a number with its key, or nothing if it is 0."""
    if value == uint64(0):
        return at
    return _put(out, i, _put(out, i, at, uint64(key)), value)


@inner
def _read(headers, i, row):
    """Read a number from a frame header as its row of the description says."""
    value = uint64(0)
    for k in range(row[2]):
        value |= uint64(headers[i, row[1] + k]) << uint64(8 * k)
    if row[3]:
        value = uint64(value == uint64(0))
    mark = uint64(headers[i, _MARK_AT]) | uint64(headers[i, _MARK_AT + 1]) << uint64(8)
    return uint64(0) if row[4] and mark != uint64(HEADER_MARK) else value


@compiled
def encode_rows(ids, n_missing_packets, n_missing_modules, headers, shared, key, rows, out, ends):
    """Serialize the metadata of images into the rows of `out`; `ends` get their lengths.

    Parameters
    ----------
    ids, n_missing_packets, n_missing_modules
        (n,) int64; an image is good if nothing is missing.
    headers
        (n, 64) uint8: a frame header of each image.
    shared, key, rows, out, ends
        What `MetadataTemplate.arrays` returns.
    """
    for i in range(ids.shape[0]):
        at = _put_field(out, i, np.int64(0), _ID_KEY, uint64(ids[i]))
        for k in range(shared.shape[0]):
            out[i, at + k] = shared[k]
        at += shared.shape[0]
        is_good = n_missing_packets[i] == 0 and n_missing_modules[i] == 0
        at = _put_field(out, i, at, _STATUS_KEY, uint64(_GOOD if is_good else _MISSING))
        if key:
            at = _put(out, i, at, uint64(key))
            length_at = at  # one byte: all fields together are shorter than 128
            at += 1
            for k in range(rows.shape[0]):
                at = _put_field(out, i, at, rows[k, 0], _read(headers, i, rows[k]))
            out[i, length_at] = uint8(at - length_at - 1)
        at = _put_field(out, i, at, _MISSING_PACKETS_KEY, uint64(n_missing_packets[i]))
        ends[i] = _put_field(out, i, at, _MISSING_MODULES_KEY, uint64(n_missing_modules[i]))
