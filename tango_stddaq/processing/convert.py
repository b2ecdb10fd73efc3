"""Pixel conversions, each one pass from packet bytes to image bytes. Addresses are plain integers."""

from typing import Final

from numba import int64, uint64, uintp

from tango_stddaq.processing.compiled import compiled
from tango_stddaq.processing.native import (
    gain_8,
    gain_8_of_stage_0,
    gain_8_of_stages_0_and_1,
    read_u16,
    read_u64,
    unpack_8_pixels,
    write_u32,
)

_BLOCK: Final = 32
_STAGE_BITS = uint64(0xC000C000C000C000)
_UPPER_STAGE_BITS = uint64(0x8000800080008000)


@compiled
def unpack_12_to_16(source, target, n_pixels):
    """Unpack 12-bit pixels, packed little endian, to 16 bits each.

    Parameters
    ----------
    source, target
        Addresses; `n_pixels * 3 / 2` bytes are read, `n_pixels * 2` written.
    n_pixels
        Even.
    """
    # The last group, and what is less than one, without reading beyond the end.
    n_groups = max(0, n_pixels // 8 - 1)
    for i in range(n_groups):
        unpack_8_pixels(uintp(source + 12 * i), uintp(target + 16 * i))
    for i in range(4 * n_groups, n_pixels // 2):
        at = source + 3 * i
        low, high = read_u16(uintp(at)), read_u16(uintp(at + 1)) >> uint64(4)
        write_u32(uintp(target + 4 * i), (low & uint64(0xFFF)) | (high << uint64(16)))


@compiled
def apply_gain(source, target, n_pixels, gains, pedestals, first):
    """Convert raw Jungfrau pixels to energies.

    The upper two bits of a pixel tell its gain stage: 0 -> 0, 1 -> 1, 3 -> 2; 2 is invalid.

    Parameters
    ----------
    source, target
        Addresses; 2 bytes a pixel are read, 4 bytes (float32) written.
    gains, pedestals
        (3, pixels of a module) float32; the result is `(adc - pedestal) * gain`.
    n_pixels
        A multiple of 32.
    first
        Position of the first pixel in the module.

    Returns
    -------
    int
        Pixels with the invalid stage; they become NaN.
    """
    maps = (
        uintp(pedestals.ctypes.data + 4 * first), uintp(gains.ctypes.data + 4 * first),
        uintp(pedestals.strides[0]),
    )  # fmt: skip
    invalid = int64(0)
    for start in range(0, n_pixels, _BLOCK):
        stages = uint64(0)
        for at in range(source + 2 * start, source + 2 * (start + _BLOCK), 8):
            stages |= read_u64(uintp(at))
        for i in range(start, start + _BLOCK, 8):
            pixels, energies = uintp(source + 2 * i), uintp(target + 4 * i)
            pedestal, gain = maps[0] + uintp(4 * i), maps[1] + uintp(4 * i)
            # Stages come in clusters: the maps of those that are not there are not read.
            if stages & _STAGE_BITS == uint64(0):
                gain_8_of_stage_0(pixels, energies, pedestal, gain, maps[2])
            elif stages & _UPPER_STAGE_BITS == uint64(0):
                gain_8_of_stages_0_and_1(pixels, energies, pedestal, gain, maps[2])
            else:
                invalid += gain_8(pixels, energies, pedestal, gain, maps[2])
    return invalid
