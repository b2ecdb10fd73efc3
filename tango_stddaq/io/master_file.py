"""The master file: one NeXus file that shows the images of all writers in the order of their ids.

While images are recorded it is a virtual dataset that grows with the writers' files (`begin`). At the
end another one takes its place, exact image by image, with the ledger (`create`). docs/files.md has the
tree.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from tango_stddaq import __version__
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import FileError
from tango_stddaq.io import hdf5_output, virtual_images
from tango_stddaq.io.creation import FileRules, new_file
from tango_stddaq.io.rows import LOST, METADATA, ROWS_PER_CHUNK, STATUS_VALUES, UNITS
from tango_stddaq.io.stored_images import (
    Block,
    IdColumn,
    StoredFile,
    blocks_of,
    merged,
    one_after_the_other,
)
from tango_stddaq.io.virtual_images import RunMap
from tango_stddaq.stats import Ledger

_DETECTOR: Final = "/entry/instrument/detector"
_NOT_THERE_YET: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Subject:
    """What the images are of.

    Attributes
    ----------
    config
        Configuration of the acquisition; None where files are joined by hand.
    started
        Start of the acquisition, with time zone; None if it is not known.
    """

    detector_name: str
    shape: tuple[int, int]
    dtype: np.dtype
    config: DaqConfig | None = None
    started: datetime | None = None

    @classmethod
    def of(cls, config: DaqConfig, started: datetime | None = None) -> "Subject":
        """Return what a configuration says."""
        sizes = config.sizes
        return cls(config.detector_name, sizes.shape, sizes.dtype.numpy, config, started)


def begin(path: Path, subject: Subject, files: Sequence[Path], rules: FileRules) -> None:
    """Write the master file of an acquisition that starts: it shows what is there whenever it is read.

    Parameters
    ----------
    files
        Of the writers, which take images in turn. They need not exist yet.

    Raises
    ------
    FileError
        If it cannot be written.
    """
    with new_file(path, rules) as place:
        with hdf5_output.created(place, 0) as file:
            detector = _skeleton(file, subject)
            file["entry"].attrs["state"] = "acquiring"
            names = [_seen_from(path, source) for source in files]
            group = subject.detector_name
            virtual_images.create_growing(
                detector,
                "data",
                subject.shape,
                subject.dtype,
                [(name, f"{group}/data") for name in names],
            )
            virtual_images.create_growing(
                detector,
                "image_id",
                (),
                np.dtype("<u8"),
                [(name, f"{group}/image_id") for name in names],
                np.array([_NOT_THERE_YET], "<u8"),
            )
            virtual_images.create_growing(
                detector,
                "metadata",
                (),
                METADATA,
                [(name, f"{group}/metadata") for name in names],
                np.array([(_NOT_THERE_YET, 0)], METADATA),
            )
            _link_data(file, ("image_id", "metadata"))
        place.publish()


def create(
    path: Path,
    subject: Subject,
    files: Sequence[StoredFile],
    ledger: Ledger | None = None,
    end_reason: str = "",
    rules: FileRules | None = None,
) -> None:
    """Write the master file of an acquisition that is over.

    Parameters
    ----------
    files
        Of the writers. They must lie beside the master: it names them relative to itself.
    ledger
        None where there is none.
    end_reason
        Why the acquisition ended.

    Raises
    ------
    FileError
        If it cannot be written.
    """
    try:
        with new_file(path, rules or FileRules()) as place:
            with hdf5_output.created(place, sum(map(_rows_bytes, files))) as file:
                detector = _skeleton(file, subject)
                file["entry/end_time"] = datetime.now(UTC).isoformat()
                file["entry"].attrs["state"] = "complete"
                _fill(detector, path, subject, files)
                _fill_masks(detector, files)
                if ledger is not None:
                    _fill_ledger(_group(file["entry"], "ledger", "NXcollection"), ledger, end_reason)
                _link_data(file, ("image_id", "status"))
            place.publish()
    except KeyError as error:
        raise FileError(f"{path}: cannot be written: {error}") from error


def _rows_bytes(file: StoredFile) -> int:
    """Return how much a master file takes over from a writer's file: all but the pixels."""
    per_image = sum(
        rows.dtype.itemsize for name in ("metadata", "details") if (rows := file.rows(name)) is not None
    )
    masks = file.rows("missing_packets")
    return file.n_images * per_image + (len(masks) * masks.dtype.itemsize if masks is not None else 0)


def _seen_from(master: Path, source: Path) -> str:
    return source.name if source.parent == master.parent else str(source)


def _skeleton(file: Any, subject: Subject) -> Any:
    """Create what does not depend on the images; returns the detector's group."""
    file.attrs["default"] = "entry"
    file.attrs["creator"] = f"tango_stddaq {__version__}"
    file.attrs["NX_class"] = "NXroot"
    file.attrs["file_time"] = datetime.now(UTC).isoformat()
    entry = _group(file, "entry", "NXentry")
    entry.attrs["default"] = "data"
    if subject.started is not None:
        entry["start_time"] = subject.started.isoformat()
    entry["program_name"] = "tango_stddaq"
    entry["program_name"].attrs["version"] = __version__
    detector = _group(_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
    detector["local_name"] = subject.detector_name
    if subject.config is not None:
        detector["type"] = subject.config.detector_type
        detector["bit_depth_readout"] = subject.config.bit_depth
        detector["configuration"] = subject.config.model_dump_json()
    return detector


def _link_data(file: Any, names: Sequence[str]) -> None:
    """Add the group that viewers open first."""
    file[f"{_DETECTOR}/data"].attrs["units"] = "counts"
    data = _group(file["entry"], "data", "NXdata")
    data.attrs["signal"] = "data"
    for name in ("data", *names):
        data[name] = h5py.SoftLink(f"{_DETECTOR}/{name}")


def _fill(detector: Any, path: Path, subject: Subject, files: Sequence[StoredFile]) -> None:
    """Write all rows in the order of ids, and the images as runs of the files."""
    run_map = RunMap(len(files))
    for block in blocks_of(files):
        run_map.add(block.source, block.position)
    found, blocks = run_map.runs, blocks_of(files)
    if run_map.too_many:
        counts = [file.n_images for file in files]
        found, blocks = run_map.one_after_the_other(counts), one_after_the_other(counts)
        detector.attrs["order"] = "file by file: there are too many gaps for the order of image ids"
    _fill_columns(detector, files, blocks)
    mapping = [
        (_seen_from(path, file.path), f"{file.detector_name}/data", runs)
        for file, runs in zip(files, found, strict=True)
    ]
    shape = (run_map.n_images, *subject.shape)
    virtual_images.create(detector, "data", shape, subject.dtype, mapping)


def _fill_columns(detector: Any, files: Sequence[StoredFile], blocks: Iterable[Block]) -> None:
    metadata = [file.metadata for file in files]
    details = [file.rows("details") for file in files]
    has_details = (
        bool(files) and len({rows.dtype if rows is not None else None for rows in details}) == 1
    )
    columns = _Columns(detector)
    for block in blocks:
        for column in (metadata, details) if has_details and details[0] is not None else (metadata,):
            rows = block.column(column)
            for name in rows.dtype.names or ():
                columns.append(name, rows[name])
    columns.create_missing()
    detector["status"].attrs["values"] = STATUS_VALUES


class _Columns:
    """Datasets of one number for each image, which grow block by block."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def append(self, name: str, values: np.ndarray) -> None:
        if name not in self._group:
            self._group.create_dataset(
                name, (0,), values.dtype, maxshape=(None,), chunks=(ROWS_PER_CHUNK,),
                **({"compression": "gzip"} if values.dtype.kind == "S" else {}),
            )  # fmt: skip
            if name in UNITS:
                self._group[name].attrs["units"] = UNITS[name]
        dataset = self._group[name]
        start = len(dataset)
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values

    def create_missing(self) -> None:
        """Create the two that every master has, where there were no images."""
        for name in ("image_id", "status"):
            self.append(name, np.zeros(0, "<u8"))


def _fill_masks(detector: Any, files: Sequence[StoredFile]) -> None:
    """Gather the masks of incomplete images of all files in the order of ids."""
    rows = [masks for file in files if (masks := file.rows("missing_packets")) is not None]
    rows = [part for part in rows if len(part)]
    if len({part.dtype for part in rows}) != 1:
        return
    columns = _Columns(detector)
    for block in merged([(IdColumn(part), len(part)) for part in rows]):
        columns.append("missing_packets", block.column(rows))


def _fill_ledger(group: Any, ledger: Ledger, end_reason: str) -> None:
    group["end_reason"] = end_reason
    for name in ("requested", "expected", "complete", "incomplete", "lost"):
        group[name] = getattr(ledger, name)
    group["incomplete_ids"] = np.array(ledger.incomplete_ids.ids(), np.uint64)
    for reason, ids in ledger.lost_ids.items():
        if ids.count:
            group[f"lost_ids_{reason}"] = np.array(ids.ids(), np.uint64)
    group["incomplete_ranges"] = np.array(
        [(first, last, b"incomplete") for first, last in ledger.incomplete_ids.ranges()], LOST
    )
    group["lost_ranges"] = np.array(
        sorted(
            (first, last, reason.encode())
            for reason, ids in ledger.lost_ids.items()
            for first, last in ids.ranges()
        ),
        LOST,
    )
    lists = [ledger.incomplete_ids, *ledger.lost_ids.values()]
    group["lists_are_complete"] = not any(ids.truncated for ids in lists)


def _group(parent: Any, name: str, nexus_class: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nexus_class
    return group


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of the same name; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
