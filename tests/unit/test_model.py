"""Numbers on the wire and their numpy types."""

import numpy as np
import pytest

from tango_stddaq.model import INVALID_IMAGE_ID, Compression, Dtype, Image, Status


def test_wire_numbers_are_those_of_the_contract() -> None:
    assert {dtype.name: int(dtype) for dtype in Dtype} == {
        "UNKNOWN": 0, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 11, "INT16": 12,
        "INT32": 14, "INT64": 18, "FLOAT16": 22, "FLOAT32": 24, "FLOAT64": 28,
    }  # fmt: skip
    assert [(status.name, int(status)) for status in Status] == [
        ("UNDEFINED", 0), ("GOOD_IMAGE", 1), ("MISSING_PACKETS", 2), ("ID_MISSMATCH", 3),
    ]  # fmt: skip
    assert [(c.name, int(c)) for c in Compression] == [
        ("NONE", 0), ("H5BITSHUFFLE_LZ4", 1), ("BLOSC2", 2),
    ]  # fmt: skip
    assert INVALID_IMAGE_ID == 0xFFFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize("dtype", [dtype for dtype in Dtype if dtype is not Dtype.UNKNOWN])
def test_numpy_type_is_little_endian_and_maps_back(dtype: Dtype) -> None:
    assert dtype.numpy.newbyteorder("<") == dtype.numpy
    assert dtype.numpy.name == dtype.name.lower()
    assert Dtype.from_numpy(dtype.numpy) is dtype


def test_types_without_a_wire_number_are_unknown() -> None:
    assert Dtype.from_numpy(np.dtype(bool)) is Dtype.UNKNOWN
    assert Dtype.from_numpy(np.dtype("complex64")) is Dtype.UNKNOWN
    with pytest.raises(ValueError, match="unknown"):
        _ = Dtype.UNKNOWN.numpy


def test_an_image_is_complete_and_uncompressed_unless_said_otherwise() -> None:
    image = Image(7, 514, 1030, 1, Dtype.UINT16)
    assert image.shape == (514, 1030)
    assert (image.status, image.compression) == (Status.GOOD_IMAGE, Compression.NONE)
    assert (image.n_missing_packets, image.n_missing_modules) == (0, 0)
