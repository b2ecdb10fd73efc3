import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import bitshuffle
import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.codecs import blosc2_frame
from tango_stddaq.errors import StageError
from tango_stddaq.model import Compression
from tango_stddaq.processing import blosc2_chunk
from tango_stddaq.processing.bitshuffle_lz4 import HEADER_BYTES, BitshuffleLz4, default_block_bytes
from tango_stddaq.processing.compress import Compressor, compressor

METHODS = (Compression.H5BITSHUFFLE_LZ4, Compression.BLOSC2)
GUARD = 64
DTYPES = ("<u1", "<u2", "<u4", "<f4", "<f8")


def compress(made: Compressor, pixels: np.ndarray, capacity: int | None = None) -> bytes:
    """Compress into memory that ends where it says: what lies behind must stay as it was."""
    source = pixels.reshape(-1).view(np.uint8)
    capacity = source.size if capacity is None else capacity
    memory = np.full(capacity + GUARD, 0xA5, np.uint8)
    n_bytes = made.compress(source, pixels.itemsize, memory[:capacity])
    assert 0 <= n_bytes <= capacity
    assert (memory[capacity:] == 0xA5).all()
    return memory[:n_bytes].tobytes()


def read_back(path: Path, method: Compression, stored: bytes, pixels: np.ndarray) -> np.ndarray:
    """Store a result as a direct chunk and read it with h5py and hdf5plugin alone."""
    filters = (
        {"compression": 32008, "compression_opts": (0, 2)}
        if method is Compression.H5BITSHUFFLE_LZ4
        else {"compression": blosc2_frame.FILTER, "compression_opts": blosc2_frame.FILTER_OPTIONS}
    )
    if method is Compression.BLOSC2:
        stored = bytes(blosc2_frame.frame_of_chunk(stored))
    shape = (1, *pixels.shape)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", shape=shape, chunks=shape, dtype=pixels.dtype, **filters)
        data.id.write_direct_chunk((0, 0, 0), stored)
    with h5py.File(path) as file:
        return file["data"][0]


@pytest.fixture(params=METHODS, ids=lambda method: method.name.lower())
def method(request: pytest.FixtureRequest) -> Compression:
    return request.param


@pytest.fixture
def made(method: Compression) -> Iterator[Compressor]:
    result = compressor(method)
    yield result
    result.close()


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    dtype=st.sampled_from(DTYPES),
    high=st.sampled_from([1, 2, 5, 100]),
    seed=st.integers(0, 2**32 - 1),
)
def test_hdf5_reads_what_was_compressed(
    tmp_path_factory: pytest.TempPathFactory,
    method: Compression,
    shape: tuple[int, int],
    dtype: str,
    high: int,
    seed: int,
) -> None:
    pixels = np.random.default_rng(seed).integers(0, high, shape).astype(dtype)
    stored = compress(compressor(method), pixels, pixels.nbytes + 4096)
    assert stored
    path = tmp_path_factory.getbasetemp() / "compressed.h5"
    assert np.array_equal(read_back(path, method, stored, pixels), pixels)


@settings(max_examples=200, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    data=st.binary(max_size=6000),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    capacity=st.integers(0, 7000),
)
def test_never_writes_behind_the_end(
    method: Compression, data: bytes, itemsize: int, capacity: int
) -> None:
    pixels = np.frombuffer(data[: len(data) // itemsize * itemsize], f"<u{itemsize}")
    if pixels.size:
        compress(compressor(method), pixels, capacity)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_does_not_fit(made: Compressor, dtype: str) -> None:
    noise = np.frombuffer(np.random.default_rng(1).bytes(200_000), dtype)
    assert compress(made, noise) == b""


def test_fits_exactly_or_not_at_all(made: Compressor) -> None:
    pixels = np.random.default_rng(1).poisson(2.0, (120, 130)).astype(np.uint16)
    whole = compress(made, pixels, 2 * pixels.nbytes)
    small = len(whole)
    if isinstance(made, BitshuffleLz4):  # blosc2 wants some room for its own purposes
        assert compress(made, pixels, small) == whole
    assert compress(made, pixels, small - 1) == b""


@pytest.mark.parametrize("shape", [(64, 64), (33, 41), (1, 7), (1, 8), (1, 4097)])
@pytest.mark.parametrize("block_bytes", [0, 1024, 65536])
@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<f8"])
def test_bitshuffle_makes_the_bytes_of_the_library(
    shape: tuple[int, int], block_bytes: int, dtype: str
) -> None:
    pixels = np.random.default_rng(1).poisson(3.0, shape).astype(dtype)
    made = compress(BitshuffleLz4(block_bytes), pixels, pixels.nbytes + 1000)
    theirs = bitshuffle.compress_lz4(pixels.reshape(-1), block_bytes // pixels.itemsize).tobytes()
    assert made[HEADER_BYTES:] == theirs
    block = block_bytes or default_block_bytes(pixels.itemsize)
    assert made[:HEADER_BYTES] == pixels.nbytes.to_bytes(8, "big") + block.to_bytes(4, "big")


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<f4"])
def test_bitshuffle_makes_the_chunk_of_the_filter(tmp_path: Path, dtype: str) -> None:
    pixels = np.random.default_rng(1).poisson(3.0, (1, 55, 77)).astype(dtype)
    options = hdf5plugin.Bitshuffle(nelems=0, cname="lz4")
    with h5py.File(tmp_path / "filter.h5", "w") as file:
        data = file.create_dataset("data", data=pixels, chunks=pixels.shape, **options)
        _, stored = data.id.read_direct_chunk((0, 0, 0))
        assert data._filters["32008"][-2:] == (0, 2)
    assert compress(BitshuffleLz4(), pixels) == stored


@pytest.mark.parametrize("block_bytes", [-8, 4, 12, 2**24 + 8])
def test_bitshuffle_refuses_other_blocks(block_bytes: int) -> None:
    with pytest.raises(ValueError, match="allowed are 0"):
        BitshuffleLz4(block_bytes)


def test_bitshuffle_block_must_suit_the_pixels() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        compress(BitshuffleLz4(16), np.zeros(100, np.uint32))


@pytest.mark.parametrize("level", range(1, 10))
def test_blosc2_levels(tmp_path: Path, level: int) -> None:
    pixels = np.random.default_rng(1).poisson(3.0, (55, 77)).astype(np.uint16)
    stored = compress(compressor(Compression.BLOSC2, level), pixels)
    assert stored[3] == 2
    assert stored[16:23] == bytes((0, 0, 0, 0, 0, blosc2_frame.BITSHUFFLE, blosc2_frame.LZ4))
    found = read_back(tmp_path / "level.h5", Compression.BLOSC2, stored, pixels)
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("level", [0, 10, -1])
def test_blosc2_refuses_other_levels(level: int) -> None:
    with pytest.raises(ValueError, match="allowed are 1 to 9"):
        compressor(Compression.BLOSC2, level)


def test_both_blosc2_libraries_make_the_same_chunk() -> None:
    pixels = np.random.default_rng(1).poisson(3.0, (500, 700)).astype(np.uint16)
    made = []
    for package in ("blosc2", "hdf5plugin"):
        one = blosc2_chunk.Blosc2(5)
        one._functions, name = blosc2_chunk.load_library((package,))
        assert name.endswith(f"of {package}")
        made.append(compress(one, pixels))
        one.close()
    assert made[0] == made[1]


def test_no_blosc2_library_is_said() -> None:
    with pytest.raises(StageError, match="install hdf5plugin or blosc2"):
        blosc2_chunk.load_library(())


def test_a_blosc2_of_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., int] = blosc2_chunk.new_context
    monkeypatch.setattr(
        blosc2_chunk,
        "new_context",
        lambda library, level, itemsize: right(library, level, 2 * itemsize),
    )
    blosc2_chunk.load_library.cache_clear()
    with pytest.raises(StageError, match="a version not known here"):
        blosc2_chunk.load_library(("hdf5plugin",))
    blosc2_chunk.load_library.cache_clear()


def test_no_compression_is_no_method() -> None:
    with pytest.raises(ValueError, match="none: is none"):
        compressor(Compression.NONE)


def test_lz4_of_other_libraries_stays_theirs() -> None:
    """The functions are known to compiled code only: the process sees no second LZ4."""
    code = (
        "import tango_stddaq.processing.bitshuffle_lz4, ctypes\n"
        "try: ctypes.CDLL(None).LZ4_compress_default\n"
        "except AttributeError: print('hidden')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "hidden\n"
