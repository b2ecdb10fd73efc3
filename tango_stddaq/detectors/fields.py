"""Which bits of a packet header go into the frame header, and which of those into the metadata."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class FrameField:
    """A field of the frame header, and what it is filled with.

    Attributes
    ----------
    name
        In the frame header.
    source
        The field of the first packet's header that it comes from; "" for a constant.
    shift, n_bits
        Which bits of that: `n_bits` of them from bit `shift` up.
    constant
        A number that is the same for all frames.
    is_copy
        Whether `source` is another field of the frame header instead, filled before this one.
    """

    name: str
    source: str = ""
    shift: int = 0
    n_bits: int = 64
    constant: int = 0
    is_copy: bool = False

    def row(self, frame_header: np.dtype, packet_header: np.dtype) -> tuple[int, ...]:
        """Return offset and bytes of target and source, shift, mask, constant, and `is_copy`."""
        targets: Any = frame_header.fields or {}
        sources: Any = targets if self.is_copy else packet_header.fields or {}
        target, at = targets[self.name][:2]
        if not self.source:
            return (at, target.itemsize, 0, 0, 0, 0, self.constant, 0)
        source, source_at = sources[self.source][:2]
        mask = -1 if self.n_bits == 64 else (1 << self.n_bits) - 1
        sizes = (at, target.itemsize, source_at, source.itemsize)
        return (*sizes, self.shift, mask, self.constant, int(self.is_copy))


@dataclass(frozen=True, slots=True)
class HeaderField:
    """A number of an image's metadata that stands in its frame headers.

    Attributes
    ----------
    number
        Of the field in the detector's protobuf message.
    name
        In the frame header.
    is_inverted
        Whether the message says true where the header says 0.
    is_ours
        Whether it lies in what is padding for existing programs: counts only beside `HEADER_MARK`.
    """

    number: int
    name: str
    is_inverted: bool = False
    is_ours: bool = False

    def row(self, frame_header: np.dtype) -> tuple[int, int, int, int, int]:
        """Return the key of the field, offset and bytes in the header, and the two flags."""
        fields = frame_header.fields
        if fields is None:
            raise ValueError("a frame header without fields")
        dtype, offset = fields[self.name][:2]
        return (self.number << 3, offset, dtype.itemsize, self.is_inverted, self.is_ours)


@dataclass(frozen=True, slots=True)
class MetadataFields:
    """What a detector says of an image: a protobuf message within `ImageMetadata`.

    Attributes
    ----------
    number
        Of the detector's message among the fields of `ImageMetadata`.
    """

    number: int
    fields: tuple[HeaderField, ...]
