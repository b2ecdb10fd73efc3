"""Pixel conversions, each one pass from packet bytes to image bytes. Addresses are plain integers."""

from typing import Final

from numba import float32, int64, uint64, uintp

from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.native import read_u16, read_u32, write_f32, write_u64

_LOW: Final = 0xFFF
_A, _B, _C, _D = uint64(_LOW), uint64(_LOW << 12), uint64(_LOW << 24), uint64(_LOW << 36)
_4, _8, _12, _16, _32 = uint64(4), uint64(8), uint64(12), uint64(16), uint64(32)


@inner
def _spread(packed):
    """Move four 12-bit values in the low 48 bits apart to four 16-bit values."""
    return (packed & _A) | ((packed & _B) << _4) | ((packed & _C) << _8) | ((packed & _D) << _12)


@compiled
def unpack_12_to_16(source, target, n_pixels):
    """Unpack 12-bit pixels, packed little endian, to 16 bits each.

    Parameters
    ----------
    source, target
        Addresses; `n_pixels * 3 / 2` bytes are read, `n_pixels * 2` written.
    n_pixels
        A multiple of 4.
    """
    for i in range(n_pixels // 8):
        at = source + 12 * i
        low, middle, high = read_u32(uintp(at)), read_u32(uintp(at + 4)), read_u32(uintp(at + 8))
        write_u64(uintp(target + 16 * i), _spread(low | (middle << _32)))
        write_u64(uintp(target + 16 * i + 8), _spread((middle >> _16) | (high << _16)))
    if n_pixels % 8:
        at = source + n_pixels // 8 * 12
        packed = read_u32(uintp(at)) | (read_u16(uintp(at + 4)) << _32)
        write_u64(uintp(target + n_pixels // 8 * 16), _spread(packed))


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
    first
        Position of the first pixel in the module.

    Returns
    -------
    int
        Pixels with the invalid stage; they become NaN.
    """
    invalid = int64(0)
    for i in range(n_pixels):
        value = read_u16(uintp(source + 2 * i))
        stage = value >> uint64(14)
        adc = float32(value & uint64(0x3FFF))
        at = first + i
        result = (adc - pedestals[0, at]) * gains[0, at]
        if stage != uint64(0):
            if stage == uint64(1):
                result = (adc - pedestals[1, at]) * gains[1, at]
            elif stage == uint64(3):
                result = (adc - pedestals[2, at]) * gains[2, at]
            else:
                result = float32(float("nan"))
                invalid += 1
        write_f32(uintp(target + 4 * i), result)
    return invalid
