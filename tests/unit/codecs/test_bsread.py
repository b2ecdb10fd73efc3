"""bsread: the headers byte for byte, every compression, and what malformed messages do."""

import hashlib
import json
import struct
from typing import Any

import bitshuffle
import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.codecs import bsread
from tango_stddaq.codecs.bsread import Decoder
from tango_stddaq.codecs.bsread_compression import MAX_HEADER_BYTES, BsreadCompression, compress
from tango_stddaq.codecs.bsread_message import Channel, MainHeader, Message

NONE, LZ4, BSLZ4 = BsreadCompression.NONE, BsreadCompression.LZ4, BsreadCompression.BITSHUFFLE_LZ4
KINDS = ["uint8", "uint16", "uint32", "int64", "float32", "float64"]
DATA_HEADER = b'{"htype":"bsr_d-1.1","channels":[{"name":"CAM","shape":[3,2],"type":"uint16"}]}'
ENTRY: dict[str, Any] = {"name": "CAM", "shape": [3, 2], "type": "uint16"}
PIXELS = np.arange(6, dtype="<u2").reshape(2, 3)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def main_header(data_header: bytes = DATA_HEADER, **changes: Any) -> bytes:
    good: dict[str, Any] = {
        "htype": "bsr_m-1.1",
        "pulse_id": 5,
        "global_timestamp": {"sec": 7, "ns": 8},
        "hash": md5(data_header),
    }
    return json.dumps({**good, **changes}).encode()


def message(entry: dict[str, Any] | None = None, data: bytes = PIXELS.tobytes()) -> list[bytes]:
    header = json.dumps({"htype": "bsr_d-1.1", "channels": [entry or ENTRY]}).encode()
    return [main_header(header), header, data, b""]


def pixels(found: Message) -> np.ndarray:
    out = np.empty(found.channel.n_bytes, np.uint8)
    bsread.unpack(found.channel, found.data, out)
    little = np.dtype(found.channel.kind).newbyteorder("<")
    return out.view(little).reshape(found.channel.shape)


def test_headers_are_written_byte_for_byte_as_in_the_contract() -> None:
    frames = bsread.encode(29, (1, 2), Channel("CAM", (2, 3), "uint16"), PIXELS)
    assert frames == [
        b'{"htype":"bsr_m-1.1","pulse_id":29,"global_timestamp":{"sec":1,"ns":2},"hash":"'
        + md5(DATA_HEADER).encode()
        + b'"}',
        DATA_HEADER,
        PIXELS.tobytes(),
        struct.pack("<qq", 1, 2),
    ]


def test_bitshuffle_lz4_data_has_the_12_byte_header_of_the_contract() -> None:
    data = compress(np.zeros(5000, "<u2"), BSLZ4)
    assert data[:12] == struct.pack(">QI", 10_000, 8192)
    found = bitshuffle.decompress_lz4(np.frombuffer(data, np.uint8)[12:], (5000,), np.dtype("<u2"), 0)
    assert not found.any()


@given(
    st.sampled_from(KINDS), st.sampled_from(["little", "big"]), st.sampled_from(list(BsreadCompression)),
    st.sampled_from(list(BsreadCompression)), st.integers(1, 130), st.integers(1, 130),
    st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1),
)  # fmt: skip
@settings(deadline=None)
def test_every_message_survives_the_wire(
    kind: str, encoding: str, compression: BsreadCompression, header_compression: BsreadCompression,
    height: int, width: int, pulse_id: int, seconds: int,
) -> None:  # fmt: skip
    image = np.random.default_rng(height).integers(0, 120, (height, width)).astype(kind)
    channel = Channel("SLAAR-CAM:FPICTURE ☃", (height, width), kind, encoding, compression)
    frames = bsread.encode(pulse_id, (seconds, 9), channel, image, header_compression)
    found = Decoder().decode([memoryview(frame) for frame in frames])
    assert found.main == MainHeader(pulse_id, (seconds, 9), md5(frames[1]), header_compression)
    assert (found.channel, found.timestamp) == (channel, (seconds, 9))
    np.testing.assert_array_equal(pixels(found), image)


@pytest.mark.parametrize("block_bytes", [0, 128, 2048, 8192])
@pytest.mark.parametrize("n", [1, 7, 8, 63, 64, 1024, 4096, 5003])
def test_any_block_size_and_left_over_elements(block_bytes: int, n: int) -> None:
    image = np.arange(n, dtype="<u2")
    data = struct.pack(">QI", image.nbytes, block_bytes)
    data += bitshuffle.compress_lz4(image, block_bytes // 2).tobytes()
    found = Decoder().decode(message({**ENTRY, "shape": [n, 1], "compression": "bitshuffle_lz4"}, data))
    np.testing.assert_array_equal(pixels(found)[0], image)


@pytest.mark.parametrize("order", ["little", "big"])
def test_the_size_in_front_of_lz4_may_have_either_byte_order(order: Any) -> None:
    block = lz4.block.compress(PIXELS.tobytes(), store_size=False)
    data = PIXELS.nbytes.to_bytes(4, order) + block
    found = Decoder().decode(message({**ENTRY, "compression": "lz4"}, data))
    np.testing.assert_array_equal(pixels(found), PIXELS)
    header = len(DATA_HEADER).to_bytes(4, order) + lz4.block.compress(DATA_HEADER, store_size=False)
    main = main_header(header, dh_compression="lz4")
    assert Decoder().decode([main, header, b"", b""]).channel.shape == (2, 3)


def test_epoch_is_accepted_for_sec() -> None:
    main = main_header(global_timestamp={"epoch": 11, "ns": 12})
    assert bsread.decode_main_header(main).timestamp == (11, 12)


def test_the_timestamp_has_the_byte_order_of_the_channel_even_of_one_byte_pixels() -> None:
    frames = message({**ENTRY, "type": "uint8", "encoding": "big"}, bytes(6))
    frames[3] = struct.pack(">qq", 3, 4)
    assert Decoder().decode(frames).timestamp == (3, 4)


def test_the_first_of_several_channels_is_taken_whatever_the_others_are() -> None:
    header = json.dumps(
        {"htype": "bsr_d-1.1", "channels": [ENTRY, {"name": "x", "type": "string", "shape": [1]}, 5]}
    ).encode()
    frames = [main_header(header), header, PIXELS.tobytes(), b"", b"text", b"", b"", b""]
    assert pixels(Decoder().decode(frames)).tolist() == PIXELS.tolist()
    with pytest.raises(ValueError, match="3 channels need 8"):
        Decoder().decode(frames[:6])


def test_a_data_header_is_decoded_once_and_again_after_it_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded = []
    original = bsread.decode_data_header
    monkeypatch.setattr(
        bsread, "decode_data_header", lambda *args: decoded.append(args) or original(*args)
    )
    decoder, wide = Decoder(), message({**ENTRY, "shape": [6, 1]})
    assert [decoder.decode(frames).channel.shape for frames in [message(), wide] * 5] == [
        (2, 3),
        (1, 6),
    ] * 5
    assert len(decoded) == 2


def test_a_known_hash_does_not_excuse_another_header() -> None:
    decoder = Decoder()
    decoder.decode(message())
    other = json.dumps({"htype": "bsr_d-1.1", "channels": [{**ENTRY, "name": "other"}]}).encode()
    with pytest.raises(ValueError, match="data header has hash"):
        decoder.decode([message()[0], other, PIXELS.tobytes(), b""])


def test_many_headers_do_not_fill_the_memory() -> None:
    decoder = Decoder()
    for i in range(100):
        decoder.decode(message({**ENTRY, "name": str(i)}))
    assert len(decoder._known) <= 16


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"htype": "bsr_m-1.0"}, "htype"), ({"htype": None}, "htype"),
        ({"pulse_id": -1}, "pulse_id"), ({"pulse_id": 2**64}, "pulse_id"),
        ({"pulse_id": "5"}, "pulse_id"), ({"pulse_id": True}, "pulse_id"),
        ({"pulse_id": 1.0}, "pulse_id"), ({"pulse_id": None}, "pulse_id"),
        ({"global_timestamp": None}, "global_timestamp"), ({"global_timestamp": []}, "global_timestamp"),
        ({"global_timestamp": {"sec": 1}}, "ns"), ({"global_timestamp": {"ns": 1}}, "sec"),
        ({"global_timestamp": {"sec": -1, "ns": 1}}, "sec"),
        ({"hash": None}, "hash"), ({"hash": 5}, "hash"), ({"hash": "0" * 32}, "hash"),
        ({"dh_compression": "zip"}, "dh_compression"), ({"dh_compression": []}, "dh_compression"),
        ({"dh_compression": "lz4"}, "header"), ({"dh_compression": "bitshuffle_lz4"}, "header"),
    ],
)  # fmt: skip
def test_a_wrong_main_header_is_refused_naming_what_is_wrong(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        Decoder().decode([main_header(**changes), *message()[1:]])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": None}, "name"), ({"name": 5}, "name"),
        ({"shape": [3]}, "shape"), ({"shape": [1, 2, 3]}, "shape"), ({"shape": [0, 2]}, "shape"),
        ({"shape": [True, 2]}, "shape"), ({"shape": None}, "shape"), ({"shape": [2**31, 1]}, "shape"),
        ({"shape": [2**15, 2**15]}, "larger than"),
        ({"type": "string"}, "type"), ({"type": None}, "type"), ({"type": []}, "type"),
        ({"encoding": "middle"}, "encoding"), ({"encoding": []}, "encoding"),
        ({"compression": "jpeg"}, "compression"), ({"compression": {}}, "compression"),
    ],
)  # fmt: skip
def test_a_wrong_channel_is_refused_naming_what_is_wrong(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Decoder().decode(message({**ENTRY, **changes}))


@pytest.mark.parametrize("channels", [None, [], {}, [5], [None], [[]], [ENTRY] * 1025])
def test_a_data_header_needs_channels(channels: Any) -> None:
    header = json.dumps({"htype": "bsr_d-1.1", "channels": channels}).encode()
    with pytest.raises(ValueError, match="channel"):
        Decoder().decode([main_header(header), header, b"", b""])


@pytest.mark.parametrize("n_frames", [0, 1, 2, 3, 5, 6])
def test_the_number_of_frames_must_fit(n_frames: int) -> None:
    with pytest.raises(ValueError, match=f"{n_frames} frames"):
        Decoder().decode((message() * 2)[:n_frames])


@pytest.mark.parametrize("n_bytes", [1, 8, 15, 17])
def test_a_timestamp_is_empty_or_16_bytes(n_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"timestamp of {n_bytes} bytes"):
        Decoder().decode([*message()[:3], bytes(n_bytes)])


@pytest.mark.parametrize(
    ("compression", "data"),
    [
        (NONE, bytes(11)), (NONE, bytes(13)), (NONE, b""),
        (LZ4, b""), (LZ4, b"\0\0\0"), (LZ4, b"\0\0\0\x0c"), (LZ4, b"\0\0\0\x0c\xff\xff\xff"),
        (LZ4, b"\x7f\xff\xff\xff\0"),
        (LZ4, (12).to_bytes(4, "big") + lz4.block.compress(b"short", store_size=False)),
        (BSLZ4, b""), (BSLZ4, bytes(11)), (BSLZ4, struct.pack(">QI", 12, 0)),
        (BSLZ4, struct.pack(">QI", 12, 8192) + bytes(11)),
        (BSLZ4, struct.pack(">QI", 12, 8192) + bytes(13)),
        (BSLZ4, struct.pack(">QI", 2**63, 8192) + bytes(12)),
        (BSLZ4, struct.pack(">QI", 12, 8193) + bytes(12)),
        (BSLZ4, struct.pack(">QI", 12, 2**32 - 16) + bytes(12)),
    ],
)  # fmt: skip
def test_pixels_that_are_not_what_the_header_says_are_refused(
    compression: BsreadCompression, data: bytes
) -> None:
    found = Decoder().decode(message({**ENTRY, "compression": str(compression)}, data))
    with pytest.raises(ValueError, match=r"bytes|damaged"):
        pixels(found)


def test_a_block_that_claims_more_than_there_is_is_never_given_to_the_library() -> None:
    image = np.arange(4096, dtype="<u2").reshape(1, -1)
    data = bytearray(compress(image, BSLZ4))
    for claimed in (0, 1, len(data), 2**31 - 1, 2**31, 2**32 - 1):
        data[12:16] = struct.pack(">I", claimed)
        entry = {**ENTRY, "shape": [4096, 1], "compression": "bitshuffle_lz4"}
        with pytest.raises(ValueError, match="bitshuffle_lz4 data"):
            pixels(Decoder().decode(message(entry, bytes(data))))


def test_a_header_that_would_grow_without_bound_is_refused() -> None:
    huge = b" " * (2 * MAX_HEADER_BYTES)
    for compression in (LZ4, BSLZ4):
        data = compress(np.frombuffer(huge, np.uint8), compression)
        main = main_header(data, dh_compression=str(compression))
        with pytest.raises(ValueError, match="larger than"):
            Decoder().decode([main, data, b"", b""])
    for frames in ([huge, *message()[1:]], [main_header(huge), huge, b"", b""]):
        with pytest.raises(ValueError, match="header of"):
            Decoder().decode(frames)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"1", b"\xff\xfe", b"[" * 60_000, b'{"htype":' + b"9" * 9000]
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"bsr_m-1\.1"):
        Decoder().decode([data, *message()[1:]])
    with pytest.raises(ValueError, match=r"bsr_d-1\.1"):
        Decoder().decode([main_header(data), data, b"", b""])


# -- fuzz ------------------------------------------------------------------------------------------


def take(frames: list[bytes]) -> None:
    """Read a message as a receiver does; only ValueError may come out of it."""
    try:
        found = Decoder().decode(frames)
        if found.channel.n_bytes <= 2**20:
            pixels(found)
    except ValueError:
        pass


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats()
    | st.sampled_from(["", "uint8", "big", "lz4", "bitshuffle_lz4", "none", "bsr_d-1.1", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["sec", "ns", "epoch", "name", "type", "shape"]), inner),
    max_leaves=6,
)  # fmt: skip
MAIN_KEYS = st.sampled_from(["htype", "pulse_id", "global_timestamp", "hash", "dh_compression"])
ENTRY_KEYS = st.sampled_from(["name", "shape", "type", "encoding", "compression"])


@given(st.lists(st.binary(max_size=60), max_size=8))
@settings(max_examples=500, deadline=None)
def test_random_frames_raise_value_error_and_nothing_else(frames: list[bytes]) -> None:
    take(frames)


@given(
    st.dictionaries(MAIN_KEYS, JSON_VALUES),
    st.dictionaries(ENTRY_KEYS, JSON_VALUES),
    st.binary(max_size=64),
)
@settings(max_examples=1000, deadline=None)
def test_any_json_raises_value_error_and_nothing_else(
    main: dict[str, Any], entry: dict[str, Any], data: bytes
) -> None:
    header = json.dumps({"htype": "bsr_d-1.1", "channels": [{**ENTRY, **entry}]}).encode()
    take([main_header(header, **main), header, data, b""])


@given(
    st.sampled_from(list(BsreadCompression)), st.sampled_from(list(BsreadCompression)),
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.tuples(st.integers(0, 3), st.floats(0, 1)),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=2000, deadline=None)
def test_mutated_messages_raise_value_error_and_nothing_else(
    compression: BsreadCompression,
    header_compression: BsreadCompression,
    changes: list[tuple[int, float, int]],
    cut: tuple[int, float],
    with_hash: bool,
) -> None:
    image = np.arange(70 * 80, dtype="<u2").reshape(70, 80)
    channel = Channel("CAM", image.shape, "uint16", "little", compression)
    frames = [bytearray(frame) for frame in bsread.encode(1, (2, 3), channel, image, header_compression)]
    for at, place, value in changes:
        if frames[at]:
            frames[at][int(place * (len(frames[at]) - 1))] = value
    del frames[cut[0]][int(cut[1] * len(frames[cut[0]])) + 1 :]
    if with_hash:  # the damage is the sender's own: the hash is right
        changed = bytes(frames[1])
        frames[0] = bytearray(main_header(changed, dh_compression=str(header_compression)))
    take([bytes(frame) for frame in frames])
