import struct
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401, registers the filter that reads the frames
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.codecs.blosc2_frame import (
    FILTER,
    FILTER_OPTIONS,
    FRAME_OVERHEAD_BYTES,
    frame_of_chunk,
)


def stored_chunk(pixels: np.ndarray, *, special: int = 0) -> bytes:
    """A chunk written by hand: pixels as they are, or all zeros (special 1) without any."""
    body = b"" if special else pixels.tobytes()
    header = struct.pack(
        "<BBBBiii6sBB6sBB", 5, 1, 0x05 | (0 if special else 0x02), pixels.itemsize, pixels.nbytes,
        pixels.nbytes, 32 + len(body), bytes((0, 0, 0, 0, 0, 2)), 1, 0, bytes(6), 0, special << 4,
    )  # fmt: skip
    return header + body


def read_back(path: Path, frame: bytes | bytearray, image: np.ndarray) -> np.ndarray:
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "data",
            shape=(1, *image.shape),
            chunks=(1, *image.shape),
            dtype=image.dtype,
            compression=FILTER,
            compression_opts=FILTER_OPTIONS,
        )
        data.id.write_direct_chunk((0, 0, 0), frame)
    with h5py.File(path) as file:
        return file["data"][0]


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from(["<u1", "<u2", "<u4", "<f4", "<f8"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_hdf5_reads_the_frame(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], dtype: str, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    chunk = stored_chunk(image)
    frame = frame_of_chunk(chunk)
    assert len(frame) == len(chunk) + FRAME_OVERHEAD_BYTES
    found = read_back(tmp_path_factory.getbasetemp() / "frame.h5", frame, image)
    assert np.array_equal(found, image)


def test_a_chunk_of_zeros_has_no_pixels(tmp_path: Path) -> None:
    image = np.zeros((40, 50), np.uint16)
    chunk = stored_chunk(image, special=1)
    assert len(chunk) == 32
    assert not read_back(tmp_path / "zeros.h5", frame_of_chunk(chunk), image).any()


def test_takes_a_slot_as_it_is() -> None:
    chunk = stored_chunk(np.arange(12, dtype="<u2"))
    assert frame_of_chunk(memoryview(chunk)) == frame_of_chunk(np.frombuffer(chunk, np.uint8).data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda chunk: chunk[:31], "its header has 32"),
        (lambda chunk: chunk + b"\0", "says 56 bytes; there are 57"),
        (lambda chunk: chunk[:2] + b"\x01" + chunk[3:], "flags 0x1"),
        (lambda chunk: chunk[:3] + b"\0" + chunk[4:], "in items of 0"),
        (lambda chunk: chunk[:4] + b"\xff" * 4 + chunk[8:], "of -1 bytes"),
    ],
)
def test_what_is_no_chunk_is_refused(damage, reason: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=reason):
        frame_of_chunk(damage(stored_chunk(np.arange(12, dtype="<u2"))))
