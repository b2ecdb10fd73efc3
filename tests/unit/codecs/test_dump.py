"""Recorded packets: 64-bit length, then that many bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.codecs import dump


def test_a_packet_follows_its_little_endian_length() -> None:
    assert dump.encode(b"abc") == b"\x03\0\0\0\0\0\0\0abc"
    assert dump.encode(memoryview(b"")) == bytes(8)


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_packets_survive_a_dump(packets: list[bytes]) -> None:
    data = b"".join(map(dump.encode, packets))
    assert [bytes(packet) for packet in dump.decode(data)] == packets


def test_packets_before_a_cut_are_still_read() -> None:
    packets = dump.decode(dump.encode(b"first") + b"\x05\0\0\0\0\0\0\0half")
    assert bytes(next(packets)) == b"first"
    with pytest.raises(ValueError, match="ends within a packet at byte 21"):
        next(packets)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01", "ends within a length at byte 0"),
        (dump.encode(b"") + bytes(7), "ends within a length at byte 8"),
        ((65_536).to_bytes(8, "little") + bytes(65_536), "packet of 65536 bytes at byte 0"),
        (b"\xff" * 16, "packet of 18446744073709551615 bytes"),
    ],
)
def test_what_is_no_dump_of_datagrams_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(dump.decode(data))


@given(st.binary(max_size=64))
def test_random_bytes_raise_value_error_or_are_taken_apart_completely(data: bytes) -> None:
    try:
        packets = list(dump.decode(data))
    except ValueError:
        return
    assert b"".join(map(dump.encode, packets)) == data
