"""Every fault from the command line: what `stddaq simulate` says is what the receivers found."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tango_stddaq.config import DaqConfig
from tango_stddaq.io.preflight import Request
from tango_stddaq.sim.detector import SimulatedDetector
from tests.system.test_detectors import chain

from ..conftest import eiger_config
from .programs import refused, save, stddaq

pytestmark = pytest.mark.system

N_IMAGES = 10


def simulate(config: DaqConfig, directory: Path, *options: object) -> dict[str, Any]:
    path = save(config, directory / "config.json")
    result = stddaq("simulate", path, "--images", N_IMAGES, "--rate", 40, *options)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 1
    return dict(json.loads(lines[0]))


FAULTS: dict[str, tuple[int, list[object], int]] = {
    "none": (3, [], 0),
    "drop": (0, ["--drop", 0.01], 0),
    "drop-every": (3, ["--drop-every", 90], 0),
    "drop-pattern": (0, ["--drop-pattern", "3:*:0", "--drop-pattern", "/4:1,2:5-9"], 0),
    "duplicate": (3, ["--duplicate", 0.05, "--seed", 7], 0),
    "reorder": (0, ["--reorder", 0.1], 0),
    "corrupt": (3, ["--corrupt", 0.01], 0),
    "truncate": (0, ["--truncate", 0.01], 0),
    "dead-module": (3, ["--dead-module", 2, "--dead-after", 6], 4 * 64),
    "pause": (0, ["--pause-after", 4, "--pause", 0.4], 0),
    "without-gso": (3, ["--no-gso"], 0),
}
"""Cycle, options, and how many missing packets belong to frames of which nothing came."""


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_and_its_account(detector_name: str, tmp_path: Path, fault: str) -> None:
    config = eiger_config(detector_name, module_sync_queue_size=3)
    cycle, options, n_unseen = FAULTS[fault]
    with chain(config) as (driver, receiver):
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES))
        said = simulate(config, tmp_path, "--cycle", cycle, *options)
        assert driver.wait_until_idle(20), driver.status
        counters = receiver.counters
        with h5py.File(driver.last_master) as file:
            images = file["entry/data/data"][()]
    assert said["sent"] == N_IMAGES
    assert (driver.ledger.expected, driver.ledger.lost) == (N_IMAGES, 0)
    assert list(driver.ledger.incomplete_ids) == said["incomplete_ids"]
    assert counters["missing_packets"] == said["dropped_packets"] - n_unseen
    assert counters["duplicate"] == said["duplicated_packets"]
    assert counters["bad_header"] == said["corrupted_packets"]
    assert counters["bad_size"] == said["truncated_packets"]
    assert counters["packets"] == said["packets"]
    assert counters["restarts"] == counters["kernel_drops"] == 0
    what = {"duplicate": "duplicated_packets", "reorder": "reordered_packets",
            "corrupt": "corrupted_packets", "truncate": "truncated_packets"}  # fmt: skip
    happened = [name for name, key in what.items() if said[key]]
    assert happened == ([fault] if fault in what else [])
    assert bool(said["dropped_packets"]) == fault.startswith(("drop", "corrupt", "truncate", "dead"))
    assert said["seconds"] * said["images_per_s"] == pytest.approx(N_IMAGES, rel=0.01)
    assert said["seconds"] * said["bytes_per_s"] == pytest.approx(said["bytes"], rel=0.01)
    simulator = SimulatedDetector(config, cycle=cycle)
    for image_id, image in enumerate(images, start=1):
        differs = image != simulator.truth(image_id)
        assert differs.any() == (image_id in said["incomplete_ids"])
        assert not image[differs].any()


@pytest.mark.expects_errors
def test_a_restart_from_the_command_line(config: DaqConfig, tmp_path: Path) -> None:
    with chain(config) as (driver, receiver):
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES))
        said = simulate(
            config, tmp_path, "--first-id", 50, "--restart-after", 6, "--pause-after", 6, "--pause", 0.5
        )
        assert driver.wait_until_idle(20), driver.status
        receiver._tick()
        assert receiver.counters["restarts"] == 4
        assert receiver.counters["packets"] == said["packets"] == N_IMAGES * 4 * 64
        assert receiver.counters["late"] == receiver.counters["missing_packets"] == 0
    assert (driver.ledger.complete, driver.ledger.incomplete) == (6, 0)


BAD: list[tuple[list[object], tuple[str, ...]]] = [
    (["--drop-pattern", "1:2"], ("'1:2'", "IMAGES:MODULES:PACKETS")),
    (["--drop-pattern", "x:*:*"], ("'x'",)),
    (["--dead-module", 9], ("[9]", "[0, 1, 2, 3]")),
    (["--cycle", 10**9], ("cycle 1000000000", "MiB")),
    (["--record", "x", "--drop", 0.1], ("--record", "stddaq replay")),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=str)
def test_what_makes_no_sense_is_refused(
    config: DaqConfig, tmp_path: Path, options: list[object], words: tuple[str, ...]
) -> None:
    refused("simulate", save(config, tmp_path / "config.json"), *options, words=words)


def test_a_camera_has_no_packets_to_lose(detector_name: str, tmp_path: Path) -> None:
    config = eiger_config(
        detector_name, detector_type="pco", module_positions={}, n_modules=1,
        camera_address="tcp://127.0.0.1:9999",
    )  # fmt: skip
    path = save(config, tmp_path / "config.json")
    for options in (["--drop", 0.1], ["--cycle", 4], ["--record", "x"]):
        refused("simulate", path, *options, words=("pco", "whole images"))


def test_a_recording_of_a_cycle_holds_its_packets(config: DaqConfig, tmp_path: Path) -> None:
    path = save(config, tmp_path / "config.json")
    result = stddaq("simulate", path, "--images", 3, "--cycle", 2, "--record", tmp_path / "dump")
    assert result.returncode == 0, result.stderr
    simulator = SimulatedDetector(config, cycle=2)
    data = np.fromfile(tmp_path / "dump" / f"{config.start_udp_port + 1}.dat", np.uint8)
    packets = data.reshape(3, 64, 8 + 4144)[:, :, 8:]
    for at, image_id in enumerate((1, 2, 3)):
        expected = simulator.detector.packets(simulator.raw(image_id), image_id, 1)
        assert np.array_equal(packets[at], expected)
