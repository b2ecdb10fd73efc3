"""Pixel conversions, as multiples of a memcpy of the bytes they produce."""

import numpy as np

from benchmarks.result import Result, paired
from tango_stddaq.detectors.gigafrost import pack_12
from tango_stddaq.processing.convert import apply_gain, unpack_12_to_16

_N_PIXELS = 1024 * 512


def run(quick: bool) -> list[Result]:
    """Measure the conversions of one thread."""
    rounds = 5 if quick else 31
    return [_unpack(rounds), *(_gain(rounds, share) for share in (0.0, 0.1))]


def _unpack(rounds: int) -> Result:
    rng = np.random.default_rng(1)
    source = np.append(pack_12(rng.integers(0, 4096, _N_PIXELS, np.uint16)), np.zeros(8, np.uint8))
    target, other = np.zeros(_N_PIXELS, np.uint16), np.ones(_N_PIXELS, np.uint16)
    took, limit = paired(
        lambda: unpack_12_to_16(source.ctypes.data, target.ctypes.data, _N_PIXELS),
        lambda: np.copyto(target, other),
        rounds,
    )
    gb = target.nbytes / 1e9
    note = f"{took / _N_PIXELS * 1e9:.2f} ns a pixel"
    return Result("kernels/unpack 12 to 16 bit", gb / took, "GB/s out", gb / limit, "memcpy", note)


def _gain(rounds: int, share: float) -> Result:
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 0x4000, _N_PIXELS, np.uint16)
    raw[rng.random(_N_PIXELS) < share] |= 0x4000
    maps = rng.random((2, 3, _N_PIXELS), np.float32)
    target, other = np.zeros(_N_PIXELS, np.float32), np.ones(_N_PIXELS, np.float32)
    took, limit = paired(
        lambda: apply_gain(raw.ctypes.data, target.ctypes.data, _N_PIXELS, maps[1], maps[0], 0),
        lambda: np.copyto(target, other),
        rounds,
    )
    gb = target.nbytes / 1e9
    note = f"{took / _N_PIXELS * 1e9:.2f} ns a pixel"
    name = f"kernels/jungfrau gain, {share:.0%} in stage 1"
    return Result(name, gb / took, "GB/s out", gb / limit, "memcpy", note)
