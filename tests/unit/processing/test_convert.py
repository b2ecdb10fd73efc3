"""Pixel conversions against plain numpy, at any address, and never a byte too far."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.detectors.gigafrost import pack_12
from tango_stddaq.processing.convert import apply_gain, unpack_12_to_16

GUARD = 64
GUARD_BYTE = 0xA5


def guarded(n_bytes: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Return memory of guard bytes, and `n_bytes` in its middle, `shift` bytes off alignment."""
    memory = np.full(n_bytes + 2 * GUARD + 8, GUARD_BYTE, np.uint8)
    return memory, memory[GUARD + shift : GUARD + shift + n_bytes]


def is_untouched(memory: np.ndarray, n_bytes: int, shift: int) -> bool:
    around = np.concatenate([memory[: GUARD + shift], memory[GUARD + shift + n_bytes :]])
    return bool((around == GUARD_BYTE).all())


@settings(deadline=None, max_examples=60)
@given(
    n_pixels=st.integers(1, 60).map(lambda n: 2 * n), seed=st.integers(0, 2**32),
    shifts=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)  # fmt: skip
def test_twelve_bits_become_sixteen(n_pixels: int, seed: int, shifts: tuple[int, int]) -> None:
    pixels = np.random.default_rng(seed).integers(0, 4096, n_pixels).astype(np.uint16)
    packed = pack_12(pixels)
    _, source = guarded(packed.size, shifts[0])
    source[:] = packed
    memory, target = guarded(2 * n_pixels, shifts[1])
    unpack_12_to_16(source.ctypes.data, target.ctypes.data, n_pixels)
    assert target.tobytes() == pixels.tobytes()
    assert is_untouched(memory, 2 * n_pixels, shifts[1])


STAGES = {
    "0": [1.0, 0, 0, 0], "0 and 1": [0.9, 0.1, 0, 0], "1": [0, 1.0, 0, 0], "3": [0, 0, 0, 1.0],
    "all": [0.4, 0.2, 0.2, 0.2],
}  # fmt: skip


@pytest.mark.parametrize("shares", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("shift", [0, 2, 5])
def test_raw_pixels_become_energies(shares: list[float], shift: int) -> None:
    rng = np.random.default_rng(7)
    n_module, first, n_pixels = 4096, 1024, 1024
    gains = rng.uniform(0.5, 2, (3, n_module)).astype(np.float32)
    pedestals = rng.uniform(0, 9000, (3, n_module)).astype(np.float32)
    bits = rng.choice(4, n_pixels, p=shares).astype(np.uint16)
    adc = rng.integers(0, 0x4000, n_pixels).astype(np.uint16)
    _, source = guarded(2 * n_pixels, shift)
    source[:] = (bits << 14 | adc).astype("<u2").view(np.uint8)
    memory, target = guarded(4 * n_pixels, shift)
    n_invalid = apply_gain(source.ctypes.data, target.ctypes.data, n_pixels, gains, pedestals, first)
    stage = np.array([0, 1, 0, 2])[bits]
    at = first + np.arange(n_pixels)
    expected = (adc.astype(np.float32) - pedestals[stage, at]) * gains[stage, at]
    expected[bits == 2] = np.nan
    np.testing.assert_array_equal(np.frombuffer(target.tobytes(), "<f4"), expected)
    assert n_invalid == np.count_nonzero(bits == 2)
    assert is_untouched(memory, 4 * n_pixels, shift)
