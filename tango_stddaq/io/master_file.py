"""The master file: joins the writers' files to one NeXus file in the order of image ids."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from tango_stddaq import __version__
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import FileError
from tango_stddaq.io.image_file import METADATA, read_rows
from tango_stddaq.stats import Ledger


@dataclass(frozen=True, slots=True)
class StoredImages:
    """What lies in the writers' files, in the order of image ids.

    Attributes
    ----------
    rows
        (n,) `METADATA`.
    source, position
        (n,) int64: in which file, and at which index there.
    """

    files: tuple[Path, ...]
    rows: np.ndarray
    source: np.ndarray
    position: np.ndarray


def collect(files: Sequence[Path], detector_name: str) -> StoredImages:
    """Read what the writers' files hold.

    Raises
    ------
    FileError
        If one cannot be read back or its counts do not agree.
    """
    parts = [read_rows(path, detector_name) for path in files]
    rows = np.concatenate(parts) if parts else np.zeros(0, METADATA)
    source = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    position = np.concatenate([np.arange(len(part)) for part in parts] or [np.zeros(0, np.int64)])
    order = np.argsort(rows["image_id"], kind="stable")
    return StoredImages(tuple(files), rows[order], source[order], position[order])


def runs(source: np.ndarray, position: np.ndarray, which: int) -> list[tuple[int, int, int, int]]:
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
    found: list[tuple[int, int, int, int]] = []
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


def create(
    path: Path,
    config: DaqConfig,
    stored: StoredImages,
    ledger: Ledger,
    started: datetime,
    end_reason: str,
) -> None:
    """Write the master file; it must not exist.

    Parameters
    ----------
    stored
        From `collect`. The files must lie beside the master: it names them relative to itself.
    started
        Time of the start of the acquisition, with time zone.
    end_reason
        Why the acquisition ended.

    Raises
    ------
    FileError
        If it cannot be written.
    """
    try:
        with h5py.File(path, "x", libver=("v110", "v110")) as file:
            _fill(file, path, config, stored, ledger, started, end_reason)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error}") from error


def _fill(
    file: h5py.File,
    path: Path,
    config: DaqConfig,
    stored: StoredImages,
    ledger: Ledger,
    started: datetime,
    end_reason: str,
) -> None:
    entry = _group(file, "entry", "NXentry")
    file.attrs["default"] = "entry"
    file.attrs["creator"] = f"tango_stddaq {__version__}"
    entry.attrs["default"] = "data"
    entry["start_time"] = started.isoformat()
    entry["end_time"] = datetime.now(UTC).isoformat()
    entry["program_name"] = "tango_stddaq"
    entry["program_name"].attrs["version"] = __version__
    detector = _group(_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
    detector["local_name"] = config.detector_name
    detector["type"] = config.detector_type
    detector["bit_depth_readout"] = config.bit_depth
    detector["configuration"] = config.model_dump_json()
    sizes = config.sizes
    layout = h5py.VirtualLayout((len(stored.rows), *sizes.shape), sizes.dtype.numpy)
    for which, source_path in enumerate(stored.files):
        n_images = int(np.count_nonzero(stored.source == which))
        if n_images == 0:
            continue
        source = h5py.VirtualSource(
            source_path.name if source_path.parent == path.parent else str(source_path),
            f"{config.detector_name}/data",
            shape=(n_images, *sizes.shape),
        )
        for target, stride, position, length in runs(stored.source, stored.position, which):
            last = target + (length - 1) * stride + 1
            layout[target:last:stride] = source[position : position + length]
    detector.create_virtual_dataset("data", layout, fillvalue=0)
    detector["data"].attrs["units"] = "counts"
    detector["image_id"] = stored.rows["image_id"]
    detector["status"] = stored.rows["status"]
    detector["status"].attrs["values"] = "1 good_image, 2 missing_packets, 3 id_missmatch"
    data = _group(entry, "data", "NXdata")
    data.attrs["signal"] = "data"
    data["data"] = h5py.SoftLink("/entry/instrument/detector/data")
    data["image_id"] = h5py.SoftLink("/entry/instrument/detector/image_id")
    _fill_ledger(_group(entry, "ledger", "NXcollection"), ledger, end_reason)


def _fill_ledger(group: h5py.Group, ledger: Ledger, end_reason: str) -> None:
    group["end_reason"] = end_reason
    for name in ("requested", "expected", "complete", "incomplete", "lost"):
        group[name] = getattr(ledger, name)
    group["incomplete_ids"] = np.array(ledger.incomplete_ids.ids(), np.uint64)
    for reason, ids in ledger.lost_ids.items():
        if ids.count:
            group[f"lost_ids_{reason}"] = np.array(ids.ids(), np.uint64)


def _group(parent: h5py.Group, name: str, nexus_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nexus_class
    return group
