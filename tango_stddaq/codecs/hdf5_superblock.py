"""The first 48 bytes of an HDF5 file (superblock version 2 and 3): where the file ends, who has it open.

Layout from the HDF5 file format specification, version 3.0, section II.A: signature, version, size of
offsets, size of lengths, *consistency flags* (byte 11), base address, address of the extension, *end of
file address* (byte 28), address of the root group, checksum (Jenkins' lookup3 of the 44 bytes before).
"""

import struct
from dataclasses import dataclass
from typing import Final

SUPERBLOCK_BYTES: Final = 48
SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_VERSION_AT: Final = 8
_OFFSET_SIZE_AT: Final = 9
_FLAGS_AT: Final = 11
_END_AT: Final = 28
_CHECKSUM_AT: Final = 44
_MASK: Final = 0xFFFFFFFF
_MIX: Final = (4, 6, 8, 16, 19, 4)
_FINAL: Final = (14, 11, 25, 16, 4, 14, 24)


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a file says of itself.

    Attributes
    ----------
    flags
        Bit 0: a writer has it open; bit 2: in SWMR mode. A plain reader refuses a file with flags.
    end
        Where the file ends, in bytes: nothing beyond is read, and a shorter file counts as truncated.
    """

    flags: int
    end: int


def read(data: bytes) -> Superblock:
    """Read a superblock.

    Raises
    ------
    ValueError
        If these are not the first bytes of an HDF5 file with a superblock of version 2 or 3.
    """
    if len(data) < SUPERBLOCK_BYTES or not data.startswith(SIGNATURE):
        raise ValueError("not an HDF5 file")
    if data[_VERSION_AT] not in (2, 3) or data[_OFFSET_SIZE_AT] != 8:
        raise ValueError(f"an HDF5 superblock of version {data[_VERSION_AT]}; 2 and 3 are known here")
    if lookup3(data[:_CHECKSUM_AT]) != struct.unpack_from("<I", data, _CHECKSUM_AT)[0]:
        raise ValueError("the checksum of the HDF5 superblock is wrong")
    return Superblock(data[_FLAGS_AT], struct.unpack_from("<Q", data, _END_AT)[0])


def replaced(data: bytes, new: Superblock) -> bytes:
    """Return a superblock with other flags and another end; errors as in `read`."""
    read(data)
    block = bytearray(data[:SUPERBLOCK_BYTES])
    block[_FLAGS_AT] = new.flags
    struct.pack_into("<Q", block, _END_AT, new.end)
    struct.pack_into("<I", block, _CHECKSUM_AT, lookup3(bytes(block[:_CHECKSUM_AT])))
    return bytes(block)


def lookup3(data: bytes) -> int:
    """Return Bob Jenkins' lookup3 hash (`hashlittle` with 0), HDF5's checksum of metadata."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    at = 0
    while len(data) - at > 12:
        x, y, z = struct.unpack_from("<III", data, at)
        a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
        for bits in _MIX:
            a = (a - c) & _MASK ^ _rotated(c, bits)
            c = (c + b) & _MASK
            a, b, c = b, c, a
        at += 12
    if at == len(data):
        return c
    x, y, z = struct.unpack("<III", data[at:].ljust(12, b"\0"))
    a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
    for bits in _FINAL:
        c = ((c ^ b) - _rotated(b, bits)) & _MASK
        a, b, c = b, c, a
    # After seven turns of three the words have moved on by one.
    return b


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _MASK
