"""How a live stream dresses an image for its clients: the small frames around the pixels."""

import struct
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from tango_stddaq.codecs import array10, bsread
from tango_stddaq.codecs.bsread_compression import BsreadCompression
from tango_stddaq.codecs.bsread_message import Channel
from tango_stddaq.model import Compression, Image, PcoMetadata

_BILLION: Final = 10**9
_MAX_CACHED: Final = 16


class StreamProtocol(StrEnum):
    """What the clients of a live stream speak."""

    ARRAY10 = "array-1.0"
    BSREAD = "bsread"


class Frames(NamedTuple):
    """The small frames of a message.

    Attributes
    ----------
    before, after
        What comes before and after the pixels; None if they are the last frame.
    """

    before: list[bytes]
    after: bytes | None


StreamFormat = Callable[[Image, BsreadCompression, int], Frames]
"""Takes an image, the compression of its pixels as sent, and the time in ns since 1970."""


def stream_format(protocol: StreamProtocol, detector_name: str) -> StreamFormat:
    """Return what dresses images for a protocol.

    Parameters
    ----------
    detector_name
        Name of the bsread channel, for images that bring none of their own.
    """
    return _array10 if protocol is StreamProtocol.ARRAY10 else _Bsread(detector_name)


def can_send(protocol: StreamProtocol, image: Image) -> bool:
    """Return whether the pixels can be sent as they lie in the ring: array-1.0 knows no compression."""
    if not image.dtype:
        return False
    if protocol is StreamProtocol.BSREAD and image.compression is Compression.H5BITSHUFFLE_LZ4:
        return True
    return image.compression is Compression.NONE


def _array10(image: Image, _compression: BsreadCompression, _now_ns: int) -> Frames:
    return Frames([array10.encode_header(image)], None)


class _Bsread:
    """Data headers are made once: they only change with the shape of the images."""

    def __init__(self, detector_name: str) -> None:
        self._detector_name = detector_name
        self._headers: dict[tuple[object, ...], bytes] = {}

    def __call__(self, image: Image, compression: BsreadCompression, now_ns: int) -> Frames:
        seconds, nanoseconds = divmod(now_ns, _BILLION)
        name = self._detector_name
        if isinstance(image.detector, PcoMetadata):
            name = image.detector.bsread_name or name
            if image.detector.global_timestamp_sec:  # of the camera itself: better than ours
                seconds = image.detector.global_timestamp_sec
                nanoseconds = image.detector.global_timestamp_ns
        header = self._data_header(image, name, compression)
        main = bsread.encode_main_header(image.image_id, (seconds, nanoseconds), header)
        # The timestamp frame is signed; a camera may have sent anything.
        stamp = struct.pack("<QQ", seconds, nanoseconds)
        return Frames([main, header], stamp)

    def _data_header(self, image: Image, name: str, compression: BsreadCompression) -> bytes:
        key = (name, image.shape, image.dtype, compression)
        header = self._headers.get(key)
        if header is None:
            channel = Channel(name, image.shape, image.dtype.name.lower(), compression=compression)
            if len(self._headers) >= _MAX_CACHED:
                self._headers.clear()
            header = self._headers[key] = bsread.encode_data_header(channel)
        return header
