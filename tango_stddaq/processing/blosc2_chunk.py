"""blosc2: one chunk, LZ4 of shuffled bits, as the ring of suffix `blosc2` holds it.

Called through ctypes, which releases the GIL, with a context per thread: no global lock, no threads of
the library's own, and it is told where its target ends. The library is that of the `blosc2` package if
it is installed; otherwise the one inside `hdf5plugin`, which is always there and slower.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Final

import numpy as np

from tango_stddaq.codecs.blosc2_frame import BITSHUFFLE, LZ4
from tango_stddaq.errors import StageError
from tango_stddaq.processing.compress import MAX_LEVEL, MIN_LEVEL, Compressor

MAX_CHUNK_BYTES: Final = 2**31 - 1 - 32
_FORWARD_COMPATIBLE_SPLIT: Final = 4
_N_FILTERS: Final = 6
_LIBRARIES: Final = (("blosc2", "lib/libblosc2.so"), ("hdf5plugin", "plugins/libh5blosc2.so"))


class _Parameters(ctypes.Structure):
    """`blosc2_cparams` of blosc2.h, passed by value."""

    _fields_ = (
        ("compcode", ctypes.c_uint8),
        ("compcode_meta", ctypes.c_uint8),
        ("clevel", ctypes.c_uint8),
        ("use_dict", ctypes.c_int),
        ("typesize", ctypes.c_int32),
        ("nthreads", ctypes.c_int16),
        ("blocksize", ctypes.c_int32),
        ("splitmode", ctypes.c_int32),
        ("schunk", ctypes.c_void_p),
        ("filters", ctypes.c_uint8 * _N_FILTERS),
        ("filters_meta", ctypes.c_uint8 * _N_FILTERS),
        ("prefilter", ctypes.c_void_p),
        ("preparams", ctypes.c_void_p),
        ("tuner_params", ctypes.c_void_p),
        ("tuner_id", ctypes.c_int),
        ("instr_codec", ctypes.c_bool),
        ("codec_params", ctypes.c_void_p),
        ("filter_params", ctypes.c_void_p * _N_FILTERS),
    )


@functools.cache
def load_library(packages: tuple[str, ...] = ("blosc2", "hdf5plugin")) -> tuple[ctypes.CDLL, str]:
    """Load the library; returns it and what it is, as one says it to a person.

    Parameters
    ----------
    packages
        Where to look, the first choice first.

    Raises
    ------
    StageError
        If there is none, or none that makes the chunks that are expected.
    """
    faults = []
    for package, inside in _LIBRARIES:
        spec = importlib.util.find_spec(package) if package in packages else None
        for folder in spec.submodule_search_locations or [] if spec is not None else []:
            path = Path(folder) / inside
            try:
                library = _declare(ctypes.CDLL(str(path)))
                _check(library)
            except (OSError, AttributeError, StageError) as error:
                faults.append(f"{path}: {error}")
                continue
            return library, f"blosc2 {library.blosc2_get_version_string().decode()} of {package}"
    raise StageError(f"no blosc2 library: {'; '.join(faults) or 'install hdf5plugin or blosc2'}")


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size = ctypes.c_void_p, ctypes.c_int32
    library.blosc2_get_version_string.restype = ctypes.c_char_p
    library.blosc2_create_cctx.restype = pointer
    library.blosc2_create_cctx.argtypes = [_Parameters]
    library.blosc2_compress_ctx.restype = ctypes.c_int
    library.blosc2_compress_ctx.argtypes = [pointer, pointer, size, pointer, size]
    library.blosc2_free_ctx.restype = None
    library.blosc2_free_ctx.argtypes = [pointer]
    library.blosc2_init.restype = None
    library.blosc2_init()  # before the first context; it keeps count of calls, and nothing else
    return library


def _check(library: ctypes.CDLL) -> None:
    """Make a chunk and look at it: a library with another `blosc2_cparams` would not do what we say."""
    probe = np.arange(8192, dtype=np.uint32)
    target = np.zeros(probe.nbytes, np.uint8)
    context = new_context(library, 3, probe.itemsize)
    n_bytes = library.blosc2_compress_ctx(
        context, probe.ctypes.data, probe.nbytes, target.ctypes.data, target.nbytes
    )
    library.blosc2_free_ctx(context)
    header = target[:32]
    expected = (probe.itemsize, probe.nbytes, n_bytes, [0, 0, 0, 0, 0, BITSHUFFLE], LZ4)
    sizes = header[4:16].view("<i4")
    found = (int(header[3]), int(sizes[0]), int(sizes[2]), header[16:22].tolist(), int(header[22]))
    if n_bytes <= 0 or found != expected:
        raise StageError(f"makes a chunk of {found}, expected is {expected}: a version not known here")


def new_context(library: ctypes.CDLL, level: int, itemsize: int, threads: int = 1) -> int:
    """Return a context for `blosc2_compress_ctx`; more threads are the library's own."""
    parameters = _Parameters(
        compcode=LZ4,
        clevel=level,
        typesize=itemsize,
        nthreads=threads,
        splitmode=_FORWARD_COMPATIBLE_SPLIT,
    )
    parameters.filters[_N_FILTERS - 1] = BITSHUFFLE
    context = library.blosc2_create_cctx(parameters)
    if not context:
        raise StageError(f"blosc2 gives no context for level {level}, {itemsize} bytes a pixel")
    return int(context)


class Blosc2(Compressor):
    """See `Compressor`.

    Parameters
    ----------
    level
        1 (fastest) to 9.
    """

    def __init__(self, level: int) -> None:
        if not MIN_LEVEL <= level <= MAX_LEVEL:
            raise ValueError(f"level {level}: allowed are {MIN_LEVEL} to {MAX_LEVEL}")
        self.level = level
        self._functions, self.library = load_library()
        self._contexts: dict[int, int] = {}

    def compress_at(self, source: int, n_bytes: int, itemsize: int, target: int, capacity: int) -> int:
        """Compress the pixels of one image; see `Compressor.compress_at`."""
        if n_bytes > MAX_CHUNK_BYTES:
            return 0
        context = self._contexts.get(itemsize)
        if context is None:
            context = self._contexts[itemsize] = new_context(self._functions, self.level, itemsize)
        n_compressed: int = self._functions.blosc2_compress_ctx(
            context, source, n_bytes, target, min(capacity, MAX_CHUNK_BYTES)
        )
        return max(0, n_compressed)

    def close(self) -> None:
        """Free the contexts; harmless when called again."""
        while self._contexts:
            self._functions.blosc2_free_ctx(self._contexts.popitem()[1])
