"""The monotonic clock, for compiled loops."""

from typing import Final

from numba import types, uintp

from tango_stddaq.processing.compiled import inner
from tango_stddaq.processing.native import clock_gettime

CLOCK_MONOTONIC: Final = 1


@inner
def monotonic_ns(clock):
    """Return the time; the first two words of `clock` (int64) are scratch: a struct timespec."""
    clock_gettime(types.int32(CLOCK_MONOTONIC), uintp(clock.ctypes.data))
    return clock[0] * 1_000_000_000 + clock[1]
