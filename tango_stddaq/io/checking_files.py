"""What a master file and a metadata file are worth beside the writers' files that they belong to."""

from dataclasses import dataclass
from pathlib import Path

import h5py

from tango_stddaq.errors import FileError
from tango_stddaq.io.creation import reason_of
from tango_stddaq.io.growing_file import is_closed

_DETECTOR = "entry/instrument/detector"


@dataclass(frozen=True, slots=True)
class Master:
    """What a master file says.

    Attributes
    ----------
    sources
        The writers' files of which it shows images.
    n_images
        Images that it shows.
    n_ids
        Ids that it has.
    is_final
        Whether it was made at the end of the acquisition.
    """

    path: Path
    sources: list[Path]
    n_images: int
    n_ids: int
    is_final: bool


def master_of(path: Path) -> Master | None:
    """Read a master file; None if the file is no master.

    Raises
    ------
    FileError
        If it cannot be read, or a file of which it shows images is not there.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            if f"{_DETECTOR}/data" not in file:
                return None
            data = file[f"{_DETECTOR}/data"]
            names = {source.file_name for source in data.virtual_sources()} if data.is_virtual else set()
            sources = [path.resolve().parent / name for name in sorted(names)]
            n_ids = len(file[f"{_DETECTOR}/image_id"])
            is_final = file["entry"].attrs.get("state") == "complete"
            found = Master(path, sources, data.shape[0], n_ids, is_final)
    except (OSError, KeyError) as error:
        raise FileError(f"{path}: cannot be read: {reason_of(error)}") from error
    for source in sources:
        if not source.exists():
            raise FileError(
                f"{path}: shows images of {source}, which is not there: they read as zeros; "
                "keep the files of an acquisition in one directory"
            )
    return found


def metadata_rows_of(path: Path) -> tuple[int, bool] | None:
    """Return the rows of a GigaFRoST metadata file and whether it was closed; None if it is none.

    Raises
    ------
    FileError
        If it cannot be read.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            groups = [group for group in file.values() if isinstance(group, h5py.Group)]
            if len(groups) != 1 or "data" in groups[0] or "metadata" not in groups[0]:
                return None
            n_rows = len(groups[0]["metadata"])
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {reason_of(error)}") from error
    return n_rows, is_closed(path)
