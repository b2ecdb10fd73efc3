"""Compression of images: from a slot of one ring straight into a slot of another.

A compressor belongs to one thread. It releases the GIL, allocates nothing per image and never writes
behind the end of its target: what does not fit is not compressed (`compress` returns 0).
"""

from abc import ABC, abstractmethod
from typing import Final

import numpy as np

from tango_stddaq.model import Compression

DEFAULT_LEVEL: Final = 5
MIN_LEVEL: Final = 1
MAX_LEVEL: Final = 9


SUFFIXES: Final = {Compression.H5BITSHUFFLE_LZ4: "h5bitshuffle-lz4", Compression.BLOSC2: "blosc2"}
"""Of the ring and the stream of each method."""
METHODS: Final = {method.name.lower(): method for method in SUFFIXES}
"""The methods by their names in the configuration."""
BLOCK_PIXELS: Final = 8
"""A block of bitshuffle has a multiple of these: they are shuffled together."""
MAX_BLOCK_BYTES: Final = 2**24


class Compressor(ABC):
    """What both methods have in common.

    Attributes
    ----------
    library
        What does the work, as one says it to a person.
    """

    library: str

    @abstractmethod
    def compress_at(self, source: int, n_bytes: int, itemsize: int, target: int, capacity: int) -> int:
        """Compress the pixels of one image from address to address.

        Parameters
        ----------
        source, n_bytes
            Where the pixels are; `n_bytes` is a multiple of `itemsize`.
        itemsize
            Bytes of a pixel: 1, 2, 4 or 8.
        target, capacity
            Where the result goes. May be written anywhere, also when the result does not fit.

        Returns
        -------
        int
            Bytes of the result; 0 if it does not fit.
        """

    def compress(self, source: np.ndarray, itemsize: int, target: np.ndarray) -> int:
        """Compress from one array of uint8 to another; see `compress_at`."""
        return self.compress_at(
            source.ctypes.data, source.size, itemsize, target.ctypes.data, target.size
        )

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds; harmless when called again."""


def check_block_bytes(block_bytes: int, itemsize: int) -> None:
    """Check a block size of bitshuffle.

    Raises
    ------
    ValueError
        If it is none for pixels of `itemsize` bytes.
    """
    multiple = BLOCK_PIXELS * itemsize
    if not 0 <= block_bytes <= MAX_BLOCK_BYTES or block_bytes % multiple:
        raise ValueError(
            f"block size {block_bytes}: allowed are 0 (automatic) and multiples of {multiple} bytes "
            f"({BLOCK_PIXELS} pixels) up to {MAX_BLOCK_BYTES}"
        )


def compressor(method: Compression, level: int = DEFAULT_LEVEL, block_bytes: int = 0) -> Compressor:
    """Return a compressor for one thread.

    Parameters
    ----------
    method
        `H5BITSHUFFLE_LZ4` or `BLOSC2`.
    level
        Of blosc2, 1 to 9.
    block_bytes
        Of bitshuffle, 0 for the library's choice.

    Raises
    ------
    StageError
        If its library cannot be used.
    ValueError
        If there is no such method, level or block.
    """
    # Each loads its library, and bitshuffle its compiled loop, only where it is used.
    if method is Compression.BLOSC2:
        from tango_stddaq.processing.blosc2_chunk import Blosc2  # noqa: PLC0415

        return Blosc2(level)
    if method is Compression.H5BITSHUFFLE_LZ4:
        from tango_stddaq.processing.bitshuffle_lz4 import BitshuffleLz4  # noqa: PLC0415

        return BitshuffleLz4(block_bytes)
    raise ValueError(f"compression {method.name.lower()}: is none")
