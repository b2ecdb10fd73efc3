"""Read what writers' files hold, also those of killed writers, and put it in the order of image ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h5py
import hdf5plugin  # noqa: F401, its filters are found from now on
import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.errors import FileError
from tango_stddaq.io.creation import reason_of
from tango_stddaq.io.growing_file import is_closed
from tango_stddaq.io.rows import LOST

BLOCK_ROWS: Final = 65536
"""Rows of each file that are in memory at a time."""


class StoredFile(Closing):
    """One writer's file, open for reading.

    Parameters
    ----------
    detector_name
        Name of its group; "" for the one that is there.

    Raises
    ------
    FileError
        If it cannot be read, or its counts do not agree.

    Attributes
    ----------
    n_images
        Images that have pixels, metadata and, in files of ours, ids.
    closed
        Whether its writer came to the end of it.
    """

    def __init__(self, path: Path, detector_name: str = "") -> None:
        self.path = path
        try:
            self.closed = _is_closed(path)
            self._file = h5py.File(path, "r", locking=False)
        except (OSError, FileError) as error:
            raise FileError(f"{path}: cannot be read back: {reason_of(error)}") from error
        try:
            self.detector_name = detector_name or _only_group(self._file)
            self.group = self._file[self.detector_name]
            self.data = self.group["data"]
            self.metadata = self.group["metadata"]
            ids = self.rows("image_id")  # our own files have them; stored last
            n_ids = len(self.metadata) if ids is None else len(ids)
            self.n_images = min(len(self.metadata), n_ids)
            self._check()
        except (OSError, KeyError, FileError) as error:
            self._file.close()
            raise FileError(f"{path}: cannot be read back: {reason_of(error)}") from error

    def _check(self) -> None:
        """Compare pixels and metadata.

        Raises
        ------
        FileError
            If they do not agree.
        """
        n_pixels = self.data.shape[0]
        # Of a file that was not closed a few images may have come without their metadata.
        if n_pixels < self.n_images or (self.closed and n_pixels != self.n_images):
            raise FileError(f"{n_pixels} images but {self.n_images} rows of metadata")
        for name in ("image_id", "details"):
            rows = self.rows(name)
            if rows is not None and (
                len(rows) < self.n_images or (self.closed and len(rows) != len(self.metadata))
            ):
                raise FileError(f"{len(rows)} rows in {name} but {self.n_images} of metadata")
        if self.n_images and self.data.chunks is not None:
            per_chunk = self.data.chunks[0]
            last = (self.n_images - 1) // per_chunk * per_chunk
            info = self.data.id.get_chunk_info_by_coord((last, 0, 0))
            end = (info.byte_offset or 0) + info.size
            if info.byte_offset is None or end > self.path.stat().st_size:
                raise FileError(f"the pixels of image number {self.n_images - 1} are not there")

    def rows(self, name: str) -> Any | None:
        """Return a dataset of the group beside `data`; None where the file has none of that name."""
        return self.group.get(name)

    def lost(self) -> np.ndarray:
        """Return the images that its writer lost, as far as it says so: (n,) `LOST`."""
        rows = self.rows("lost")
        return rows[()] if rows is not None else np.zeros(0, LOST)

    def close(self) -> None:
        """Close it."""
        self._file.close()


def _is_closed(path: Path) -> bool:
    try:
        return is_closed(path)
    except FileError:
        return True  # an older form of HDF5 file: another program's, and h5py will say if it is none


def _only_group(file: Any) -> str:
    names = [name for name in file if isinstance(file[name], h5py.Group) and "metadata" in file[name]]
    if len(names) != 1:
        raise FileError(f"has {len(names)} groups with data and metadata; 1 is expected")
    return names[0]


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of several files, in the order of their ids.

    Attributes
    ----------
    parts
        (file, first row, row behind the last) of what each file contributes.
    ids
        (n,) uint64, increasing.
    source, position
        (n,) int64: in which file, and at which row there.
    """

    parts: list[tuple[int, int, int]]
    ids: np.ndarray
    source: np.ndarray
    position: np.ndarray
    _order: np.ndarray = field(repr=False)

    def column(self, datasets: Sequence[Any]) -> np.ndarray:
        """Return the rows of one dataset of each file in the order of the block."""
        found = [datasets[which][start:stop] for which, start, stop in self.parts]
        return np.concatenate(found)[self._order]


def merged(id_rows: Sequence[tuple[Any, int]]) -> Iterator[Block]:
    """Merge the rows of files in the order of their image ids; equal ids in the order of files.

    Parameters
    ----------
    id_rows
        For each file what gives its ids when it is sliced, and how many rows it has. Where the ids of
        one file are not in order all are sorted at once, in memory.
    """
    try:
        yield from _merged(id_rows)
    except _UnsortedError:
        ids = [rows[:n] for rows, n in id_rows]
        yield _block([(which, 0, len(part)) for which, part in enumerate(ids)], ids)


def blocks_of(files: Sequence[StoredFile]) -> Iterator[Block]:
    """Merge the images of files in the order of their ids."""
    return merged([(IdColumn(file.metadata), file.n_images) for file in files])


def one_after_the_other(counts: Sequence[int]) -> Iterator[Block]:
    """Return blocks with the images of each file in its own order; `ids` is empty."""
    for which, count in enumerate(counts):
        for start in range(0, count, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, count)
            position = np.arange(start, stop)
            source = np.full(stop - start, which)
            ids = np.zeros(0, np.uint64)
            yield Block([(which, start, stop)], ids, source, position, position - start)


class _UnsortedError(Exception):
    pass


def _merged(id_rows: Sequence[tuple[Any, int]]) -> Iterator[Block]:
    for rows, n in id_rows:  # all of it before the first block: a block cannot be taken back
        _check_sorted(rows, n)
    starts = [0] * len(id_rows)
    while True:
        ids = [rows[at : min(at + BLOCK_ROWS, n)] for (rows, n), at in zip(id_rows, starts, strict=True)]
        unfinished = [
            part[-1] for part, at, (_, n) in zip(ids, starts, id_rows, strict=True) if at + len(part) < n
        ]
        if unfinished:  # beyond the first end of a block another file may have ids in between
            ids = [part[: int(np.searchsorted(part, min(unfinished), "right"))] for part in ids]
        parts = [
            (which, at, at + len(part)) for which, (at, part) in enumerate(zip(starts, ids, strict=True))
        ]
        if not any(len(part) for part in ids):
            return
        yield _block(parts, ids)
        starts = [stop for _, _, stop in parts]


def _check_sorted(rows: Any, n: int) -> None:
    last = None
    for at in range(0, n, BLOCK_ROWS):
        part = rows[at : min(at + BLOCK_ROWS, n)]
        if (part[1:] < part[:-1]).any() or (last is not None and part[0] < last):
            raise _UnsortedError
        last = part[-1]


def _block(parts: list[tuple[int, int, int]], ids: list[np.ndarray]) -> Block:
    every = np.concatenate(ids) if ids else np.zeros(0, np.uint64)
    source = np.repeat([which for which, _, _ in parts], [len(part) for part in ids]).astype(np.int64)
    position = np.concatenate(
        [np.arange(start, stop) for _, start, stop in parts] or [np.zeros(0, np.int64)]
    )
    order = np.argsort(every, kind="stable")
    return Block(parts, every[order], source[order], position[order], order)


class IdColumn:
    """The ids of a file, sliced from `metadata` block by block."""

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata

    def __getitem__(self, which: slice) -> np.ndarray:
        """Return (n,) uint64."""
        found: np.ndarray = self._metadata[which]["image_id"]
        return found
