"""GigaFRoST: sizes as the contract computes them, every pixel in one place, any order of packets."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors import gigafrost
from tango_stddaq.detectors.layout import FRAME_HEADER, Detector
from tango_stddaq.errors import ConfigError
from tango_stddaq.model import GigafrostMetadata
from tango_stddaq.processing.assembly import Workspace
from tests.unit.processing.kernel import receive

from .announced import announced

WIDTHS = st.integers(1, 84).map(lambda n: 24 * n)
HEIGHTS = st.integers(1, 504).map(lambda n: 4 * n)


def config_of(height: int, width: int, n_modules: int = 8) -> DaqConfig:
    return config_module.from_dict(
        {
            "detector_name": "GF", "detector_type": "gigafrost", "n_modules": n_modules,
            "bit_depth": 16, "image_pixel_height": height, "image_pixel_width": width,
            "start_udp_port": 2000, "module_positions": {},
        }
    )  # fmt: skip


def datagrams(detector: Detector, image: np.ndarray, image_id: int, connection: int) -> list[bytes]:
    packets = detector.packets(image, image_id, connection)
    sizes = detector.packet_sizes()
    return [packet[:size].tobytes() for packet, size in zip(packets, sizes, strict=True)]


def test_headers_are_packed_as_the_contract_says() -> None:
    assert gigafrost.HEADER.itemsize == 32
    assert [gigafrost.HEADER.fields[name][1] for name in gigafrost.HEADER.names] == [
        0, 1, 2, 3, 4, 8, 12, 14, 16, 24, 28,
    ]  # fmt: skip
    fields = gigafrost.FRAME_HEADER.fields
    assert gigafrost.FRAME_HEADER.itemsize == 64
    assert [fields[name][1] for name in ("swapped_rows", "scan_id", "frame_timestamp")] == [18, 24, 44]
    assert all(fields[name] == FRAME_HEADER.fields[name] for name in FRAME_HEADER.names)


@pytest.mark.parametrize(
    ("height", "width", "rows", "packets", "payload"),
    [(2016, 2016, 4, 126, 6048), (1008, 1008, 8, 32, 6048), (128, 480, 20, 2, 7200), (4, 24, 1, 1, 54)],
)
def test_sizes_of_packets(height: int, width: int, rows: int, packets: int, payload: int) -> None:
    geometry = gigafrost.Geometry.of(height, width)
    assert (geometry.rows, geometry.packets) == (rows, packets)
    assert geometry.payload_bytes(rows) == payload


@pytest.mark.parametrize(("height", "width"), [(2016, 2040), (2016, 36), (6, 24), (2020, 2016)])
def test_sizes_that_no_gigafrost_has_are_refused(height: int, width: int) -> None:
    with pytest.raises(ConfigError, match="multiples of"):
        gigafrost.detector(config_of(height, width))


@settings(max_examples=40)
@given(HEIGHTS, WIDTHS)
def test_every_pixel_has_one_place(height: int, width: int) -> None:
    detector = gigafrost.detector(config_of(height, width))
    placement, geometry = detector.placement, gigafrost.Geometry.of(height, width)
    offsets = placement.offsets.reshape(8, -1)[:, : geometry.height]
    starts = (offsets.reshape(-1, 1) + 2 * np.arange(geometry.width)) // 2
    assert np.array_equal(np.sort(starts.reshape(-1)), np.arange(height * width))
    payload = detector.layout.header.itemsize + geometry.payload_bytes(geometry.rows)
    assert payload <= 7400 + 36 + 32


@settings(max_examples=40)
@given(
    st.integers(1, 40).map(lambda n: 4 * n),
    st.integers(1, 20).map(lambda n: 24 * n),
    st.randoms(use_true_random=False),
    st.integers(1, 64),
    st.floats(0, 0.3),
)
def test_any_order_loss_and_duplication_gives_the_right_pixels_or_zeros(
    height: int, width: int, random: Random, batch: int, loss: float
) -> None:
    detector = gigafrost.detector(config_of(height, width))
    rng = np.random.default_rng(random.randrange(2**32))
    slots = np.full((3, height * width), 0xEEEE, np.uint16)
    workspace = Workspace.of(detector.layout, detector.placement)
    for source in range(8):
        workspace.set_ring(source, slots.ctypes.data, height * width * 2, 3, 0)
    image = rng.integers(1, 4096, (height, width)).astype(np.uint16)
    n_sent = n_packets = 0
    for connection in range(8):
        packets = datagrams(detector, image, 4, connection)
        n_packets += len(packets)
        kept = [packet for packet in packets if rng.random() >= loss] or packets[:1]
        n_sent += len(kept)
        arriving = kept + [packet for packet in kept if rng.random() < 0.2]
        random.shuffle(arriving)
        receive(workspace, connection, arriving, batch)
        workspace.flush(connection)
    events = workspace.take_events()
    assert len(events) == 8
    assert int(events["n_missing_packets"].sum()) == n_packets - n_sent
    got = slots[4 % 3].reshape(height, width)
    assert ((got == image) | (got == 0)).all()
    assert (got == image).all() == (n_sent == n_packets)
    assert (slots[[0, 2]] == 0xEEEE).all()


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=9000), min_size=1, max_size=64), st.booleans())
def test_random_datagrams_are_counted_and_never_placed(packets: list[bytes], looks_real: bool) -> None:
    detector = gigafrost.detector(config_of(128, 480))
    slots = np.full((3, 128 * 480), 0xEEEE, np.uint16)
    workspace = Workspace.of(detector.layout, detector.placement)
    workspace.set_ring(0, slots.ctypes.data, 128 * 480 * 2, 3, 0)
    if looks_real:
        packets = [b"\xca" + packet[1:] for packet in packets]
    else:
        packets = [packet[:31] for packet in packets]
    receive(workspace, 0, packets, 16)
    counts = workspace.totals()
    assert counts["bad_size"] + counts["bad_header"] == counts["packets"] == len(packets)
    assert (slots == 0xEEEE).all()


def test_what_a_packet_says_reaches_the_image() -> None:
    detector = gigafrost.detector(config_of(128, 480, 16))
    packets = detector.packets(np.zeros((128, 480), np.uint16), 3, 9)
    header = packets[:, :32].copy().view(gigafrost.HEADER)
    header["status_flags"] = gigafrost.DO_NOT_STORE
    header["image_timing"] = 77 << 40 | 123
    header["scan_id"], header["scan_time"], header["sync_time"] = 5, 6, 7
    packets[:, :32] = header.view(np.uint8)
    workspace = Workspace.of(detector.layout, detector.placement)
    slots = np.zeros((2, 128 * 480), np.uint16)
    for source in range(16):
        workspace.set_ring(source, slots.ctypes.data, 128 * 480 * 2, 2, 0)
    sizes = detector.packet_sizes()
    receive(workspace, 9, [p[:n].tobytes() for p, n in zip(packets, sizes, strict=True)], 8)
    frame = detector.frame_headers(workspace.take_events())
    assert (frame["module_id"], frame["quadrant_id"], frame["link_id"]) == (1, 0, 1)
    assert announced(detector, frame.tobytes()) == GigafrostMetadata(5, 6, 7, 123, 77, store_image=False)


def test_twelve_bits_are_packed_little_endian() -> None:
    packed = gigafrost.pack_12(np.array([0xABC, 0xDEF], np.uint16))
    assert packed.tolist() == [0xBC, 0xFA, 0xDE]


@pytest.mark.parametrize(("height", "width"), [(2016, 2016), (280, 528), (400, 600), (4, 24)])
def test_a_module_is_filled_without_touching_another(height: int, width: int) -> None:
    placement = gigafrost.detector(config_of(height, width, 8)).placement
    times = np.zeros((height, width), np.uint16)
    for row in range(8):
        slot = np.ones(height * width * 2, np.uint8)
        placement.fill(slot, row)
        times += slot.view(np.uint16).reshape(height, width) == 0
    assert (times == 1).all()
