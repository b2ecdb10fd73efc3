"""bsread (`bsr_m-1.1`): an image as four ZeroMQ frames, as cameras over BSREAD send it.

Main header (JSON), data header (JSON, its MD5 in the main header), the pixels, and a timestamp; two more
frames for each further channel. Only the first channel is an image to us. Layout: section 4 and 5 of the
interface contract, compressed data its section 6.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, Final, TypeGuard

import numpy as np

from tango_stddaq.codecs.array10 import TYPES
from tango_stddaq.codecs.bsread_compression import (
    MAX_HEADER_BYTES,
    BsreadCompression,
    Buffer,
    compress,
    decompress_header,
    unpack_bitshuffle_lz4,
    unpack_lz4,
)
from tango_stddaq.codecs.bsread_message import ORDERS, Channel, DataHeader, MainHeader, Message

MAIN_HTYPE: Final = "bsr_m-1.1"
DATA_HTYPE: Final = "bsr_d-1.1"
MAX_ARRAY_BYTES: Final = 2**30
MAX_CHANNELS: Final = 1024
_MAX_CACHED_HEADERS: Final = 16
_N_HEADERS: Final = 2
_U64_END: Final = 2**64


# -- decoding --------------------------------------------------------------------------------------


class Decoder:
    """Decodes messages; a data header that is seen again costs one comparison."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, BsreadCompression], tuple[bytes, DataHeader]] = {}

    def decode(self, frames: Sequence[Buffer]) -> Message:
        """Read a message of four frames, or more if it has several channels.

        Raises
        ------
        ValueError
            If anything but the pixels is malformed; those are read by `unpack`.
        """
        if len(frames) < _N_HEADERS + 2:
            raise ValueError(f"bsread message of {len(frames)} frames; at least 4 are needed")
        main = decode_main_header(frames[0])
        header = self._data_header(main, frames[1])
        if len(frames) != _N_HEADERS + 2 * header.n_channels:
            raise ValueError(
                f"bsread message of {len(frames)} frames; {header.n_channels} channels need "
                f"{_N_HEADERS + 2 * header.n_channels}"
            )
        timestamp = decode_timestamp(frames[3], header.channel.encoding)
        return Message(main, header.channel, frames[2], timestamp)

    def _data_header(self, main: MainHeader, frame: Buffer) -> DataHeader:
        key = (main.data_header_hash, main.header_compression)
        known = self._known.get(key)
        # The bytes are compared, not only their hash: what differs is refused below.
        if known is not None and known[0] == frame:
            return known[1]
        data = _bounded(frame, "data header")
        found = _md5(data)
        if found != main.data_header_hash:
            raise ValueError(f"data header has hash {found}; the main header says {key[0][:64]!r}")
        header = decode_data_header(data, main.header_compression)
        if len(self._known) >= _MAX_CACHED_HEADERS:
            self._known.clear()
        self._known[key] = (data, header)
        return header


def decode_main_header(frame: Buffer) -> MainHeader:
    """Read the first frame.

    Raises
    ------
    ValueError
        If it is not a main header.
    """
    header = _json_object(_bounded(frame, "main header"), MAIN_HTYPE)
    pulse_id, stamp, found = (header.get(key) for key in ("pulse_id", "global_timestamp", "hash"))
    if not _is_u64(pulse_id):
        raise ValueError(f"pulse_id {pulse_id!r:.40} is not an image id")
    if not isinstance(stamp, dict):
        raise ValueError(f"global_timestamp {stamp!r:.40} is not an object")
    seconds, nanoseconds = stamp.get("sec", stamp.get("epoch")), stamp.get("ns")
    if not _is_u64(seconds) or not _is_u64(nanoseconds):
        raise ValueError(f"global_timestamp {stamp!r:.80}: sec and ns must be whole numbers")
    if not isinstance(found, str):
        raise ValueError(f"hash {found!r:.40} is not text")
    return MainHeader(
        pulse_id,
        (seconds, nanoseconds),
        found.lower(),
        _compression(header.get("dh_compression"), "dh_compression"),
    )


def decode_data_header(
    data: bytes, compression: BsreadCompression = BsreadCompression.NONE
) -> DataHeader:
    """Read the second frame.

    Raises
    ------
    ValueError
        If it is not a data header, or its first channel is not a two-dimensional image.
    """
    channels = _json_object(decompress_header(data, compression), DATA_HTYPE).get("channels")
    if not isinstance(channels, list) or not 0 < len(channels) <= MAX_CHANNELS:
        raise ValueError(f"channels {channels!r:.40}: a list of 1 to {MAX_CHANNELS} is needed")
    return DataHeader(_channel(channels[0]), len(channels))


def decode_timestamp(frame: Buffer, encoding: str = "little") -> tuple[int, int] | None:
    """Read a timestamp frame: two 64-bit integers in the byte order of the channel, or nothing.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if not len(frame):
        return None
    if len(frame) != 16:
        raise ValueError(f"timestamp of {len(frame)} bytes; allowed are 0 and 16")
    seconds, nanoseconds = struct.unpack(f"{ORDERS[encoding]}qq", frame)
    return seconds, nanoseconds


def unpack(channel: Channel, data: Buffer, out: np.ndarray) -> None:
    """Write the pixels of a channel, decompressed and little endian.

    Parameters
    ----------
    out
        (channel.n_bytes,) uint8, C contiguous.

    Raises
    ------
    ValueError
        If the data is not what the channel says; `out` may be partly written then.
    """
    match channel.compression:
        case BsreadCompression.NONE:
            if len(data) != channel.n_bytes:
                raise ValueError(f"{len(data)} bytes of pixels; the header says {channel.n_bytes}")
            pixels = np.frombuffer(data, channel.dtype)
        case BsreadCompression.LZ4:
            pixels = np.frombuffer(unpack_lz4(data, channel.n_bytes), channel.dtype)
        case BsreadCompression.BITSHUFFLE_LZ4:
            pixels = unpack_bitshuffle_lz4(data, channel.n_bytes, channel.dtype)
    # One pass over the memory for both, copying and changing the byte order.
    np.copyto(out.view(channel.dtype.newbyteorder("<")), pixels)


def _channel(entry: object) -> Channel:
    if not isinstance(entry, dict):
        raise ValueError(f"channel {entry!r:.40} is not an object")
    name, shape, kind = (entry.get(key) for key in ("name", "shape", "type"))
    if not isinstance(name, str):
        raise ValueError(f"channel name {name!r:.40} is not text")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(side) is int and 0 < side < 2**31 for side in shape)
    ):
        raise ValueError(f"shape {shape!r:.40} is not [width, height]")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"type {kind!r:.40}; allowed are {', '.join(sorted(TYPES))}")
    order = entry.get("encoding", "little")
    if not isinstance(order, str) or order not in ORDERS:
        raise ValueError(f"encoding {order!r:.40}; allowed are {', '.join(ORDERS)}")
    channel = Channel(
        name,
        (shape[1], shape[0]),
        kind,
        order,
        _compression(entry.get("compression"), "compression"),
    )
    if channel.n_bytes > MAX_ARRAY_BYTES:
        raise ValueError(f"shape {shape} of {kind}: larger than {MAX_ARRAY_BYTES} bytes")
    return channel


def _compression(value: Any, key: str) -> BsreadCompression:
    if value is None:
        return BsreadCompression.NONE
    try:
        return BsreadCompression(value)
    except ValueError:
        allowed = ", ".join(BsreadCompression)
        raise ValueError(f"{key} {value!r:.40}; allowed are {allowed}") from None


def _json_object(data: bytes, htype: str) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{htype} header is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("htype") != htype:
        raise ValueError(f"htype is not {htype}")
    return header


def _is_u64(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _U64_END


def _bounded(frame: Buffer, what: str) -> bytes:
    if len(frame) > MAX_HEADER_BYTES:
        raise ValueError(f"{what} of {len(frame)} bytes; allowed are {MAX_HEADER_BYTES}")
    return bytes(frame)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# -- encoding --------------------------------------------------------------------------------------


def encode_data_header(
    channel: Channel, compression: BsreadCompression = BsreadCompression.NONE
) -> bytes:
    """Return the second frame of a message with one channel; defaults are left out."""
    entry: dict[str, Any] = {
        "name": channel.name,
        "shape": [channel.shape[1], channel.shape[0]],
        "type": channel.kind,
    }
    if channel.encoding == "big":
        entry["encoding"] = "big"
    if channel.compression != BsreadCompression.NONE:
        entry["compression"] = str(channel.compression)
    data = _dump({"htype": DATA_HTYPE, "channels": [entry]})
    return compress(np.frombuffer(data, np.uint8), compression)


def encode_main_header(
    pulse_id: int,
    timestamp: tuple[int, int],
    data_header: bytes,
    header_compression: BsreadCompression = BsreadCompression.NONE,
) -> bytes:
    """Return the first frame.

    Parameters
    ----------
    timestamp
        (seconds, nanoseconds).
    data_header
        The second frame as it is sent.
    """
    header: dict[str, Any] = {
        "htype": MAIN_HTYPE,
        "pulse_id": pulse_id,
        "global_timestamp": {"sec": timestamp[0], "ns": timestamp[1]},
        "hash": _md5(data_header),
    }
    if header_compression != BsreadCompression.NONE:
        header["dh_compression"] = str(header_compression)
    return _dump(header)


def encode(
    pulse_id: int,
    timestamp: tuple[int, int],
    channel: Channel,
    image: np.ndarray,
    header_compression: BsreadCompression = BsreadCompression.NONE,
) -> list[bytes]:
    """Return the four frames of an image.

    Parameters
    ----------
    timestamp
        (seconds, nanoseconds), of the pulse and of the channel.
    image
        `channel.shape`, of any byte order; it is sent in the channel's.
    """
    data_header = encode_data_header(channel, header_compression)
    return [
        encode_main_header(pulse_id, timestamp, data_header, header_compression),
        data_header,
        compress(np.ascontiguousarray(image, channel.dtype), channel.compression),
        struct.pack(f"{ORDERS[channel.encoding]}qq", *timestamp),
    ]


def _dump(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()
