"""Each fault of the network ends in one counter of the receiver, and the ledger is exact."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tango_stddaq.config import DaqConfig
from tango_stddaq.io.preflight import Request
from tango_stddaq.sim.course import Course
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.pattern import PacketPattern
from tests.conftest import EIGER_POSITIONS
from tests.system.masks import check_masks
from tests.system.test_detectors import chain, config_of, wait_for

pytestmark = pytest.mark.system

N_IMAGES = 12
DETECTORS = {
    "gigafrost": ("gigafrost", 400, 600, 8, {}),
    "jungfrau": ("jungfrau-raw", 512, 1024, 1, {}),
    "eiger": ("eiger", 514, 1030, 4, {"module_positions": EIGER_POSITIONS}),
}


@pytest.fixture(params=DETECTORS)
def daq(request: pytest.FixtureRequest, detector_name: str) -> DaqConfig:
    kind, height, width, n_modules, more = DETECTORS[request.param]
    return config_of(detector_name, kind, height, width, n_modules, **more)


@pytest.mark.parametrize(
    "fault",
    [
        {"drop": 0.01},
        {"duplicate": 0.05},
        {"reorder": 0.2},
        {"corrupt": 0.01},
        {"truncate": 0.01},
        {"drop": 0.005, "duplicate": 0.02, "reorder": 0.1, "corrupt": 0.005, "truncate": 0.005},
        {"drop_patterns": (PacketPattern.parse("3:*:0"), PacketPattern.parse("/4:0:1-2"))},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("cycle", [0, 4])
def test_the_account_of_a_fault_is_exact(
    daq: DaqConfig, tmp_path: Path, fault: dict[str, Any], cycle: int
) -> None:
    faults = Faults(**fault)
    simulator = SimulatedDetector(daq, cycle=cycle)
    with chain(daq) as (driver, receiver):
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES))
        simulator.run(N_IMAGES, 40, faults=faults)
        assert driver.wait_until_idle(20), driver.status
        check_masks(daq, range(1, N_IMAGES + 1), faults)
        counters = receiver.counters
        images = h5py.File(driver.last_master)["entry/data/data"][()]
    damaged = sorted({image_id for image_id, _, _ in faults.dropped})
    assert (driver.ledger.expected, driver.ledger.lost) == (N_IMAGES, 0)
    assert list(driver.ledger.incomplete_ids) == damaged
    assert counters["missing_packets"] == len(faults.dropped)
    assert counters["bad_header"] == faults.n_corrupted
    assert counters["bad_size"] == faults.n_truncated
    assert counters["duplicate"] == faults.n_duplicated
    assert counters["late"] == counters["kernel_drops"] == counters["restarts"] == 0
    for image_id, image in enumerate(images, start=1):
        differs = image != simulator.truth(image_id)
        assert differs.any() == (image_id in damaged)
        assert not image[differs].any()


def test_a_dead_module_is_missing_in_every_image(detector_name: str, tmp_path: Path) -> None:
    daq = config_of(detector_name, "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS,
                    module_sync_queue_size=3)  # fmt: skip
    simulator = SimulatedDetector(daq)
    with chain(daq) as (driver, _):
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES))
        faults = simulator.run(N_IMAGES, 40, faults=Faults(dead_modules=frozenset({2})))
        assert driver.wait_until_idle(20), driver.status
        check_masks(daq, range(1, N_IMAGES + 1), faults)
        images = h5py.File(driver.last_master)["entry/data/data"][()]
    assert (driver.ledger.incomplete, driver.ledger.lost) == (N_IMAGES, 0)
    for image_id, image in enumerate(images, start=1):
        expected = simulator.truth(image_id)
        expected[258:514, 0:514] = 0
        assert np.array_equal(image, expected)


def test_a_module_that_dies_in_the_middle(detector_name: str, tmp_path: Path) -> None:
    daq = config_of(detector_name, "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS,
                    module_sync_queue_size=3)  # fmt: skip
    faults = Faults(dead_modules=frozenset({0}), dead_after=5)
    simulator = SimulatedDetector(daq, cycle=4)
    with chain(daq) as (driver, _):
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES))
        simulator.run(N_IMAGES, 40, faults=faults)
        assert driver.wait_until_idle(20), driver.status
        images = h5py.File(driver.last_master)["entry/data/data"][()]
    assert list(driver.ledger.incomplete_ids) == list(range(6, N_IMAGES + 1))
    assert (driver.ledger.complete, driver.ledger.lost) == (5, 0)
    assert {(image_id, module) for image_id, module, _ in faults.dropped} == {
        (image_id, 0) for image_id in range(6, N_IMAGES + 1)
    }
    for image_id, image in enumerate(images, start=1):
        expected = simulator.truth(image_id)
        if image_id > 5:
            expected[0:256, 0:514] = 0
        assert np.array_equal(image, expected)


def test_a_pause_loses_nothing(detector_name: str, tmp_path: Path) -> None:
    daq = config_of(detector_name, "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS)
    simulator = SimulatedDetector(daq, cycle=5)
    with chain(daq) as (driver, receiver):
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES))
        simulator.run(N_IMAGES, 40, course=Course(pause_after=5, pause_s=0.5))
        assert driver.wait_until_idle(20), driver.status
        assert (driver.ledger.complete, driver.ledger.lost) == (N_IMAGES, 0)
        assert receiver.counters["restarts"] == 0


@pytest.mark.expects_errors
def test_ids_that_start_again_in_the_middle(detector_name: str, tmp_path: Path) -> None:
    daq = config_of(detector_name, "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS)
    simulator = SimulatedDetector(daq, cycle=4)
    with chain(daq) as (driver, receiver):
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES))
        course = Course(pause_after=7, pause_s=0.5, restart_after=7)
        simulator.run(N_IMAGES, 40, first_id=100, course=course)
        assert driver.wait_until_idle(20), driver.status
        assert "went back from 106 to 100" in driver.reason
        assert (driver.ledger.complete, driver.ledger.incomplete) == (7, 0)
        wait_for(lambda: receiver.counters["packets"] == simulator.sent.packets)
        assert receiver.counters["restarts"] == 4
        assert receiver.counters["missing_packets"] == receiver.counters["late"] == 0
        driver.begin(Request(str(tmp_path), "again_", 3))
        simulator.run(3, 40, first_id=200)
        assert driver.wait_until_idle(20), driver.status
        assert (driver.ledger.complete, driver.ledger.lost) == (3, 0)


def test_a_cycle_at_a_high_rate_is_right_in_every_pixel(daq: DaqConfig, tmp_path: Path) -> None:
    simulator = SimulatedDetector(daq, cycle=4)
    with chain(daq) as (driver, receiver):
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES))
        simulator.run(N_IMAGES, 200)
        assert driver.wait_until_idle(20), driver.status
        assert receiver.counters["kernel_drops"] == 0
        images = h5py.File(driver.last_master)["entry/data/data"][()]
    assert (driver.ledger.complete, driver.ledger.lost) == (N_IMAGES, 0)
    for image_id, image in enumerate(images, start=1):
        assert np.array_equal(image, simulator.truth(image_id))


def test_a_detector_that_counts_from_the_start_again(detector_name: str, tmp_path: Path) -> None:
    daq = config_of(detector_name, "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS)
    simulator = SimulatedDetector(daq)
    with chain(daq) as (driver, receiver):
        for number, first_id in enumerate((100, 1, 3, 3)):
            driver.begin(Request(str(tmp_path), f"run{number}_", 5))
            simulator.run(5, 40, first_id=first_id)
            assert driver.wait_until_idle(20), driver.status
            assert (driver.ledger.complete, driver.ledger.lost) == (5, 0)
            with h5py.File(driver.last_master) as file:
                assert file["entry/data/image_id"][0] == first_id
                assert np.array_equal(file["entry/data/data"][4], simulator.truth(first_id + 4))
        receiver._tick()
        assert receiver.counters["restarts"] == 3 * 4
