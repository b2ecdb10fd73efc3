"""Virtual datasets that show the images of several files as one: by exact runs, or while they grow."""

import sys
from collections.abc import Sequence
from typing import Any, Final

import h5py
import numpy as np

MAX_RUNS: Final = 4000
"""HDF5 takes about 30 kB of memory for each run of images that it maps, whoever opens the file."""
_ALL: Final = h5py.h5s.UNLIMITED

Run = tuple[int, int, int, int]
"""First target, stride in the target, first position in the file, length."""


def runs(source: np.ndarray, position: np.ndarray, which: int) -> list[Run]:
    """Cut the images of one file into runs with a constant stride.

    Returns
    -------
    list
        (first target, stride in the target, first position in the file, length); positions within a
        run are consecutive.
    """
    targets = np.flatnonzero(source == which)
    steps = np.diff(targets)
    # A run may not go from an image to the next across a jump, nor on where the stride changes.
    jumps = np.flatnonzero(np.diff(position[targets]) != 1)
    changes = np.flatnonzero(np.diff(steps)) + 1
    found: list[Run] = []
    start = 0
    while start < targets.size:
        last = min(_first_from(jumps, start), _first_from(changes, start + 1), targets.size - 1)
        stride = int(steps[start]) if last > start else 1
        found.append((int(targets[start]), stride, int(position[targets[start]]), last - start + 1))
        start = last + 1
    return found


def _first_from(places: np.ndarray, start: int) -> int:
    """Return the first of the increasing `places` that is not below `start`."""
    at = int(np.searchsorted(places, start))
    return int(places[at]) if at < places.size else sys.maxsize


class RunMap:
    """Gathers the runs of all files block by block, joining those that go on in the next block.

    Attributes
    ----------
    runs
        For each file; none where they are too many.
    n_images
        Over all files.
    too_many
        Whether a virtual dataset of them would be a burden to whoever opens it.
    """

    def __init__(self, n_files: int) -> None:
        self.runs: list[list[Run]] = [[] for _ in range(n_files)]
        self.n_images = 0
        self.too_many = False

    def add(self, source: np.ndarray, position: np.ndarray) -> None:
        """Add the next images: from which file each comes, and from which place there."""
        for which, found in enumerate(self.runs if not self.too_many else ()):
            for target, stride, first, length in runs(source, position, which):
                new = (self.n_images + target, stride, first, length)
                if not (found and _joined(found, new)):
                    found.append(new)
        self.n_images += len(source)
        if sum(map(len, self.runs)) > MAX_RUNS:
            self.too_many = True
            self.runs = [[] for _ in self.runs]

    def one_after_the_other(self, counts: Sequence[int]) -> list[list[Run]]:
        """Return one run for each file: its images as they lie, behind those of the file before."""
        starts = np.cumsum([0, *counts]).tolist()
        return [
            [(start, 1, 0, count)] if count else []
            for start, count in zip(starts[:-1], counts, strict=True)
        ]


def _joined(found: list[Run], new: Run) -> bool:
    """Make the last run longer by `new`, if it goes on in step; returns whether it does."""
    target, stride, first, length = found[-1]
    gap = new[0] - (target + (length - 1) * stride)
    if new[2] != first + length or (length > 1 and gap != stride) or (new[3] > 1 and gap != new[1]):
        return False
    found[-1] = (target, gap, first, length + new[3])
    return True


def create(
    group: Any,
    name: str,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    mapping: list[tuple[str, str, list[Run]]],
) -> None:
    """Create a virtual dataset of images.

    Parameters
    ----------
    shape
        (n, height, width).
    mapping
        For each file its name as seen from this one, the dataset there, and the runs of its images.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_fill_value(np.zeros(1, dtype))
    target = h5py.h5s.create_simple(shape)
    rest = shape[1:]
    for file_name, path, found in mapping:
        n_images = sum(length for *_, length in found)
        if not n_images:
            continue
        source = h5py.h5s.create_simple((max(first + length for *_, first, length in found), *rest))
        for at, stride, first, length in found:
            target.select_hyperslab((at, 0, 0), (length, 1, 1), (stride, 1, 1), (1, *rest))
            source.select_hyperslab((first, 0, 0), (length, 1, 1), None, (1, *rest))
            properties.set_virtual(target, file_name.encode(), path.encode(), source)
    kind = h5py.h5t.py_create(dtype)
    if not any(found for *_, found in mapping):  # a virtual dataset needs a source
        group.create_dataset(name, shape, dtype)
        return
    h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), properties)


def create_growing(
    group: Any,
    name: str,
    rest: tuple[int, ...],
    dtype: np.dtype,
    sources: Sequence[tuple[str, str]],
    fill: np.ndarray | None = None,
) -> None:
    """Create a virtual dataset that grows with its files, which are filled in turn.

    Parameters
    ----------
    rest
        Shape of one row: (height, width) or ().
    sources
        For each file its name as seen from this one, and the dataset there. Row k of the whole is row
        k // n of file k % n.
    fill
        (1,) of `dtype`: what a reader sees where a file is behind the others.
    """
    n = len(sources)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if fill is not None:
        properties.set_fill_value(fill)
    ones, zeros = (1,) * len(rest), (0,) * len(rest)
    space = h5py.h5s.create_simple((0, *rest), (_ALL, *rest))
    source = h5py.h5s.create_simple((0, *rest), (_ALL, *rest))
    source.select_hyperslab((0, *zeros), (_ALL, *ones), (1, *ones), (1, *rest))
    for which, (file_name, path) in enumerate(sources):
        target = h5py.h5s.create_simple((0, *rest), (_ALL, *rest))
        target.select_hyperslab((which, *zeros), (_ALL, *ones), (n, *ones), (1, *rest))
        properties.set_virtual(target, file_name.encode(), path.encode(), source)
    kind = h5py.h5t.py_create(dtype, logical=True)
    h5py.h5d.create(group.id, name.encode(), kind, space, properties)
