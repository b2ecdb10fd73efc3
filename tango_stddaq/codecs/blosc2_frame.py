"""A blosc2 chunk as the contiguous frame that HDF5 filter 32026 stores.

A compressor leaves a bare *chunk* in its ring; HDF5 wants a *frame*: a header, the chunk, the list of
chunk offsets (a chunk itself, of one offset here), a trailer. Layout: README_CFRAME_FORMAT.rst and
README_CHUNK_FORMAT.rst of c-blosc2. Numbers in the frame are big endian (msgpack), those in a chunk are
little endian.
"""

import struct
from typing import Final

FILTER: Final = 32026
"""HDF5's number of the blosc2 filter."""
BITSHUFFLE: Final = 2
"""blosc2's number of the bit shuffle filter."""
LZ4: Final = 1
"""blosc2's number of the LZ4 codec."""
FILTER_OPTIONS: Final = (0, 0, 0, 0, 5, BITSHUFFLE, LZ4)
"""Options (cd_values) of the filter for a new dataset. The filter itself fills in what stands in front
(revision, block, type and chunk size) and behind (chunk shape); level, shuffle and codec are only for
those who let HDF5 compress. Reading needs none of them right but the first four to be there."""

_CHUNK: Final = struct.Struct("<BBBBiii6sBB6sBB")
"""version, LZ version, flags, type size, bytes, block bytes, compressed bytes, filters, codec, its meta,
filter metas, two bytes of flags."""
_EXTENDED: Final = 0x05
"""Flags of a chunk with the 32-byte header of blosc2: both shuffle bits of old blosc, which exclude each
other there."""
_HEADER: Final = struct.Struct(">BB8sBiBQB4sBqBqBiBiBiBhBhBBB6sBB8s10s")
_OFFSETS: Final = bytes.fromhex("05010708080000000800000028000000") + bytes(16) + bytes(8)
"""A stored chunk of one 64-bit offset: our chunk begins at 0."""
_NO_METALAYERS: Final = bytes.fromhex("de0000dc0000")
_TRAILER_BYTES: Final = 35
_TRAILER: Final = (
    bytes.fromhex("9401" "93cd0006")
    + _NO_METALAYERS
    + b"\xce" + _TRAILER_BYTES.to_bytes(4, "big")
    + b"\xd8" + bytes(17)
)  # fmt: skip
FRAME_OVERHEAD_BYTES: Final = _HEADER.size + len(_OFFSETS) + len(_TRAILER)
"""So much longer than its chunk is a frame."""


def frame_of_chunk(chunk: bytes | bytearray | memoryview) -> bytearray:
    """Wrap one blosc2 chunk to a contiguous frame.

    Parameters
    ----------
    chunk
        As `blosc2_compress_ctx` makes it, of any codec and filter; contiguous bytes, a slot of a ring
        for example. It is copied once.

    Raises
    ------
    ValueError
        If it is not a chunk, or not of the length that it says.
    """
    if len(chunk) < _CHUNK.size:
        raise ValueError(f"blosc2 chunk of {len(chunk)} bytes: its header has {_CHUNK.size}")
    _, _, flags, itemsize, n_bytes, _, n_compressed, filters, codec, codec_meta, metas, _, _ = (
        _CHUNK.unpack_from(chunk)
    )
    if flags & _EXTENDED != _EXTENDED:
        raise ValueError(f"flags {flags:#x} are not those of a blosc2 chunk")
    if n_compressed != len(chunk):
        raise ValueError(f"blosc2 chunk says {n_compressed} bytes; there are {len(chunk)}")
    if n_bytes < 0 or not itemsize:
        raise ValueError(f"blosc2 chunk of {n_bytes} bytes in items of {itemsize}")
    frame = bytearray(FRAME_OVERHEAD_BYTES + n_compressed)
    level = 5
    flags_of_frame = bytes((0x12, 0, level << 4 | min(codec, 0xF), 3))  # 64-bit offsets, contiguous
    metalayers = bytes.fromhex("93cd0007") + _NO_METALAYERS
    _HEADER.pack_into(
        frame, 0,
        0x9E, 0xA8, b"b2frame\0",
        0xD2, _HEADER.size,
        0xCF, len(frame),
        0xA4, flags_of_frame,
        0xD3, n_bytes,
        0xD3, n_compressed,
        0xD2, itemsize,
        0xD2, 0,  # block size: each chunk says its own
        0xD2, n_bytes,
        0xD1, 1,
        0xD1, 1,
        0xC2,
        0xD8, len(filters), filters, codec, codec_meta, metas + b"\0\0",
        metalayers,
    )  # fmt: skip
    end = _HEADER.size + n_compressed
    frame[_HEADER.size : end] = chunk
    frame[end:] = _OFFSETS + _TRAILER
    return frame
