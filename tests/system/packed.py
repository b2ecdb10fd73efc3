"""Images as compressors leave them in the ring."""

import struct
from collections.abc import Callable
from typing import Final

import bitshuffle
import numpy as np
import pytest

from tango_stddaq.model import Compression

Compress = Callable[[np.ndarray], tuple[bytes, Compression]]


def bitshuffle_lz4(pixels: np.ndarray) -> tuple[bytes, Compression]:
    """The chunk of filter 32008."""
    packed = bitshuffle.compress_lz4(pixels.reshape(-1), 0).tobytes()
    return struct.pack(">QI", pixels.nbytes, 0) + packed, Compression.H5BITSHUFFLE_LZ4


def blosc2_chunk(pixels: np.ndarray) -> tuple[bytes, Compression]:
    """A chunk of which the writer makes a frame, for filter 32026."""
    blosc2 = pytest.importorskip("blosc2")
    packed = blosc2.compress2(
        pixels.tobytes(), typesize=pixels.itemsize, codec=blosc2.Codec.LZ4, clevel=5,
        filters=[blosc2.Filter.BITSHUFFLE], filters_meta=[0],
    )  # fmt: skip
    return bytes(packed), Compression.BLOSC2


METHODS: Final[dict[str, tuple[Compress, int]]] = {
    "h5bitshuffle-lz4": (bitshuffle_lz4, 32008),
    "blosc2": (blosc2_chunk, 32026),
}
"""Suffix of the ring to how its images are made, and the number of the filter."""
