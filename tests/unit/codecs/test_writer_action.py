"""`WriterAction` and `WriterResponse` byte for byte, and their 512 bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.codecs import writer_action
from tango_stddaq.codecs.writer_action import (
    Action,
    CloseFile,
    ConfirmLastImage,
    CreateFile,
    RecordImage,
    Response,
)
from tango_stddaq.model import Compression, Dtype, EigerMetadata, Image, PcoMetadata, Status

IMAGE = Image(1, 2, 3, 6, Dtype.UINT8, detector=EigerMetadata(7))


@pytest.mark.parametrize(
    ("action", "wire"),
    [
        (CreateFile("/a.h5", 300), "0a0a 0a05 2f612e6835 10ac02"),
        (CreateFile("/a.h5", -1), "0a12 0a05 2f612e6835 10ffffffffffffffffff01"),
        (RecordImage(IMAGE), "1212 0a10 0801 1002 1803 2006 2801 3001 5202 0807"),
        (CloseFile(), "1a00"),
        (ConfirmLastImage(), "2200"),
    ],
)
def test_actions_on_the_wire_are_those_of_the_contract(action: Action, wire: str) -> None:
    assert writer_action.encode(action) == bytes.fromhex(wire)
    assert writer_action.decode(bytes.fromhex(wire)) == action


@pytest.mark.parametrize(
    ("response", "wire"),
    [
        (Response(True), "0801"),
        (Response(False, "full"), "0802 1204 66756c6c"),
        (Response(True, "", 300, 2), "0801 a006ac02 a80602"),
    ],
)
def test_responses_on_the_wire_are_those_of_the_contract(response: Response, wire: str) -> None:
    assert writer_action.encode_response(response) == bytes.fromhex(wire)
    assert writer_action.decode_response(bytes.fromhex(wire)) == response


def test_a_response_of_unknown_code_is_no_success() -> None:
    assert not writer_action.decode_response(b"").ok
    assert not writer_action.decode_response(bytes.fromhex("0807")).ok


def test_an_action_takes_at_most_512_bytes() -> None:
    longest = 512 - 6  # two tags with two bytes of length each
    assert len(writer_action.encode(CreateFile("x" * longest))) == 512
    with pytest.raises(ValueError, match="513 bytes; at most 512"):
        writer_action.encode(CreateFile("x" * (longest + 1)))


def test_the_largest_image_can_be_recorded() -> None:
    most = 2**64 - 1
    image = Image(
        most, 2**32 - 1, 2**32 - 1, most, Dtype.FLOAT64, Status.ID_MISSMATCH, Compression.BLOSC2,
        PcoMetadata(most, most, "n" * 5000), most, most,
    )  # fmt: skip
    assert len(writer_action.encode(RecordImage(image))) <= 512


@pytest.mark.parametrize("user", [2**31, -(2**31) - 1])
def test_a_user_id_of_more_than_32_bits_is_refused(user: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        writer_action.encode(CreateFile("/a", user))


def test_a_long_reason_is_cut_between_characters_to_fit_512_bytes() -> None:
    data = writer_action.encode_response(Response(False, "é" * 1000, 2**64 - 1, 2**64 - 1))
    assert len(data) <= 512
    assert writer_action.decode_response(data).reason == "é" * 150


def test_a_reason_with_a_file_name_that_is_not_utf8_can_be_sent() -> None:
    data = writer_action.encode_response(Response(False, "/data/\udc80: no space"))
    assert writer_action.decode_response(data).reason == "/data/?: no space"


@given(st.text("/aé☃", max_size=150), st.integers(-(2**31), 2**31 - 1))
def test_every_file_name_survives_the_wire(path: str, user: int) -> None:
    action = CreateFile(path, user)
    assert writer_action.decode(writer_action.encode(action)) == action


@pytest.mark.parametrize("wire", ["", "0a", "0a05", "1200", "1204 0a02 1001", "2a00", "0a03 0a01ff"])
def test_what_is_no_action_is_refused(wire: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        writer_action.decode(bytes.fromhex(wire))


@given(st.binary(max_size=64), st.sampled_from([b"", b"\x0a", b"\x12", b"\x12\x04\x0a", b"\x08"]))
def test_random_bytes_raise_value_error_and_nothing_else(data: bytes, start: bytes) -> None:
    for decode in (writer_action.decode, writer_action.decode_response):
        try:
            found = decode(start + data)
        except ValueError:
            continue
        assert isinstance(found, Action | Response)
