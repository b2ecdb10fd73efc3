"""The writer driver's batch, against the codecs that read and write one message at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.codecs import image_metadata, writer_action
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.model import (
    Compression,
    Dtype,
    EigerMetadata,
    GigafrostMetadata,
    Image,
    JungfrauMetadata,
    PcoMetadata,
    Status,
)
from tango_stddaq.processing.announced_batch import AnnouncedBatch
from tango_stddaq.processing.metadata_scan import ORDINARY

NOW_NS = 1_790_000_000_123_456_789
_numbers = st.integers(0, 2**63 - 1)
_images = st.builds(
    Image,
    image_id=_numbers,
    height=st.integers(1, 2**32 - 1),
    width=st.integers(1, 2**32 - 1),
    size=_numbers,
    dtype=st.sampled_from(Dtype),
    status=st.sampled_from(Status),
    compression=st.sampled_from(Compression),
    detector=st.one_of(
        st.none(),
        st.builds(EigerMetadata, _numbers),
        st.builds(JungfrauMetadata, _numbers),
        st.builds(
            GigafrostMetadata, *[st.integers(0, 2**32 - 1)] * 3, _numbers, _numbers, st.booleans()
        ),
        st.builds(PcoMetadata, _numbers, _numbers, st.text(max_size=40)),
    ),
    n_missing_packets=_numbers,
    n_missing_modules=_numbers,
    received_ns=st.sampled_from([0, 1, NOW_NS]),
)


@pytest.fixture(scope="module")
def batch() -> AnnouncedBatch:
    return AnnouncedBatch(16)


def put(batch: AnnouncedBatch, messages: list[bytes]) -> tuple[list[int], list[int], int]:
    for at, data in enumerate(messages):
        room = min(len(data), batch.rows.shape[1])
        batch.rows[at, :room] = np.frombuffer(data[:room], np.uint8)
        batch.lengths[at] = len(data)
    ids, status, n_malformed = batch.images(len(messages))
    return ids.tolist(), status.tolist(), n_malformed


def actions_of(batch: AnnouncedBatch, wanted: list[bool]) -> list[bytes]:
    rows, lengths = batch.actions(np.array(wanted, bool), NOW_NS)
    return [row[:n].tobytes() for row, n in zip(rows, lengths.tolist(), strict=True)]


@settings(deadline=None)
@given(st.lists(st.tuples(_images, st.booleans()), max_size=8))
def test_images_are_read_and_handed_on_as_one_at_a_time(chosen: list[tuple[Image, bool]]) -> None:
    batch = AnnouncedBatch(8)
    messages = [image_metadata.encode(image) for image, _ in chosen]
    ids, status, n_malformed = put(batch, messages)
    assert ids == [image.image_id for image, _ in chosen]
    assert status == [image.status for image, _ in chosen]
    assert n_malformed == 0
    expected = []
    for (image, is_wanted), data in zip(chosen, messages, strict=True):
        if is_wanted:
            inner = data if image.received_ns else data + writer_action.received_at(NOW_NS)
            message = pb.WriterAction(
                record_image=pb.RecordImage(image_metadata=pb.ImageMetadata.FromString(inner))
            )
            expected.append(message)
    found = actions_of(batch, [is_wanted for _, is_wanted in chosen])
    assert [pb.WriterAction.FromString(data) for data in found] == expected
    assert all(len(data) <= 512 for data in found)


def test_the_bytes_are_those_of_the_contract(batch: AnnouncedBatch) -> None:
    image = Image(1, 2, 3, 6, Dtype.UINT8, detector=EigerMetadata(7), received_ns=5)
    put(batch, [image_metadata.encode(image)])
    assert actions_of(batch, [True]) == [
        bytes.fromhex("1215 0a13 0801 1002 1803 2006 2801 3001 5202 0807 b006 05")
    ]


@settings(deadline=None, max_examples=1000)
@given(_images, st.data())
def test_what_is_damaged_is_judged_as_the_codec_judges_it(image: Image, data: st.DataObject) -> None:
    batch = AnnouncedBatch(1)
    damaged = bytearray(image_metadata.encode(image))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        message = image_metadata.parse(bytes(damaged))
    except ValueError:
        expected = None
    else:
        expected = message if message.image_id < 2**63 else None
    ids, status, n_malformed = put(batch, [bytes(damaged)])
    if expected is None:
        assert (ids, status, n_malformed) == ([], [], 1)
        return
    assert (ids, status, n_malformed) == ([expected.image_id], [expected.status], 0)
    end = b"" if expected.received_ns else writer_action.received_at(NOW_NS)
    expected.MergeFromString(end)
    (action,) = actions_of(batch, [True])
    assert pb.WriterAction.FromString(action).record_image.image_metadata == expected


def varint(value: int, n_bytes: int) -> bytes:
    """A number in more bytes than it needs."""
    parts = [value >> 7 * k & 0x7F for k in range(n_bytes)]
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


@pytest.mark.parametrize("n_bytes", range(1, 10))
@pytest.mark.parametrize("where", ["key", "length", "nested key", "nested length", "nested field"])
def test_keys_and_lengths_that_protobuf_refuses_are_refused(
    batch: AnnouncedBatch, n_bytes: int, where: str
) -> None:
    usual = image_metadata.encode(Image(5, 2, 3, 6, Dtype.UINT8))
    nested = {
        "nested key": varint(1 << 3, n_bytes) + b"\x07",
        "nested length": varint(3 << 3 | 2, 1) + varint(1, n_bytes) + b"x",
        "nested field": varint(1 << max(4, 7 * n_bytes - 1), n_bytes + 1) + b"\x07",
    }.get(where, b"\x08\x07")
    length = varint(len(nested), n_bytes if where == "length" else 1)
    data = usual + (varint(1 << 3, n_bytes) + b"\x09" if where == "key" else b"\x5a" + length + nested)
    try:
        expected = [image_metadata.parse(data).image_id]
    except ValueError:
        expected = []
    assert put(batch, [data])[0] == expected


def test_the_usual_message_is_read_the_fast_way(batch: AnnouncedBatch) -> None:
    usual = [
        Image(5, 2, 3, 6, Dtype.UINT16, detector=detector, n_missing_packets=3)
        for detector in (EigerMetadata(1), JungfrauMetadata(2), PcoMetadata(1, 2, "CAM:FPICTURE"), None)
    ]
    put(batch, [image_metadata.encode(image) for image in usual])
    assert batch._found[: len(usual), ORDINARY].all()


def test_what_no_writer_could_read_is_dropped(batch: AnnouncedBatch) -> None:
    longest = image_metadata.encode(Image(1, 2, 3, 6, Dtype.UINT8)) + b"\x9a\x3f\xff\x03" + b"x" * 511
    fits = image_metadata.encode(Image(2, 2, 3, 6, Dtype.UINT8))
    assert put(batch, [longest, b"", fits, b"no message at all"]) == ([2], [1], 3)
    assert [len(data) for data in actions_of(batch, [True])] == [len(fits) + 4 + 11]


def test_a_field_we_do_not_know_goes_on_to_the_writers(batch: AnnouncedBatch) -> None:
    unknown = image_metadata.encode(Image(1, 2, 3, 6, Dtype.UINT8)) + bytes.fromhex("a03f 05")
    assert put(batch, [unknown]) == ([1], [1], 0)
    (action,) = actions_of(batch, [True])
    assert unknown in action
