"""`ImageMetadata` byte for byte, its limits, and what malformed bytes do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.codecs import image_metadata
from tango_stddaq.model import (
    Compression,
    DetectorMetadata,
    Dtype,
    EigerMetadata,
    GigafrostMetadata,
    Image,
    JungfrauMetadata,
    PcoMetadata,
    Status,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
NAMES = st.text("aZ:_-ä☃", max_size=40)
DETECTORS = (
    st.none()
    | st.builds(EigerMetadata, U64)
    | st.builds(JungfrauMetadata, U64)
    | st.builds(GigafrostMetadata, U32, U32, U32, U64, U64, st.booleans())
    | st.builds(PcoMetadata, U64, U64, NAMES)
)
SIDES = st.integers(1, 2**32 - 1)
IMAGES = st.builds(
    Image, U64, SIDES, SIDES, U64, st.sampled_from(Dtype), st.sampled_from(Status),
    st.sampled_from(Compression), DETECTORS, U64, U64,
)  # fmt: skip

HEAD = bytes.fromhex("08ac02 108204 188608 2098d040 2802 3001")
"""image 300, 514 x 1030, 1058840 bytes, uint16, good"""


def image(detector: DetectorMetadata | None = None) -> Image:
    return Image(300, 514, 1030, 1_058_840, Dtype.UINT16, Status.GOOD_IMAGE, detector=detector)


@pytest.mark.parametrize(
    ("detector", "tail"),
    [
        (None, ""),
        (EigerMetadata(7), "52 02 0807"),
        (JungfrauMetadata(200), "4a 03 08c801"),
        (GigafrostMetadata(1, 2, 3, 4, 5, True), "42 0c 0801 1002 1803 2004 2805 3001"),
        (PcoMetadata(1, 2, "ab"), "5a 08 0801 1002 1a026162"),
        (GigafrostMetadata(store_image=False), "42 00"),
    ],
)
def test_bytes_on_the_wire_are_those_of_the_contract(
    detector: DetectorMetadata | None, tail: str
) -> None:
    wire = HEAD + bytes.fromhex(tail)
    assert image_metadata.encode(image(detector)) == wire
    assert image_metadata.decode(wire) == image(detector)


def test_status_compression_and_our_additions_on_the_wire() -> None:
    lossy = Image(
        0, 1, 1, 9, Dtype.FLOAT64, Status.MISSING_PACKETS, Compression.BLOSC2,
        n_missing_packets=5, n_missing_modules=300,
    )  # fmt: skip
    wire = bytes.fromhex("1001 1801 2009 281c 3002 3802 a00605 a806ac02")
    assert image_metadata.encode(lossy) == wire
    assert image_metadata.decode(wire) == lossy


def test_unknown_fields_of_a_newer_program_are_skipped() -> None:
    wire = HEAD + bytes.fromhex("a03801")  # field 900
    assert image_metadata.decode(wire) == image()


@given(IMAGES)
def test_every_image_survives_the_wire(original: Image) -> None:
    assert image_metadata.decode(image_metadata.encode(original)) == original


@pytest.mark.parametrize(
    "detector",
    [
        EigerMetadata(2**64 - 1),
        GigafrostMetadata(2**32 - 1, 2**32 - 1, 2**32 - 1, 2**64 - 1, 2**64 - 1),
        PcoMetadata(2**64 - 1, 2**64 - 1, "n" * 5000),
        PcoMetadata(2**64 - 1, 2**64 - 1, "☃" * 5000),
    ],
)
def test_the_largest_message_leaves_room_for_a_writer_action_in_512_bytes(
    detector: DetectorMetadata,
) -> None:
    most = 2**64 - 1
    largest = Image(
        most, most, most, most, Dtype.FLOAT64, Status.ID_MISSMATCH, Compression.BLOSC2, detector,
        most, most,
    )  # fmt: skip
    assert len(image_metadata.encode(largest)) <= 512 - 6


def test_a_long_channel_name_is_cut_between_characters() -> None:
    sent = image_metadata.decode(image_metadata.encode(image(PcoMetadata(1, 2, "☃" * 200))))
    assert sent.detector == PcoMetadata(1, 2, "☃" * 85)


@pytest.mark.parametrize(
    "wire",
    [
        "",  # no size
        "1001",  # no width
        "1001 1801 2803",  # dtype 3
        "1001 1801 3004",  # status 4
        "1001 1801 3803",  # compression 3
        "10808080808010 1801",  # 2**39 rows
        "1001 1801 20",  # ends within a field
        "1001 1801 5205",  # ends within the Eiger's part
        "1001 1801 5a03 1a01ff",  # a name that is not UTF-8
    ],
)
def test_what_describes_no_image_is_refused(wire: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        image_metadata.decode(bytes.fromhex(wire))


@given(st.binary(max_size=64), st.booleans())
def test_random_bytes_raise_value_error_and_nothing_else(data: bytes, with_head: bool) -> None:
    try:
        found = image_metadata.decode(HEAD + data if with_head else data)
    except ValueError:
        return
    assert image_metadata.decode(image_metadata.encode(found)) == found
