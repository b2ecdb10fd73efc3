"""How loops are compiled: once per machine, without the GIL, cached on disk."""

from typing import Final

from numba import njit

compiled: Final = njit(cache=True, nogil=True, error_model="numpy")
"""For what Python calls. No loop divides by zero: a check would cost time."""
inner: Final = njit(
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""For what only compiled code calls: compiled in two thirds of the time, as Python cannot reach it."""
