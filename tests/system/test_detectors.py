"""Every UDP detector: simulated packets over real sockets, to the file, each pixel against the truth."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.control.plan import plan
from tango_stddaq.detectors import jungfrau
from tango_stddaq.errors import ConfigError
from tango_stddaq.io.preflight import Request
from tango_stddaq.processing.module_sets import parse_modules
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tango_stddaq.stages.base import Stage
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import UdpReceiver
from tango_stddaq.stages.writer_driver import WriterDriver
from tests.conftest import EIGER_POSITIONS, free_udp_ports

pytestmark = pytest.mark.system

N_IMAGES = 8


def config_of(name: str, kind: str, height: int, width: int, n_modules: int, **more: Any) -> DaqConfig:
    return config_module.from_dict(
        {
            "detector_name": name,
            "detector_type": kind,
            "n_modules": n_modules,
            "bit_depth": 16,
            "image_pixel_height": height,
            "image_pixel_width": width,
            "start_udp_port": free_udp_ports(n_modules),
            "module_positions": {},
            "number_of_writers": 1,
            "ring_slots": 20,
            **more,
        }
    )


@contextmanager
def chain(config: DaqConfig, gains_file: str = "") -> Iterator[tuple[WriterDriver, UdpReceiver]]:
    driver, receiver = WriterDriver(config), UdpReceiver(config, gains_file=gains_file)
    stages: list[Stage] = [ModuleSync(config), FileWriter(config, 0), driver, receiver]
    try:
        for stage in stages:
            stage.start()
        yield driver, receiver
    finally:
        for stage in reversed(stages):
            stage.stop()


def acquire(
    config: DaqConfig, directory: Path, faults: Faults
) -> tuple[dict[int, np.ndarray], list[int], int]:
    """Return the images in the file, the incomplete ids of the ledger, and the missing packets."""
    with chain(config) as (driver, receiver):
        driver.begin(Request(str(directory), "run_", N_IMAGES))
        SimulatedDetector(config).run(N_IMAGES, 40, faults=faults)
        assert driver.wait_until_idle(20), driver.status
        assert (driver.ledger.expected, driver.ledger.lost) == (N_IMAGES, 0)
        with h5py.File(driver.last_master) as file:
            data = file["entry/data/data"][()]
            ids = file["entry/data/image_id"][()].tolist()
        missing = int(receiver.missing_per_module.sum())
        return dict(zip(ids, data, strict=True)), list(driver.ledger.incomplete_ids), missing


JUNGFRAU_2X2 = {
    str(m): [(m % 2) * 1030, (m // 2) * 520, (m % 2) * 1030 + 1023, (m // 2) * 520 + 511]
    for m in range(4)
}
SHAPES = [
    pytest.param("gigafrost", 2016, 2016, 8, {}, id="gigafrost-2016x2016"),
    pytest.param("gigafrost", 1008, 1008, 16, {}, id="gigafrost-1008x1008-16-connections"),
    pytest.param("gigafrost", 280, 528, 8, {}, id="gigafrost-528x280"),
    pytest.param("gigafrost", 128, 480, 16, {}, id="gigafrost-480x128-16-connections"),
    pytest.param("gigafrost", 4, 24, 8, {}, id="gigafrost-smallest"),
    pytest.param("gigafrost", 400, 600, 8, {}, id="gigafrost-padded-packets"),
    pytest.param("jungfrau-raw", 512, 1024, 1, {}, id="jungfrau-one-module"),
    pytest.param("jungfrau", 1024, 1024, 2, {}, id="jungfrau-stacked"),
    pytest.param(
        "jungfrau-raw", 1032, 2054, 4, {"module_positions": JUNGFRAU_2X2}, id="jungfrau-2x2-with-gaps"
    ),
    *[
        pytest.param(
            "eiger", 514, 1030, 4, {"module_positions": EIGER_POSITIONS, "bit_depth": bits},
            id=f"eiger-{bits}-bit",
        )
        for bits in (8, 16, 32)
    ],
    pytest.param(
        "eiger", 514, 1030, 4, {"module_positions": {m: EIGER_POSITIONS[m] for m in ("1", "2")}},
        id="eiger-two-of-four-modules",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "height", "width", "n_modules", "more"), SHAPES)
@pytest.mark.parametrize("drop_every", [0, 97])
def test_every_pixel_is_right_or_its_image_is_marked(
    detector_name: str,
    tmp_path: Path,
    kind: str,
    height: int,
    width: int,
    n_modules: int,
    more: dict[str, Any],
    drop_every: int,
) -> None:
    config = config_of(detector_name, kind, height, width, n_modules, **more)
    faults = Faults(drop_every)
    images, incomplete, n_missing = acquire(config, tmp_path, faults)
    truth = SimulatedDetector(config).truth
    damaged = sorted({image_id for image_id, _, _ in faults.dropped})
    assert incomplete == damaged
    # A frame of which nothing came is not the receiver's to count.
    per_frame = SimulatedDetector(config).detector.layout.packets_per_frame
    assert n_missing == (len(faults.dropped) if per_frame > 1 else 0)
    for image_id, image in images.items():
        expected = truth(image_id)
        if image_id not in damaged:
            assert np.array_equal(image, expected)
            continue
        differs = image != expected
        assert differs.any()
        assert not image[differs].any()  # lost pixels read 0, nothing else changed


def write_gain_maps(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Write gains and pedestals, each (3, 512, 1024) float32; returns them."""
    rng = np.random.default_rng(seed)
    shape = (3, jungfrau.HEIGHT, jungfrau.WIDTH)
    gains = rng.uniform(0.5, 2, shape).astype(np.float32)
    pedestals = rng.uniform(0, 100, shape).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["gains"], file["pedestals"] = gains, pedestals
    return gains, pedestals


def test_jungfrau_pixels_become_energies(detector_name: str, tmp_path: Path) -> None:
    maps = tmp_path / "maps.h5"
    gains, pedestals = write_gain_maps(maps, 3)
    config = config_of(detector_name, "jungfrau-converted", 512, 1024, 1, gains_file=str(maps))
    faults = Faults(500)
    images, incomplete, _ = acquire(config, tmp_path, faults)
    raw = SimulatedDetector(config).raw
    assert sorted(images) == list(range(1, N_IMAGES + 1))
    assert incomplete == sorted({image_id for image_id, _, _ in faults.dropped})
    for image_id, image in images.items():
        expected = (raw(image_id).astype(np.float32) - pedestals[0]) * gains[0]
        lost = np.isnan(image)
        assert lost.any() == (image_id in incomplete)
        assert np.array_equal(image[~lost], expected[~lost])


@pytest.mark.expects_errors
def test_gain_maps_are_changed_while_images_come(detector_name: str, tmp_path: Path) -> None:
    files = [tmp_path / "first.h5", tmp_path / "second.h5"]
    maps = [write_gain_maps(path, seed) for seed, path in enumerate(files)]
    config = config_of(detector_name, "jungfrau-converted", 512, 1024, 1)
    with chain(config, str(files[0])) as (driver, receiver):
        driver.begin(Request(str(tmp_path), "run_", 2 * N_IMAGES))
        simulator = SimulatedDetector(config)
        simulator.run(N_IMAGES, 40)
        wait_for(lambda: receiver.counters["frames"] == N_IMAGES)
        with pytest.raises(ConfigError, match=r"nothing\.h5"):
            receiver.load_gain_maps(str(tmp_path / "nothing.h5"))
        receiver.load_gain_maps(str(files[1]))
        simulator.run(N_IMAGES, 40, first_id=N_IMAGES + 1)
        assert driver.wait_until_idle(20), driver.status
        assert (driver.ledger.complete, driver.ledger.lost) == (2 * N_IMAGES, 0)
        with h5py.File(driver.last_master) as file:
            for at, image in enumerate(file["entry/data/data"]):
                gains, pedestals = maps[at // N_IMAGES]
                raw = simulator.raw(at + 1).astype(np.float32)
                assert np.array_equal(image, (raw - pedestals[0]) * gains[0])


def test_gain_maps_are_refused_where_nothing_is_converted(detector_name: str) -> None:
    receiver = UdpReceiver(config_of(detector_name, "jungfrau-raw", 512, 1024, 1))
    with pytest.raises(ConfigError, match="jungfrau-raw is not converted"):
        receiver.load_gain_maps("maps.h5")


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def eiger_9m_positions() -> dict[str, list[int]]:
    """72 half modules: 3 x 6 modules of four, with gaps, the lower halves upside down."""
    positions = {}
    for row in range(6):
        for column in range(3):
            x, y = column * 1038, row * 550
            upper, lower = (y, y + 255), (y + 513, y + 258)
            halves = [(x, upper), (x + 516, upper), (x, lower), (x + 516, lower)]
            for half, (x0, (y0, y1)) in enumerate(halves):
                positions[str(4 * (3 * row + column) + half)] = [x0, y0, x0 + 513, y1]
    return positions


def test_an_eiger_9m_in_a_handful_of_receivers(detector_name: str, tmp_path: Path) -> None:
    config = config_of(
        detector_name, "eiger", 3264, 3106, 72, module_positions=eiger_9m_positions(), ring_slots=8
    )
    receivers = [
        UdpReceiver(config, parse_modules(server.properties["Modules"][0]))
        for server in plan(config, tmp_path).stages
        if server.tango_class == "StdDaqUdpReceiver"
    ]
    assert [len(receiver.modules) for receiver in receivers] == [18] * 4
    driver = WriterDriver(config)
    stages: list[Stage] = [ModuleSync(config), FileWriter(config, 0), driver, *receivers]
    simulator = SimulatedDetector(config)
    try:
        for stage in stages:
            stage.start()
        driver.begin(Request(str(tmp_path), "run_", 3))
        simulator.run(3, 1)
        assert driver.wait_until_idle(20), driver.status
        assert (driver.ledger.complete, driver.ledger.lost) == (3, 0)
        with h5py.File(driver.last_master) as file:
            for at, image in enumerate(file["entry/data/data"]):
                assert np.array_equal(image, simulator.truth(at + 1))
    finally:
        for stage in reversed(stages):
            stage.stop()
