"""A recording of the simulated detector, replayed, gives the simulator's images."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tango_stddaq.errors import FileError
from tango_stddaq.io.preflight import Request
from tango_stddaq.sim import replay
from tango_stddaq.sim.detector import SimulatedDetector
from tests.system.test_detectors import chain, config_of

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("kind", "height", "width", "n_modules"),
    [("jungfrau-raw", 512, 1024, 1), ("gigafrost", 400, 600, 16)],
)
def test_what_was_recorded_is_what_is_replayed(
    detector_name: str, tmp_path: Path, kind: str, height: int, width: int, n_modules: int
) -> None:
    config = config_of(detector_name, kind, height, width, n_modules)
    simulator = SimulatedDetector(config)
    simulator.record(tmp_path / "recording", 6, first_id=40)
    with pytest.raises(FileError, match="exists"):
        simulator.record(tmp_path / "recording", 1)
    recording = replay.load(tmp_path / "recording", config)
    assert recording.image_ids == list(range(40, 46))
    with chain(config) as (driver, _):
        driver.begin(Request(str(tmp_path), "run_", 6))
        replay.replay(recording, config, 30)
        assert driver.wait_until_idle(20), driver.status
        assert (driver.ledger.complete, driver.ledger.lost) == (6, 0)
        with h5py.File(driver.last_master) as file:
            for image_id, image in enumerate(file["entry/data/data"], start=40):
                assert np.array_equal(image, simulator.truth(image_id))
