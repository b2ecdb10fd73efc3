"""Jungfrau: header layouts, bunch ids as image ids, geometry, and what is no packet."""

from typing import Any

import numpy as np
import pytest

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors import jungfrau, sls
from tango_stddaq.detectors.layout import FRAME_HEADER
from tango_stddaq.errors import ConfigError
from tango_stddaq.model import JungfrauMetadata
from tango_stddaq.processing.assembly import Workspace
from tests.unit.processing.kernel import receive

from .announced import announced

HEADER_BYTES = sls.HEADER.itemsize


def config_of(**changes: Any) -> DaqConfig:
    return config_module.from_dict(
        {
            "detector_name": "JF", "detector_type": "jungfrau-raw", "n_modules": 1, "bit_depth": 16,
            "image_pixel_height": 512, "image_pixel_width": 1024, "start_udp_port": 2000,
            "module_positions": {}, **changes,
        }
    )  # fmt: skip


class OneModule:
    """A receiver of one module with a ring of three images."""

    def __init__(self) -> None:
        self.detector = jungfrau.detector(config_of())
        self.slots = np.full((3, 512, 1024), 0xEEEE, np.uint16)
        self.workspace = Workspace.of(self.detector.layout, self.detector.placement)
        self.workspace.set_ring(0, self.slots.ctypes.data, 2**20, 3, 0)

    def take(self, frame_number: int, bunch_id: float, value: int, packets: slice = slice(None)) -> None:
        data = self.detector.packets(np.full((512, 1024), value, np.uint16), 1, 0)
        header = data[:, :HEADER_BYTES].copy().view(sls.HEADER)
        header["frame_number"] = frame_number
        header["detector_specific_1"] = np.array([bunch_id]).view(np.uint64)
        header["detector_specific_3"] = 99
        data[:, :HEADER_BYTES] = header.view(np.uint8)
        receive(self.workspace, 0, [packet.tobytes() for packet in data[packets]], 64)


def test_the_frame_header_is_packed_as_the_contract_says() -> None:
    fields = jungfrau.FRAME_HEADER.fields
    assert jungfrau.FRAME_HEADER.itemsize == 64
    assert [fields[n][1] for n in ("id", "frame_index", "daq_rec", "module_number")] == [18, 26, 34, 42]
    assert all(fields[name] == FRAME_HEADER.fields[name] for name in FRAME_HEADER.names)
    assert (jungfrau.LAYOUT.packet_bytes, jungfrau.LAYOUT.packets_per_frame) == (8240, 128)


def test_the_bunch_id_is_the_image_id_whatever_its_step() -> None:
    module = OneModule()
    for number, bunch_id in enumerate((1000, 1010, 1020, 1031)):
        module.take(50 + number, float(bunch_id), number + 1)
        assert (module.slots[bunch_id % 3] == number + 1).all()
    events = module.workspace.take_events()
    assert events["image_id"].tolist() == [1000, 1010, 1020, 1031]
    assert module.workspace.totals()["skipped_ids"] == 0  # frame numbers have no gap
    header = module.detector.frame_headers(events)
    assert header["frame_index"].tolist() == [50, 51, 52, 53]
    assert announced(module.detector, header[:1].tobytes()) == JungfrauMetadata(daq_rec=99)


def test_frames_of_one_bunch_id_are_told_apart_by_their_number() -> None:
    module = OneModule()
    module.take(1, 7.0, 1, slice(0, 100))
    module.take(2, 7.0, 2)
    module.workspace.flush(0)
    assert module.workspace.take_events()["n_missing_packets"].tolist() == [28, 0]


@pytest.mark.parametrize("bunch_id", [float("nan"), float("inf"), -1.0, 2.0**60])
def test_a_bunch_id_that_is_no_id_is_malformed(bunch_id: float) -> None:
    module = OneModule()
    module.take(1, bunch_id, 1)
    assert module.workspace.totals()["bad_header"] == 128
    assert (module.slots == 0xEEEE).all()


def test_packets_of_one_frame_with_another_bunch_id_are_malformed() -> None:
    module = OneModule()
    module.take(1, 7.0, 1, slice(0, 100))
    module.take(1, 8.0, 2, slice(100, 128))
    module.workspace.flush(0)
    assert module.workspace.totals()["bad_header"] == 28
    assert module.workspace.take_events()["n_missing_packets"].tolist() == [28]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bit_depth": 32}, ["bit_depth", "32", "16"]),
        ({"n_modules": 2}, ["module_positions", "1024 x 1024"]),
        ({"module_positions": {"0": [0, 0, 1023, 510]}}, ["module_positions", "[0, 0, 1023, 510]"]),
    ],
)
def test_a_wrong_geometry_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        jungfrau.detector(config_of(**changes))
    assert [word for word in words if word not in str(caught.value)] == []
