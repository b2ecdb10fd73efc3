"""Recorded packets: for each packet its length as a 64-bit integer, then that many bytes."""

import struct
from collections.abc import Iterator
from typing import Final

MAX_PACKET_BYTES: Final = 65_535
_LENGTH: Final = struct.Struct("<Q")


def decode(data: bytes | memoryview) -> Iterator[memoryview]:
    """Yield the packets of a dump.

    Raises
    ------
    ValueError
        If the dump ends within a packet, or a length is larger than a datagram can be.
    """
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        if offset + _LENGTH.size > len(view):
            raise ValueError(f"dump ends within a length at byte {offset}")
        (length,) = _LENGTH.unpack_from(view, offset)
        if length > MAX_PACKET_BYTES:
            raise ValueError(f"packet of {length} bytes at byte {offset}: not a dump of datagrams")
        offset += _LENGTH.size
        if offset + length > len(view):
            raise ValueError(f"dump ends within a packet at byte {offset}")
        yield view[offset : offset + length]
        offset += length


def encode(packet: bytes | memoryview) -> bytes:
    """Return one packet in the form in which a dump holds it."""
    return _LENGTH.pack(len(packet)) + bytes(packet)
