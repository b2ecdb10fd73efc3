"""The simulated detector: its truth is what its packets carry."""

import json

import numpy as np
import pytest

from tango_stddaq.sim.detector import SimulatedDetector, report, visible_pixels
from tango_stddaq.sim.faults import Faults
from tests.conftest import eiger_config


@pytest.mark.parametrize("bit_depth", [8, 16, 32])
def test_the_truth_is_the_picture_without_the_gaps(bit_depth: int) -> None:
    config = eiger_config("T", bit_depth=bit_depth)
    simulated = SimulatedDetector(config)
    truth = simulated.truth(5)
    assert (truth.shape, truth.dtype) == ((514, 1030), config.sizes.dtype.numpy)
    assert not truth[256:258].any()
    for column in (256, 514, 772):
        assert not truth[:, column : column + 2].any()
    slot = np.zeros(config.sizes.slot_bytes, np.uint8)
    detector = simulated.detector
    for module, offsets in zip(detector.modules, detector.placement.offsets, strict=True):
        payload = detector.packets(truth, 5, module)[:, 48:]
        places = offsets.reshape(-1, 1) + np.arange(detector.placement.piece_bytes)
        slot[places] = payload.reshape(places.shape)
    assert slot.tobytes() == truth.tobytes()


def test_only_configured_modules_are_visible() -> None:
    config = eiger_config("T", module_positions={"3": [516, 513, 1029, 258]})
    seen = visible_pixels(SimulatedDetector(config).detector, config)
    assert seen.sum() == 512 * 256
    assert seen[258:514, 516:772].all()
    assert seen[258:514, 774:1030].all()


def test_the_report_is_one_line_of_json_with_each_incomplete_image_once() -> None:
    line = report(10, Faults(dropped=[(7, 0, 1), (3, 2, 5), (7, 1, 0)]))
    assert "\n" not in line
    found = json.loads(line)
    assert (found["sent"], found["dropped_packets"], found["incomplete_ids"]) == (10, 3, [3, 7])
