"""Datagrams as a receive call leaves them: their sizes, their headers, and the way of their pixels."""

from typing import Final

import numpy as np
from numba import uint64, uintp

from tango_stddaq.detectors.layout import HeaderKind, PixelFormat
from tango_stddaq.processing.columns import (
    CONTROL_STRIDE,
    CONTROLS_AT,
    FORMAT,
    HEADER_KIND,
    LAST_PIECE,
    LAST_PIECES,
    N_PACKETS,
    N_PIECES,
    NO_ID,
    PIECE,
    ROWS,
)
from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.convert import apply_gain, unpack_12_to_16
from tango_stddaq.processing.native import float_of_bits, memcpy, read_u32
from tango_stddaq.processing.slots import MAX_IMAGE_ID

_TRUNCATED: Final = 0x20
"""MSG_TRUNC in the message's flags: the datagram was longer than a packet."""
_SOL_UDP: Final = 17
_UDP_GRO: Final = 104
_GRO_CONTROL_BYTES: Final = 20
_GIGAFROST_PROTOCOL: Final = 0xCB
_SLS, _GIGAFROST = int(HeaderKind.SLS), int(HeaderKind.GIGAFROST)
_COPY, _PACKED_12 = int(PixelFormat.COPY), int(PixelFormat.PACKED_12)


@inner
def message_bytes(messages, m):
    """Return the bytes of a message; -1 if it was longer than its vectors."""
    if messages[m, 6] & uint64(_TRUNCATED):
        return np.int64(-1)
    return np.int64(messages[m, 7] & uint64(0xFFFFFFFF))


@inner
def datagram_bytes(messages, m, length, geometry):
    """Return the size of each datagram of a message but the last, which may be shorter.

    The kernel says it (UDP_GRO) where it has put several datagrams of one sender behind one another.
    """
    if messages[m, 5] >= uint64(_GRO_CONTROL_BYTES):
        control = geometry[CONTROLS_AT] + m * CONTROL_STRIDE
        is_gro = read_u32(uintp(control + 8)) == uint64(_SOL_UDP) and (
            read_u32(uintp(control + 12)) == uint64(_UDP_GRO)
        )
        size = np.int64(read_u32(uintp(control + 16)))
        if is_gro and 0 < size < length:
            return size
    return max(length, np.int64(1))


@inner
def parse(header, geometry):
    """Read the packet header at address `header`.

    Returns
    -------
    tuple
        What tells frames apart, the image id, and the packet number; -1 for an id that is malformed.
    """
    kind = geometry[HEADER_KIND]
    if kind == _GIGAFROST:
        first_row = np.int64(read_u32(uintp(header + 12)) >> uint64(16))
        number = np.int64(read_u32(uintp(header + 8)))
        if read_u32(uintp(header)) & uint64(0xFF) != uint64(_GIGAFROST_PROTOCOL) or (
            first_row % geometry[ROWS] != 0
        ):
            return np.int64(NO_ID), number, np.int64(0)
        return number, number, first_row // geometry[ROWS]
    number = np.int64(read_u32(uintp(header)) | (read_u32(uintp(header + 4)) << uint64(32)))
    packet = np.int64(read_u32(uintp(header + 12)))
    if kind == _SLS:
        return number, number, packet
    low, high = read_u32(uintp(header + 16)), read_u32(uintp(header + 20))
    bunch = float_of_bits(low | (high << uint64(32)))
    if not (bunch >= 0.0 and bunch <= np.float64(MAX_IMAGE_ID)):  # also of no number
        return number, np.int64(NO_ID), packet
    return number, np.int64(bunch), packet


@inner
def place(payload, slot, source, packet, offsets, maps, geometry):
    """Bring a payload to its image, converting its pixels; returns how many of them are invalid."""
    last = packet == geometry[N_PACKETS] - 1
    n_pieces = geometry[LAST_PIECES] if last else geometry[N_PIECES]
    piece = geometry[LAST_PIECE] if last else geometry[PIECE]
    pixel_format = geometry[FORMAT]
    invalid = np.int64(0)
    for k in range(n_pieces):
        target = slot + offsets[source, packet, k]
        if pixel_format == _COPY:
            memcpy(uintp(target), uintp(payload + k * piece), uintp(piece))
        elif pixel_format == _PACKED_12:
            n_pixels = piece // 2
            unpack_12_to_16(payload + k * (n_pixels * 3 // 2), target, n_pixels)
        else:
            n_pixels = piece // 4
            first = (packet * geometry[N_PIECES] + k) * n_pixels
            invalid += apply_gain(
                payload + k * n_pixels * 2, target, n_pixels, maps[source, 1], maps[source, 0], first
            )
    return invalid


@compiled
def place_frame(frame, slot, source, packet_pixel_bytes, offsets, maps, geometry):
    """Bring a whole raw frame at address `frame` to its image; returns the invalid pixels."""
    invalid = np.int64(0)
    for packet in range(geometry[N_PACKETS]):
        invalid += place(
            frame + packet * packet_pixel_bytes, slot, source, packet, offsets, maps, geometry
        )
    return invalid
