"""How loops are compiled: once per machine, without the GIL, cached on disk."""

import sys
from typing import Final

from numba import njit
from numba.core.registry import cpu_target


def _load_compiler() -> None:
    """Load what numba needs for the first loop, without the libraries that it takes if they are there.

    No loop of ours calls linear algebra or C declared at run time. Loading both costs every server more
    time than numba itself, wherever somebody installed scipy.
    """
    unused = [name for name in ("scipy.linalg", "cffi") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(unused))  # type: ignore[arg-type] # None: cannot be imported
    try:
        cpu_target.target_context.refresh()
    finally:
        for name in unused:
            del sys.modules[name]


_load_compiler()

compiled: Final = njit(cache=True, nogil=True, error_model="numpy")
"""For what Python calls. No loop divides by zero: a check would cost time."""
inner: Final = njit(
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""For what only compiled code calls: compiled in two thirds of the time, as Python cannot reach it."""
