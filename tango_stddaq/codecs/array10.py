"""array-1.0: a live image as two ZeroMQ frames, a JSON header and the raw pixels in C order."""

import json
from dataclasses import dataclass
from typing import Final

import numpy as np

from tango_stddaq.model import Image

TYPES: Final = frozenset(
    ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
     "float16", "float32", "float64"]
)  # fmt: skip
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_ARRAY_BYTES: Final = 2**31


@dataclass(frozen=True, slots=True)
class Header:
    """What the first frame says.

    Attributes
    ----------
    shape
        (height, width).
    dtype
        With the byte order of the sender.
    frame
        The image id.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    frame: int


def encode_header(image: Image) -> bytes:
    """Return the header frame of an image, byte for byte as the interface contract writes it."""
    return (
        f'{{"htype":"array-1.0", "shape":[{image.height},{image.width}], '
        f'"type":"{image.dtype.name.lower()}", "frame":{image.image_id}}}'
    ).encode()


def decode_header(data: bytes) -> Header:
    """Read a header frame.

    Raises
    ------
    ValueError
        If it is not an array-1.0 header of a two-dimensional image.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise ValueError(f"array-1.0 header of {len(data)} bytes; allowed are {MAX_HEADER_BYTES}")
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"array-1.0 header is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("htype") != "array-1.0":
        raise ValueError("htype is not array-1.0")
    shape, kind, frame = header.get("shape"), header.get("type"), header.get("frame")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(side) is int and 0 < side < 2**31 for side in shape)
    ):
        raise ValueError(f"shape {shape!r} is not [height, width]")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"type {kind!r}; allowed are {', '.join(sorted(TYPES))}")
    if type(frame) is not int or not 0 <= frame < 2**64:
        raise ValueError(f"frame {frame!r} is not an image id")
    order = header.get("endianness", header.get("endianess", "little"))
    if order not in ("little", "big"):
        raise ValueError(f"endianness {order!r}; allowed are little, big")
    dtype = np.dtype(kind).newbyteorder("<" if order == "little" else ">")
    if shape[0] * shape[1] * dtype.itemsize > MAX_ARRAY_BYTES:
        raise ValueError(f"shape {shape} of {kind}: larger than {MAX_ARRAY_BYTES} bytes")
    return Header((shape[0], shape[1]), dtype, frame)


def decode(header_frame: bytes, pixels: bytes | memoryview) -> tuple[int, np.ndarray]:
    """Read both frames.

    Returns
    -------
    tuple
        The image id and the image (height, width), a view of `pixels`.

    Raises
    ------
    ValueError
        If the header is wrong or the pixels are not as many as it says.
    """
    header = decode_header(header_frame)
    expected = header.shape[0] * header.shape[1] * header.dtype.itemsize
    if len(pixels) != expected:
        raise ValueError(f"{len(pixels)} bytes of pixels; the header says {expected}")
    return header.frame, np.frombuffer(pixels, header.dtype).reshape(header.shape)
