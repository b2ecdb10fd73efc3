"""h5bitshuffle_lz4: the chunk that HDF5 filter 32008 stores with the options (0, 2).

8 bytes size and 4 bytes block size (big endian, bytes, uncompressed), then the blocks: each 4 bytes of
length (big endian) and LZ4 data of the shuffled bits. Pixels beyond a multiple of 8 stand uncompressed
at the end.

The package's own `compress_lz4` allocates its result, and its C function knows no end of the target.
So the loop over the blocks is ours, compiled, and calls the two functions of the package's library that
do the work; LZ4 is told how much room there is. The result is byte for byte that of the package.
"""

import ctypes
from importlib.metadata import version
from typing import Final

import bitshuffle.ext  # type: ignore[import-untyped]
import llvmlite.binding
import numpy as np
from numba import njit, types, uint64, uintp

from tango_stddaq.errors import StageError
from tango_stddaq.processing.compress import BLOCK_PIXELS, Compressor, check_block_bytes
from tango_stddaq.processing.native import memcpy, write_u32_be

HEADER_BYTES: Final = 12


def _address(name: str) -> int:
    try:
        function = getattr(_library, name)
    except AttributeError:
        raise StageError(
            f"{bitshuffle.ext.__file__}: has no {name}; the bitshuffle of constraints.txt has it"
        ) from None
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


_library = ctypes.CDLL(bitshuffle.ext.__file__)
# Under names of our own: visible to the whole process as what they are, they would replace the LZ4 that
# other libraries bring with them.
for _name in ("bshuf_trans_bit_elem", "LZ4_compress_default"):
    llvmlite.binding.add_symbol(f"stddaq_{_name}", _address(_name))
_shuffle = types.ExternalFunction("stddaq_bshuf_trans_bit_elem", types.int64(uintp, uintp, uintp, uintp))
_lz4 = types.ExternalFunction(
    "stddaq_LZ4_compress_default", types.int32(uintp, uintp, types.int32, types.int32)
)
_default_block = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t)(_address("bshuf_default_block_size"))


def default_block_bytes(itemsize: int) -> int:
    """Return the bytes of a block where it is left to the library."""
    return int(_default_block(itemsize)) * itemsize


@njit(types.int64(*[uintp] * 7), cache=True, nogil=True)
def _compress(source, n_bytes, itemsize, block_bytes, target, capacity, scratch):
    """Write header and blocks; returns the bytes written, 0 if they do not fit."""
    out, end = target, target + capacity
    if capacity < uint64(HEADER_BYTES):
        return 0
    write_u32_be(out, n_bytes >> uint64(32))
    write_u32_be(out + uint64(4), n_bytes)
    write_u32_be(out + uint64(8), block_bytes)
    out += uint64(HEADER_BYTES)
    n_left, block = n_bytes // itemsize, block_bytes // itemsize
    while n_left >= uint64(BLOCK_PIXELS):
        n = min(block, n_left - n_left % uint64(BLOCK_PIXELS))
        n_block = n * itemsize
        if out + uint64(4) >= end or _shuffle(source, scratch, n, itemsize) < 0:
            return 0
        room = min(end - out - uint64(4), uint64(0x7FFFFFFF))
        n_compressed = _lz4(scratch, out + uint64(4), types.int32(n_block), types.int32(room))
        if n_compressed <= 0:
            return 0
        write_u32_be(out, uint64(n_compressed))
        out += uint64(4) + uint64(n_compressed)
        source += n_block
        n_left -= n
    rest = n_left * itemsize
    if rest > end - out:
        return 0
    memcpy(out, source, rest)
    return types.int64(out + rest - target)


class BitshuffleLz4(Compressor):
    """See `Compressor`.

    Parameters
    ----------
    block_bytes
        Bytes of a block, a multiple of 8 pixels; 0 for the library's choice (about 8 KiB).
    """

    def __init__(self, block_bytes: int = 0) -> None:
        check_block_bytes(block_bytes, 1)
        self.library = f"bitshuffle {version('bitshuffle')}"
        self._block_bytes = block_bytes
        self._itemsize = 0
        self._block = 0
        self._scratch = np.empty(0, np.uint8)
        self._scratch_address = 0

    def compress_at(self, source: int, n_bytes: int, itemsize: int, target: int, capacity: int) -> int:
        """Compress the pixels of one image; see `Compressor.compress_at`."""
        if itemsize != self._itemsize:
            self._prepare(itemsize)
        return int(
            _compress(source, n_bytes, itemsize, self._block, target, capacity, self._scratch_address)
        )

    def _prepare(self, itemsize: int) -> None:
        block = self._block_bytes or default_block_bytes(itemsize)
        check_block_bytes(block, itemsize)
        self._scratch = np.empty(block, np.uint8)
        self._scratch_address = self._scratch.ctypes.data
        self._block, self._itemsize = block, itemsize

    def close(self) -> None:
        """Nothing to give back."""
