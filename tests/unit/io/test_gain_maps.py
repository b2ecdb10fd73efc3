"""Gain maps: both kinds of files, and everything that is wrong with one named."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tango_stddaq.errors import ConfigError
from tango_stddaq.io import gain_maps

ONE = (3, 512, 1024)


def write(path: Path, **datasets: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return str(path)


def maps(shape: tuple[int, ...], first: float) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape) + first


@pytest.mark.parametrize("name", ["pedestals", "gainsRMS"])
def test_one_file_with_both(tmp_path: Path, name: str) -> None:
    gains, pedestals = maps(ONE, 1), maps(ONE, 5)
    found = gain_maps.load(write(tmp_path / "a.h5", gains=gains, **{name: pedestals}), "", [0])
    assert (found.shape, found.dtype) == ((1, 2, 3, 512 * 1024), np.float32)
    assert np.array_equal(found[0, 0], pedestals.reshape(3, -1).astype(np.float32))
    assert np.array_equal(found[0, 1], gains.reshape(3, -1).astype(np.float32))


def test_two_files_with_a_pixel_mask(tmp_path: Path) -> None:
    mask = np.zeros((512, 1024), np.uint8)
    mask[3, 4] = 1
    gains = write(tmp_path / "g.h5", gains=maps((4, 512, 1024), 1))
    pedestals = write(tmp_path / "p.h5", gains=maps(ONE, 2), pixel_mask=mask)
    found = gain_maps.load(gains, pedestals, [5])
    assert np.isnan(found[0, 1]).sum() == 3
    assert np.isnan(found[0, 1, :, 3 * 1024 + 4]).all()


def test_stacked_modules_are_taken_by_their_numbers(tmp_path: Path) -> None:
    gains = maps((3, 3 * 512, 1024), 0)
    path = write(tmp_path / "a.h5", gains=gains, pedestals=gains)
    found = gain_maps.load(path, "", [2, 0])
    assert np.array_equal(found[0, 1, 0], gains[0, 1024:].reshape(-1).astype(np.float32))
    assert np.array_equal(found[1, 1, 0], gains[0, :512].reshape(-1).astype(np.float32))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    good = maps(ONE, 1)
    hole = good.copy()
    hole[1, 2, 3] = np.nan
    for datasets, words in (
        ({"gains": good}, "no dataset pedestals or gainsRMS"),
        ({"pedestals": good}, "no dataset gains"),
        ({"gains": good[:2], "pedestals": good}, r"gains has the shape \(2, 512, 1024\)"),
        ({"gains": good[:, :100], "pedestals": good}, r"\(3, 100, 1024\)"),
        ({"gains": hole, "pedestals": good}, "gains has 1 values that are no numbers"),
    ):
        path = write(tmp_path / "a.h5", **datasets)
        with pytest.raises(ConfigError, match=words):
            gain_maps.load(path, "", [0])
    with pytest.raises(ConfigError, match="none is given"):
        gain_maps.load("", "", [0])
    with pytest.raises(ConfigError, match="cannot be read"):
        gain_maps.load(str(tmp_path / "nothing.h5"), "", [0])
    with pytest.raises(ConfigError, match=r"\(3 or more, 1024, 1024\) for 2"):
        gain_maps.load(write(tmp_path / "b.h5", gains=good, pedestals=good), "", [0, 1])
