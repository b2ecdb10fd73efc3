"""HDF5 files for REST clients: what is in them, and joining those of several writers."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import h5py

from tango_stddaq.errors import FileError
from tango_stddaq.io import joining_files
from tango_stddaq.io.creation import FILE_ERRORS, reason_of

MAX_ROWS: Final = 1000
"""Rows of the metadata that an answer holds; the counts are of all."""
_MAX_JOBS: Final = 100
_MAX_FILES: Final = 257


class Roots:
    """Where files may be read and written.

    Parameters
    ----------
    directories
        None means anywhere that the user of this service may go.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = [directory.resolve() for directory in directories]

    def inside(self, name: str) -> Path:
        """Return a path without links in it.

        Raises
        ------
        FileError
            If it is relative, or lies outside.
        """
        path = Path(name)
        if not path.is_absolute():
            raise FileError(f"{name!r}: an absolute path is needed")
        try:
            found = path.parent.resolve(strict=True) / path.name
            found = found.resolve() if found.is_symlink() else found
        except (OSError, ValueError, RuntimeError) as error:
            raise FileError(f"{name!r}: cannot be reached: {reason_of(error)}") from None
        if self._directories and not any(found.is_relative_to(root) for root in self._directories):
            allowed = ", ".join(map(str, self._directories))
            raise FileError(f"{name!r}: lies outside the allowed directories {allowed}")
        return found


class MetadataReadings:
    """What was read of files, and how it went; the oldest are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: OrderedDict[Path, dict[str, Any]] = OrderedDict()

    def read(self, path: Path) -> dict[str, Any]:
        """Read a writer's file or a master file; errors are kept for `status` as well."""
        self._note(path, state="reading", message="")
        try:
            found = read_metadata(path)
        except FileError as error:
            self._note(path, state="failed", message=str(error))
            raise
        self._note(path, state="done", message=f"{found['n_images']} images")
        return found

    def status(self, path: Path) -> dict[str, Any]:
        """Return how the last reading of a file went."""
        with self._lock:
            nothing = {"state": "unknown", "message": "was not read through this service"}
            return {"filename": str(path), **self._states.get(path, nothing)}

    def _note(self, path: Path, **values: str) -> None:
        with self._lock:
            self._states[path] = values
            self._states.move_to_end(path)
            while len(self._states) > _MAX_JOBS:
                self._states.popitem(last=False)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return shape, type, counts and the first rows of the metadata of a file.

    Raises
    ------
    FileError
        If it is none of ours.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            if "entry/data" in file:  # a master file
                group = file["entry/data"]
                ids, status = group["image_id"], group.get("status")
            else:
                group = file[_only_group(path, file)]
                ids, status = group["metadata"].fields("image_id"), group["metadata"].fields("status")
            data = group["data"]
            n_images = int(data.shape[0])
            rows = {"image_id": [int(value) for value in ids[:MAX_ROWS]]}
            if status is not None:
                rows["status"] = [int(value) for value in status[:MAX_ROWS]]
            return {
                "filename": str(path),
                "n_images": n_images,
                "shape": [int(n) for n in data.shape],
                "dtype": str(data.dtype),
                "metadata": rows,
                "is_cut": n_images > MAX_ROWS,
            }
    except (*FILE_ERRORS, KeyError) as error:
        raise FileError(f"{path}: cannot be read: {reason_of(error)}") from error


def _only_group(path: Path, file: Any) -> str:
    names = [name for name, entry in file.items() if isinstance(entry, h5py.Group) and "data" in entry]
    if len(names) != 1:
        raise FileError(f"{path}: holds {len(names)} groups with images; 1 is needed")
    return str(names[0])


def join(directory: Path, prefix: str, output: Path) -> int:
    """Join the writers' files `<prefix><number>.h5` of a directory; returns how many images there are.

    Raises
    ------
    FileError
        If there are none, if they are not of one acquisition, or if `output` exists.
    """
    if not prefix or "/" in prefix or prefix.startswith("."):
        raise FileError(f"file_prefix {prefix!r}: a name without directories is needed")
    found = [
        path
        for path in directory.iterdir()
        if path.name.startswith(prefix)
        and path.suffix == ".h5"
        and path.name[len(prefix) : -3].isdecimal()
    ]
    files = sorted(found, key=lambda path: int(path.name[len(prefix) : -3]))
    if not 1 <= len(files) <= _MAX_FILES:
        raise FileError(f"{directory}/{prefix}*.h5: there are {len(files)} writers' files")
    return joining_files.join(files, output)
