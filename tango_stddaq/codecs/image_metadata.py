"""`ImageMetadata`: the protobuf message that announces an image on every metadata stream."""

from typing import Final

from google.protobuf.message import DecodeError

from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.model import (
    Compression,
    DetectorMetadata,
    Dtype,
    EigerMetadata,
    GigafrostMetadata,
    Image,
    JungfrauMetadata,
    PcoMetadata,
    Status,
)

MAX_MESSAGE_BYTES: Final = 512
"""Buffer size of the existing readers."""
MAX_NAME_BYTES: Final = 256
"""Longest BSREAD channel name passed on: with it a `WriterAction` around the message fits as well."""
_MAX_SIDE: Final = 2**32
_DTYPES: Final = frozenset(map(int, Dtype))
_STATUSES: Final = frozenset(map(int, Status))
_COMPRESSIONS: Final = frozenset(map(int, Compression))


def to_message(image: Image) -> pb.ImageMetadata:
    """Build the protobuf message of an image; a long BSREAD channel name is cut to fit 512 bytes."""
    message = pb.ImageMetadata(
        image_id=image.image_id,
        height=image.height,
        width=image.width,
        size=image.size,
        dtype=image.dtype.name.lower(),
        status=image.status.name.lower(),
        compression=image.compression.name.lower(),
        n_missing_packets=image.n_missing_packets,
        n_missing_modules=image.n_missing_modules,
        received_ns=image.received_ns,
    )
    match image.detector:
        case EigerMetadata(exptime):
            message.eg.exptime = exptime
        case JungfrauMetadata(daq_rec):
            message.jf.daq_rec = daq_rec
        case GigafrostMetadata() as gf:
            for name in GigafrostMetadata.__slots__:
                setattr(message.gf, name, getattr(gf, name))
        case PcoMetadata() as pco:
            message.pco.global_timestamp_sec = pco.global_timestamp_sec
            message.pco.global_timestamp_ns = pco.global_timestamp_ns
            name_bytes = pco.bsread_name.encode(errors="replace")[:MAX_NAME_BYTES]
            message.pco.bsread_name = name_bytes.decode(errors="ignore")
        case None:
            pass
    return message


def encode(image: Image) -> bytes:
    """Serialize an image's metadata."""
    return to_message(image).SerializeToString()


def from_message(message: pb.ImageMetadata) -> Image:
    """Read a protobuf message.

    Raises
    ------
    ValueError
        If an enum or a size has a value that no image can have.
    """
    check(message)
    return Image(
        image_id=message.image_id,
        height=message.height,
        width=message.width,
        size=message.size,
        dtype=Dtype(message.dtype),
        status=Status(message.status),
        compression=Compression(message.compression),
        detector=_detector(message),
        n_missing_packets=message.n_missing_packets,
        n_missing_modules=message.n_missing_modules,
        received_ns=message.received_ns,
    )


def check(message: pb.ImageMetadata) -> None:
    """Refuse a message that describes no image.

    Raises
    ------
    ValueError
        If an enum or a size has a value that no image can have.
    """
    if not (0 < message.height < _MAX_SIDE and 0 < message.width < _MAX_SIDE):
        raise ValueError(f"image of {message.height} x {message.width} pixels")
    if (
        message.dtype not in _DTYPES
        or message.status not in _STATUSES
        or message.compression not in _COMPRESSIONS
    ):
        raise ValueError(
            f"image with dtype {message.dtype}, status {message.status}, compression "
            f"{message.compression}: one of them is not known"
        )


def parse(data: bytes) -> pb.ImageMetadata:
    """Read one message without making an `Image` of it: for those that take thousands a second.

    Raises
    ------
    ValueError
        As in `decode`.
    """
    try:
        message = pb.ImageMetadata.FromString(data)
    except DecodeError as error:
        raise ValueError(f"not an ImageMetadata message of {len(data)} bytes") from error
    check(message)
    return message


def decode(data: bytes) -> Image:
    """Read one message of a metadata stream.

    Raises
    ------
    ValueError
        If it is not an `ImageMetadata` that describes an image.
    """
    return from_message(parse(data))


def _detector(message: pb.ImageMetadata) -> DetectorMetadata | None:
    match message.WhichOneof("image_metadata"):
        case "eg":
            return EigerMetadata(message.eg.exptime)
        case "jf":
            return JungfrauMetadata(message.jf.daq_rec)
        case "gf":
            return GigafrostMetadata(
                *(getattr(message.gf, name) for name in GigafrostMetadata.__slots__)
            )
        case "pco":
            return PcoMetadata(*(getattr(message.pco, name) for name in PcoMetadata.__slots__))
        case _:
            return None
