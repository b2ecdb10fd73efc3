"""From a simulated detector through a compressor to files, read by h5py and hdf5plugin alone."""

import json
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401, registers the filters
import numpy as np
import pytest

from tango_stddaq import config as config_module
from tango_stddaq.sim.detector import SimulatedDetector

from .programs import stddaq

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(240),
]

N_IMAGES = 40


@pytest.mark.parametrize(
    ("method", "options"), [("h5bitshuffle_lz4", ("32008", (0, 2))), ("blosc2", ("32026", (5, 2, 1)))]
)
def test_files_hold_what_the_detector_sent(
    tmp_path: Path, method: str, options: tuple[str, tuple[int, ...]]
) -> None:
    arguments = ["--compression", method, "--images", N_IMAGES, "--rate", 40, "--output", tmp_path]
    result = stddaq("demo", "--json", *arguments, timeout_s=200)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["complete"], said["incomplete"], said["lost"]) == (N_IMAGES, 0, 0)
    config = config_module.load(tmp_path / "demo.json")
    detector = SimulatedDetector(config)
    with h5py.File(said["master"]) as file:
        data = file["entry/data"]
        image_ids = data["image_id"][()].tolist()
        assert image_ids == list(range(1, N_IMAGES + 1))
        for at, image_id in enumerate(image_ids):
            np.testing.assert_array_equal(data["data"][at], detector.truth(image_id))
    for path in said["files"]:
        with h5py.File(path) as file:
            images = file[f"{config.detector_name}/data"]
            ((number, values),) = images._filters.items()
            assert number == options[0]
            assert options[1] == (values[-2:] if method == "h5bitshuffle_lz4" else values[4:7])
            assert images.chunks == (1, *config.sizes.shape)
            assert images.id.get_storage_size() < images.size * images.dtype.itemsize / 2
