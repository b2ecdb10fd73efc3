"""Gain and pedestal maps of a Jungfrau, from HDF5 files, checked before they are used.

Either one file with `/gains` and `/pedestals` (the existing converter calls the latter `/gainsRMS`), or
two files that each have `/gains`, the second with the pedestals and an optional `/pixel_mask`, as PSI's
calibration files do. Maps are in module coordinates: (>= 3, 512, 1024) for one module, or the modules
stacked: (>= 3, n_modules * 512, 1024).
"""

from collections.abc import Sequence
from typing import Final

import h5py
import numpy as np

from tango_stddaq.detectors.jungfrau import HEIGHT, WIDTH
from tango_stddaq.errors import ConfigError

_STAGES: Final = 3
_MAX_MODULES: Final = 64


def load(gains_file: str, pedestals_file: str, modules: Sequence[int]) -> np.ndarray:
    """Read the maps of some modules.

    Parameters
    ----------
    gains_file, pedestals_file
        The second is "" if the first has both.
    modules
        Their numbers: positions in stacked maps.

    Returns
    -------
    np.ndarray
        (n, 2, 3, 512 * 1024) float32: pedestals, then gains, of the three stages. Masked pixels have
        the gain NaN.

    Raises
    ------
    ConfigError
        If a file or dataset is missing, of another shape, or not of numbers.
    """
    if not gains_file:
        raise ConfigError("the gain file: none is given; a converted Jungfrau needs one")
    gains = _read(gains_file, ("gains",), modules)
    if pedestals_file:
        pedestals = _read(pedestals_file, ("gains", "pedestals"), modules)
        gains[_read_mask(pedestals_file, modules)] = np.nan
    else:
        pedestals = _read(gains_file, ("pedestals", "gainsRMS"), modules)
    return np.ascontiguousarray(np.stack([pedestals, gains], axis=1), np.float32)


def _read(path: str, names: Sequence[str], modules: Sequence[int]) -> np.ndarray:
    """Return (n, 3, pixels of a module) float32."""
    try:
        with h5py.File(path, "r") as file:
            name = next((name for name in names if name in file), None)
            if name is None:
                raise ConfigError(f"{path}: has no dataset {' or '.join(names)}")
            shape = file[name].shape
            stacked = _check_shape(path, name, shape, modules)
            maps = file[name][:_STAGES].astype(np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not np.isfinite(maps).all():
        count = int(np.count_nonzero(~np.isfinite(maps)))
        raise ConfigError(f"{path}: {name} has {count} values that are no numbers (NaN or infinite)")
    return _cut(maps, modules, stacked).reshape(len(modules), _STAGES, -1)


def _read_mask(path: str, modules: Sequence[int]) -> np.ndarray:
    """Return (n, 3, pixels of a module) bool: pixels not to be used."""
    try:
        with h5py.File(path, "r") as file:
            if "pixel_mask" not in file:
                return np.zeros((len(modules), _STAGES, HEIGHT * WIDTH), bool)
            mask = file["pixel_mask"]
            stacked = _check_shape(path, "pixel_mask", (_STAGES, *mask.shape[-2:]), modules)
            values = np.asarray(mask[()] if mask.ndim == 2 else mask[0]) != 0
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    bad = _cut(np.broadcast_to(values, (_STAGES, *values.shape)), modules, stacked)
    return bad.reshape(len(modules), _STAGES, -1)


def _check_shape(path: str, name: str, shape: tuple[int, ...], modules: Sequence[int]) -> bool:
    """Return whether the maps are stacked."""
    n_stacked = max(modules) + 1
    good = len(shape) == 3 and shape[0] >= _STAGES and shape[2] == WIDTH and shape[1] % HEIGHT == 0
    n_found = shape[1] // HEIGHT if good else 0
    if not good or n_found > _MAX_MODULES or (n_found < n_stacked and not n_found == len(modules) == 1):
        raise ConfigError(
            f"{path}: {name} has the shape {shape}; allowed are ({_STAGES} or more, {HEIGHT}, {WIDTH}) "
            f"for one module and ({_STAGES} or more, {n_stacked * HEIGHT}, {WIDTH}) for {n_stacked}"
        )
    return n_found >= n_stacked


def _cut(maps: np.ndarray, modules: Sequence[int], stacked: bool) -> np.ndarray:
    places = modules if stacked else range(len(modules))
    return np.stack([maps[:, place * HEIGHT : (place + 1) * HEIGHT] for place in places])
