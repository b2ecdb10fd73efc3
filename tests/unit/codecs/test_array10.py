"""array-1.0: the header byte for byte, and what malformed frames do."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.codecs import array10
from tango_stddaq.model import Dtype, Image

GOOD: dict[str, Any] = {"htype": "array-1.0", "shape": [2, 3], "type": "uint16", "frame": 5}


def header(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_the_header_is_written_byte_for_byte_as_in_the_contract() -> None:
    image = Image(29512, 514, 1030, 1_058_840, Dtype.UINT16)
    assert array10.encode_header(image) == (
        b'{"htype":"array-1.0", "shape":[514,1030], "type":"uint16", "frame":29512}'
    )


@given(
    st.integers(0, 2**64 - 1),
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.sampled_from(list(Dtype)[1:]),
)
def test_every_header_survives_the_wire(image_id: int, height: int, width: int, dtype: Dtype) -> None:
    found = array10.decode_header(array10.encode_header(Image(image_id, height, width, 0, dtype)))
    assert found == array10.Header((height, width), dtype.numpy, image_id)


def test_pixels_are_a_view_in_c_order_not_a_copy() -> None:
    pixels = bytes(range(12))
    image_id, image = array10.decode(header(), pixels)
    assert (image_id, image.tolist()) == (5, [[0x100, 0x302, 0x504], [0x706, 0x908, 0xB0A]])
    assert np.shares_memory(image, np.frombuffer(pixels, np.uint8))


@pytest.mark.parametrize(
    ("extra", "value"),
    [
        ({}, 0x0100),
        ({"endianness": "little"}, 0x0100),
        ({"endianness": "big"}, 0x0001),
        ({"endianess": "big"}, 0x0001),
        ({"endianness": "little", "endianess": "big"}, 0x0100),
        ({"source": "cam", "encoding": "raw", "tags": {"a": 1}, "new": None}, 0x0100),
    ],
)
def test_byte_order_has_two_spellings_and_other_keys_do_not_matter(
    extra: dict[str, Any], value: int
) -> None:
    _, image = array10.decode(header(**extra), bytes(range(12)))
    assert image[0, 0] == value


@pytest.mark.parametrize("n_bytes", [0, 11, 13, 24])
def test_pixels_must_be_as_many_as_the_header_says(n_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"{n_bytes} bytes of pixels; the header says 12"):
        array10.decode(header(), bytes(n_bytes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"htype": "array-1.1"}, "htype"),
        ({"shape": [2]}, "shape"), ({"shape": [2, 3, 4]}, "shape"), ({"shape": [0, 3]}, "shape"),
        ({"shape": [2, -3]}, "shape"), ({"shape": [2.0, 3]}, "shape"), ({"shape": [True, 3]}, "shape"),
        ({"shape": "23"}, "shape"), ({"shape": None}, "shape"), ({"shape": [2**31, 1]}, "shape"),
        ({"shape": [2**16, 2**16]}, "larger than"),
        ({"type": "complex64"}, "type"), ({"type": None}, "type"), ({"type": []}, "type"),
        ({"type": {}}, "type"), ({"type": "uint16, uint8"}, "type"), ({"type": "bool"}, "type"),
        ({"frame": -1}, "frame"), ({"frame": 2**64}, "frame"), ({"frame": "5"}, "frame"),
        ({"frame": True}, "frame"), ({"frame": 5.0}, "frame"),
        ({"endianness": "middle"}, "endianness"), ({"endianness": []}, "endianness"),
    ],
)  # fmt: skip
def test_a_wrong_header_is_refused_naming_what_is_wrong(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        array10.decode_header(header(**changes))


@pytest.mark.parametrize("key", ["htype", "shape", "type", "frame"])
def test_no_key_may_be_absent(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        array10.decode_header(json.dumps({k: v for k, v in GOOD.items() if k != key}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"\xff\xfe", b"[" * 60_000, b" " * 70_000])
def test_what_is_no_json_object_of_sane_size_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"array-1\.0"):
        array10.decode_header(data)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "uint8", "big"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("a"), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["shape", "type", "frame", "endianness"]), JSON_VALUES))
def test_any_json_raises_value_error_and_nothing_else(changes: dict[str, Any]) -> None:
    try:
        found = array10.decode_header(header(**changes))
    except ValueError:
        return
    assert found.dtype.itemsize * found.shape[0] * found.shape[1] <= array10.MAX_ARRAY_BYTES


@given(st.binary(max_size=40))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"array-1\.0"):
        array10.decode(data, b"")
