"""Compressed data in bsread messages: lz4 and bitshuffle_lz4, of data headers and of pixels.

Formats: sections 5 and 6 of the interface contract. What comes from outside is checked before a library
sees it.
"""

import struct
from contextlib import suppress
from enum import StrEnum
from typing import Final

import bitshuffle  # type: ignore[import-untyped]
import lz4.block  # type: ignore[import-untyped]
import numpy as np

MAX_HEADER_BYTES: Final = 1024 * 1024
"""Of either header, uncompressed: a thousand channels fit."""
_BITSHUFFLE_HEADER: Final = struct.Struct(">QI")
"""Uncompressed bytes, block size in bytes; section 6 of the contract."""
_BLOCK_SIZE: Final = struct.Struct(">I")
_BITSHUFFLE_MULTIPLE: Final = 8
"""Elements that are shuffled together; what is left over at the end is stored as it is."""
_BITSHUFFLE_TARGET_BYTES: Final = 8192
_BITSHUFFLE_MIN_BLOCK: Final = 128
Buffer = bytes | memoryview


class BsreadCompression(StrEnum):
    """How a data header or a channel's data is compressed, as the headers spell it."""

    NONE = "none"
    LZ4 = "lz4"
    BITSHUFFLE_LZ4 = "bitshuffle_lz4"


def compress(array: np.ndarray, compression: BsreadCompression) -> bytes:
    """Return the bytes of an array as a message holds them."""
    match compression:
        case BsreadCompression.NONE:
            return array.tobytes()
        case BsreadCompression.LZ4:
            # The contract does not say in which order the size is: PSI's sender takes network order.
            size = array.nbytes.to_bytes(4, "big")
            return size + bytes(lz4.block.compress(array.tobytes(), store_size=False))
        case BsreadCompression.BITSHUFFLE_LZ4:
            block_bytes = _default_block(array.itemsize) * array.itemsize
            header = _BITSHUFFLE_HEADER.pack(array.nbytes, block_bytes)
            return header + bytes(bitshuffle.compress_lz4(array.reshape(-1), 0).tobytes())


def decompress_header(data: bytes, compression: BsreadCompression) -> bytes:
    """Return a data header as it was before compression.

    Raises
    ------
    ValueError
        If it is damaged, or not of the size that is expected.
    """
    match compression:
        case BsreadCompression.NONE:
            return data
        case BsreadCompression.LZ4:
            sizes = [size for size in _lz4_sizes(data) if size <= MAX_HEADER_BYTES]
            for size in sizes:
                with suppress(ValueError):  # of two plausible sizes only one is that of the data
                    return unpack_lz4(data, size)
            raise ValueError(f"compressed data header: damaged, or larger than {MAX_HEADER_BYTES} bytes")
        case BsreadCompression.BITSHUFFLE_LZ4:
            n_bytes, _ = _bitshuffle_sizes(data)
            if n_bytes > MAX_HEADER_BYTES:
                raise ValueError(f"compressed data header: larger than {MAX_HEADER_BYTES} bytes")
            return unpack_bitshuffle_lz4(data, n_bytes, np.dtype(np.uint8)).tobytes()


def _lz4_sizes(data: Buffer) -> tuple[int, int]:
    """Return the size in front as big and as little endian: senders of either kind exist."""
    if len(data) < 4:
        raise ValueError(f"lz4 data of {len(data)} bytes: no size in front")
    return int.from_bytes(data[:4], "big"), int.from_bytes(data[:4], "little")


def unpack_lz4(data: Buffer, n_bytes: int) -> bytes:
    """Return the `n_bytes` that lz4 data holds.

    Raises
    ------
    ValueError
        If it is damaged, or not of the size that is expected.
    """
    sizes = _lz4_sizes(data)
    if n_bytes not in sizes:
        raise ValueError(f"lz4 data says {sizes[0]} bytes; {n_bytes} are expected")
    try:
        result: bytes = lz4.block.decompress(data[4:], uncompressed_size=n_bytes)
    except lz4.block.LZ4BlockError as error:
        raise ValueError(f"lz4 data is damaged: {error}") from error
    if len(result) != n_bytes:
        raise ValueError(f"lz4 data holds {len(result)} bytes; {n_bytes} are expected")
    return result


def _bitshuffle_sizes(data: Buffer) -> tuple[int, int]:
    """Return the bytes of the uncompressed data and of a block, 0 where that is automatic."""
    if len(data) < _BITSHUFFLE_HEADER.size:
        raise ValueError(f"bitshuffle_lz4 data of {len(data)} bytes: its header is cut")
    n_bytes, block_bytes = _BITSHUFFLE_HEADER.unpack_from(data)
    return n_bytes, block_bytes


def unpack_bitshuffle_lz4(data: Buffer, n_bytes: int, dtype: np.dtype) -> np.ndarray:
    """Return the elements that bitshuffle_lz4 data holds, (n_bytes / itemsize,) of the dtype.

    Raises
    ------
    ValueError
        If it is damaged, or not of the size that is expected.
    """
    said, block_bytes = _bitshuffle_sizes(data)
    if said != n_bytes:
        raise ValueError(f"bitshuffle_lz4 data says {said} bytes; {n_bytes} are expected")
    n_elements, block = n_bytes // dtype.itemsize, block_bytes // dtype.itemsize
    if block_bytes % (dtype.itemsize * _BITSHUFFLE_MULTIPLE) or block_bytes > max(
        n_bytes, MAX_HEADER_BYTES
    ):
        raise ValueError(f"bitshuffle_lz4 block of {block_bytes} bytes")
    _check_blocks(data, n_elements, dtype.itemsize, block or _default_block(dtype.itemsize))
    if not n_elements:
        return np.empty(0, dtype)
    chunk = np.frombuffer(data, np.uint8)[_BITSHUFFLE_HEADER.size :]
    try:
        result: np.ndarray = bitshuffle.decompress_lz4(chunk, (n_elements,), dtype, block)
    except RuntimeError as error:
        raise ValueError(f"bitshuffle_lz4 data is damaged: {error}") from error
    return result


def _default_block(itemsize: int) -> int:
    """Return the elements of a block where the sender leaves it to the library (bitshuffle_core.c)."""
    block = _BITSHUFFLE_TARGET_BYTES // itemsize // _BITSHUFFLE_MULTIPLE * _BITSHUFFLE_MULTIPLE
    return max(block, _BITSHUFFLE_MIN_BLOCK)


def _check_blocks(data: Buffer, n_elements: int, itemsize: int, block: int) -> None:
    """Follow the chain of blocks: the library believes their sizes and would read past the end."""
    n_blocks = n_elements // block + (n_elements % block >= _BITSHUFFLE_MULTIPLE)
    at, end = _BITSHUFFLE_HEADER.size, len(data)
    read = _BLOCK_SIZE.unpack_from
    for _ in range(n_blocks):
        if at + _BLOCK_SIZE.size > end:
            raise ValueError(f"bitshuffle_lz4 data ends within its blocks at byte {at}")
        at += _BLOCK_SIZE.size + read(data, at)[0]
    at += n_elements % _BITSHUFFLE_MULTIPLE * itemsize
    if at != end:
        raise ValueError(f"bitshuffle_lz4 data of {end} bytes; its blocks make {at}")
