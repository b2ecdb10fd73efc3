"""What an image is: ids, data types, status, and the metadata that travels beside the pixels."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

INVALID_IMAGE_ID: Final = 2**64 - 1


class Dtype(IntEnum):
    """Pixel type with its number on the wire (`ImageMetadataDtype`)."""

    UNKNOWN = 0
    UINT8 = 1
    UINT16 = 2
    UINT32 = 4
    UINT64 = 8
    INT8 = 11
    INT16 = 12
    INT32 = 14
    INT64 = 18
    FLOAT16 = 22
    FLOAT32 = 24
    FLOAT64 = 28

    @property
    def numpy(self) -> np.dtype:
        """The little-endian numpy type.

        Raises
        ------
        ValueError
            For `UNKNOWN`, which has no pixels.
        """
        if self is Dtype.UNKNOWN:
            raise ValueError("dtype unknown has no numpy equivalent")
        return np.dtype(self.name.lower()).newbyteorder("<")

    @classmethod
    def from_numpy(cls, dtype: np.dtype) -> "Dtype":
        """Return the wire number of a numpy type; `UNKNOWN` where there is none."""
        return cls.__members__.get(dtype.name.upper(), cls.UNKNOWN)


class Status(IntEnum):
    """What is known of an image (`ImageMetadataStatus`); a higher number is worse."""

    UNDEFINED = 0
    GOOD_IMAGE = 1
    MISSING_PACKETS = 2
    ID_MISSMATCH = 3


class Compression(IntEnum):
    """How the bytes in the slot are compressed (`ImageMetadataCompression`)."""

    NONE = 0
    H5BITSHUFFLE_LZ4 = 1
    BLOSC2 = 2


COMPRESSED_SUFFIXES: Final = {
    "h5bitshuffle-lz4": Compression.H5BITSHUFFLE_LZ4,
    "blosc2": Compression.BLOSC2,
}
"""Rings with compressed images."""


@dataclass(frozen=True, slots=True)
class GigafrostMetadata:
    """What a GigaFRoST says of an image (`GFImageMetadata`)."""

    scan_id: int = 0
    scan_time: int = 0
    sync_time: int = 0
    frame_timestamp: int = 0
    exposure_time: int = 0
    store_image: bool = True


@dataclass(frozen=True, slots=True)
class JungfrauMetadata:
    """What a Jungfrau says of an image (`JFImageMetadata`)."""

    daq_rec: int = 0


@dataclass(frozen=True, slots=True)
class EigerMetadata:
    """What an Eiger says of an image (`EGImageMetadata`); exposure in the detector's own ticks."""

    exptime: int = 0


@dataclass(frozen=True, slots=True)
class PcoMetadata:
    """What a camera says of an image over BSREAD (`PcoImageMetadata`)."""

    global_timestamp_sec: int = 0
    global_timestamp_ns: int = 0
    bsread_name: str = ""


DetectorMetadata = GigafrostMetadata | JungfrauMetadata | EigerMetadata | PcoMetadata


@dataclass(frozen=True, slots=True)
class Image:
    """The metadata of one image; its pixels lie in slot `image_id % n_slots` of a ring.

    Attributes
    ----------
    size
        Bytes in the slot: the compressed size if compressed.
    n_missing_packets, n_missing_modules
        Over all modules; both 0 for a complete image.
    received_ns
        Unix time at which the writer driver was told of it; 0 where it was not.
    """

    image_id: int
    height: int
    width: int
    size: int
    dtype: Dtype
    status: Status = Status.GOOD_IMAGE
    compression: Compression = Compression.NONE
    detector: DetectorMetadata | None = None
    n_missing_packets: int = 0
    n_missing_modules: int = 0
    received_ns: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.height, self.width)
