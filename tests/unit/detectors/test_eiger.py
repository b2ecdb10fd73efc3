"""Eiger: sizes, geometry, frame header and simulated packets, as the contract has them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors import eiger
from tango_stddaq.detectors.layout import EVENT, Detector
from tango_stddaq.errors import ConfigError
from tango_stddaq.model import EigerMetadata
from tests.conftest import EIGER_POSITIONS

from .announced import announced


def config(**changes: Any) -> DaqConfig:
    data = {
        "detector_name": "EG", "detector_type": "eiger", "n_modules": 4, "bit_depth": 16,
        "image_pixel_height": 514, "image_pixel_width": 1030, "start_udp_port": 50020,
        "module_positions": EIGER_POSITIONS,
    }  # fmt: skip
    return config_module.from_dict({**data, **changes})


def assemble(detector: Detector, daq: DaqConfig, image: np.ndarray) -> np.ndarray:
    """Cut an image into packets and lay their payloads where `placement` says."""
    slot = np.zeros(daq.sizes.slot_bytes, np.uint8)
    for module, offsets in zip(detector.modules, detector.placement.offsets, strict=True):
        for packet, starts in zip(detector.packets(image, 1, module), offsets, strict=True):
            pieces = packet[48:].reshape(len(starts), detector.placement.piece_bytes)
            for start, piece in zip(starts, pieces, strict=True):
                slot[start : start + piece.size] = piece
    return slot.view(daq.sizes.dtype.numpy).reshape(daq.sizes.shape)


@pytest.mark.parametrize(("bit_depth", "packets"), [(8, 32), (16, 64), (32, 128)])
def test_a_frame_is_packets_of_4096_data_bytes(bit_depth: int, packets: int) -> None:
    layout = eiger.packet_layout(bit_depth)
    assert (layout.packet_bytes, layout.packets_per_frame) == (4144, packets)
    assert layout.frame_bytes == 512 * 256 * bit_depth // 8
    placement = eiger.detector(config(bit_depth=bit_depth)).placement
    assert placement.offsets.shape == (4, packets, 2 * 4096 // (512 * bit_depth // 8))
    assert placement.piece_bytes == 256 * bit_depth // 8
    assert placement.offsets.flags.c_contiguous


def test_chips_stand_two_pixels_apart_and_rows_go_down() -> None:
    rows = eiger.row_offsets(config(), 1)
    assert rows.shape == (256, 2)
    assert rows[0].tolist() == [516, 516 + 256 + 2]
    assert rows[255].tolist() == [255 * 1030 + 516, 255 * 1030 + 774]


def test_a_module_upside_down_has_its_first_row_lowest() -> None:
    rows = eiger.row_offsets(config(), 2)
    assert rows[0].tolist() == [513 * 1030, 513 * 1030 + 258]
    assert rows[255].tolist() == [258 * 1030, 258 * 1030 + 258]


def test_columns_are_never_mirrored() -> None:
    mirrored = config(module_positions={"0": [513, 0, 0, 255]})
    assert np.array_equal(eiger.row_offsets(mirrored, 0), eiger.row_offsets(config(), 0))


@pytest.mark.parametrize("bit_depth", [8, 16, 32])
def test_packets_laid_out_again_give_the_image_with_empty_gaps(bit_depth: int) -> None:
    daq = config(bit_depth=bit_depth)
    image = (
        np.random.default_rng(1).integers(1, 2**bit_depth, daq.sizes.shape).astype(daq.sizes.dtype.numpy)
    )
    expected = np.zeros_like(image)
    for rows in (slice(0, 256), slice(258, 514)):
        for column in (0, 258, 516, 774):
            expected[rows, column : column + 256] = image[rows, column : column + 256]
    assert np.array_equal(assemble(eiger.detector(daq), daq, image), expected)


@settings(max_examples=10)
@given(st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_every_pixel_of_a_module_is_placed_exactly_once_inside_the_image(
    x: int, y: int, flipped: bool
) -> None:
    position = [x, y + 255, x + 513, y] if flipped else [x, y, x + 513, y + 255]
    daq = config(
        n_modules=1, image_pixel_height=296, image_pixel_width=554, module_positions={"0": position}
    )
    placement = eiger.detector(daq).placement
    covered = (placement.offsets.reshape(-1, 1) + np.arange(placement.piece_bytes)).reshape(-1)
    assert np.unique(covered).size == covered.size == 512 * 256 * 2
    assert 0 <= covered.min() <= covered.max() < daq.sizes.slot_bytes


def test_module_7_of_a_detector_with_gaps_in_its_numbers_keeps_its_number() -> None:
    daq = config(n_modules=11, module_positions={"10": [0, 0, 513, 255], "7": [516, 0, 1029, 255]})
    detector = eiger.detector(daq)
    assert detector.modules == (7, 10)
    assert detector.placement.offsets[0, 0, 0] == 516 * 2
    events = np.zeros(2, EVENT)
    events["source"] = [0, 1]
    assert detector.frame_headers(events)["module_id"].tolist() == [7, 10]


@pytest.mark.parametrize(
    "position", [[0, 0, 511, 255], [0, 0, 513, 256], [0, 0, 513, 0], [0, 0, 255, 513]]
)
def test_a_module_of_another_size_is_refused_with_key_value_and_rule(position: list[int]) -> None:
    with pytest.raises(ConfigError) as caught:
        eiger.detector(config(module_positions={"3": position}))
    for text in ("module_positions '3'", str(position), "|x1-x0| == 513", "|y1-y0| == 255"):
        assert text in str(caught.value)


def test_an_eiger_without_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match="module_positions: is empty"):
        eiger.detector(config(module_positions={}))


def test_packet_headers_are_those_of_the_detector() -> None:
    packets = eiger.detector(config()).packets(np.zeros((514, 1030), "<u2"), 2**40 + 5, 3)
    assert packets.shape == (64, 4144)
    assert packets[63, :48].tobytes() == (
        b"\x05\0\0\0\0\x01\0\0" + bytes(4) + b"\x3f\0\0\0" + bytes(16)
        + b"\x03\0" + b"\x01\0" + b"\x01\0" + bytes(8) + b"\x01\x02"
    )  # fmt: skip


def test_the_frame_header_byte_for_byte() -> None:
    detector = eiger.detector(config(bit_depth=32))
    events = np.zeros(1, EVENT)
    events["image_id"], events["n_missing_packets"], events["source"], events["epoch"] = 258, 3, 2, 7
    events["packet_header"][0, 8:12] = [4, 3, 2, 1]  # exposure length
    events["packet_header"][0, 34:38] = [0x11, 0x12, 0x21, 0x22]  # row, column
    headers = detector.frame_headers(events)
    assert headers.tobytes() == (
        b"\x02\x01" + bytes(6) + b"\x03" + bytes(7) + b"\x02\0" + b"\x20\0"
        + b"\x21\x22" + b"\x11\x12" + b"\x04\x03\x02\x01" + bytes(32) + b"\x0c\xda\x07\0"
    )  # fmt: skip
    assert announced(detector, headers.tobytes()) == EigerMetadata(exptime=0x01020304)
    # What an existing program leaves in the padding means nothing.
    assert announced(detector, headers.tobytes()[:60] + bytes(4)) == EigerMetadata(exptime=0)
