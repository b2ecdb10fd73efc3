"""What is checked before an acquisition starts: each refusal says what is wrong and what to do."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tango_stddaq.config import DaqConfig
from tango_stddaq.config_keys import MAX_USER_ID
from tango_stddaq.errors import AcquisitionError
from tango_stddaq.processing.acquisition import DEFAULT_N_IMAGES

MAX_NAME_BYTES: Final = 200
MAX_PATH_BYTES: Final = 490
"""Longest file name that a writer can be told in its 512 bytes."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for.

    Attributes
    ----------
    path
        Directory of the files; must exist.
    file_prefix
        First part of the file names, without directories.
    n_images
        Images to take.
    start_id
        Images with lower ids are left out.
    writer_user_id
        User id that shall own the files.
    overwrite
        Whether files of these names are replaced.
    master_name
        Name of the file that joins the others; empty: the prefix and `master.h5`.
    """

    path: str
    file_prefix: str = "file"
    n_images: int = DEFAULT_N_IMAGES
    start_id: int = 0
    writer_user_id: int = 0
    overwrite: bool = False
    master_name: str = ""

    def writer_files(self, n_writers: int) -> list[Path]:
        """Return the file of each writer."""
        return [Path(self.path) / f"{self.file_prefix}{i}.h5" for i in range(n_writers)]

    def metadata_file(self) -> Path:
        """Return the file of the GigaFRoST metadata writer."""
        return Path(self.path) / f"{self.file_prefix}Meta.h5"

    def master_file(self) -> Path:
        """Return the file that joins them."""
        if self.master_name:
            return Path(self.path) / self.master_name
        separator = "" if not self.file_prefix or self.file_prefix[-1] in "_-." else "_"
        return Path(self.path) / f"{self.file_prefix}{separator}master.h5"


def check(
    request: Request,
    config: DaqConfig,
    n_writers: int,
    roots: Sequence[str] = (),
    with_metadata: bool = False,
    compressed: bool = False,
) -> None:
    """Refuse a request that cannot end in a good file.

    Parameters
    ----------
    n_writers
        Writers that will take part.
    roots
        Directories below which files may be written; none means anywhere.
    with_metadata
        Whether there will be a GigaFRoST metadata file.
    compressed
        Whether images come compressed: nobody knows how much room they need.

    Raises
    ------
    AcquisitionError
        With the reason.
    """
    _check_numbers(request, n_writers)
    _check_name("filePrefix", request.file_prefix)
    if request.master_name:
        _check_name("masterName", request.master_name)
    directory = _check_directory(request.path, roots)
    paths = [*request.writer_files(n_writers), request.master_file()]
    if with_metadata:
        paths.append(request.metadata_file())
    if len(set(paths)) < len(paths):
        raise AcquisitionError(
            f"masterName {request.master_name!r}: is the name of a writer's file as well; choose another"
        )
    for path in paths:
        _check_length(path)
        if not request.overwrite and (path.exists() or path.is_symlink()):
            raise AcquisitionError(
                f"{path}: exists already and is not overwritten; choose another filePrefix, "
                "or ask to overwrite"
            )
    needed = request.n_images * config.sizes.slot_bytes
    stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    if request.n_images != DEFAULT_N_IMAGES and not compressed and needed > free:
        raise AcquisitionError(
            f"{directory}: {request.n_images} images need {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free"
        )


def _check_numbers(request: Request, n_writers: int) -> None:
    if n_writers < 1:
        raise AcquisitionError(
            "number_of_writers is 0 in the configuration: set it to 1 or more to write files"
        )
    if request.n_images < 1:
        raise AcquisitionError(f"imageCount {request.n_images}: allowed is 1 or more")
    if request.start_id < 0:
        raise AcquisitionError(f"startId {request.start_id}: allowed is 0 or more")
    if not -1 <= request.writer_user_id <= MAX_USER_ID:
        raise AcquisitionError(f"writerUserId {request.writer_user_id}: allowed is -1 to {MAX_USER_ID}")


def _check_name(what: str, name: str) -> None:
    if not name or name.startswith(".") or any(c in name for c in "/\\\0\n"):
        raise AcquisitionError(f"{what} {name!r}: a name without directories is needed, like run_0001_")
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise AcquisitionError(f"{what}: longer than {MAX_NAME_BYTES} bytes")


def _check_length(path: Path) -> None:
    try:
        n_bytes = len(str(path).encode())
    except UnicodeEncodeError:
        raise AcquisitionError(f"{str(path)!r}: the name is not UTF-8, choose another one") from None
    if n_bytes > MAX_PATH_BYTES:
        raise AcquisitionError(
            f"{path}: a file name of {n_bytes} bytes; allowed are {MAX_PATH_BYTES}, choose a shorter one"
        )


def _check_directory(path: str, roots: Sequence[str]) -> Path:
    if not path:
        raise AcquisitionError("outputPath is empty: set it to an existing directory")
    directory = Path(path)
    if not directory.is_absolute():
        raise AcquisitionError(f"outputPath {path!r}: an absolute path is needed")
    try:
        resolved = directory.resolve(strict=True)
    except PermissionError:
        raise AcquisitionError(
            f"outputPath {path!r}: the user of the data acquisition may not write there, nor look"
        ) from None
    except (OSError, RuntimeError, ValueError):
        raise AcquisitionError(f"outputPath {path!r}: does not exist; create it first") from None
    if not resolved.is_dir():
        raise AcquisitionError(f"outputPath {path!r}: is not a directory")
    allowed = [Path(root).resolve() for root in roots]
    if allowed and not any(resolved.is_relative_to(root) for root in allowed):
        raise AcquisitionError(
            f"outputPath {path!r}: lies outside the allowed directories {', '.join(roots)}"
        )
    if not os.access(resolved, os.W_OK | os.X_OK, effective_ids=True):
        raise AcquisitionError(
            f"outputPath {path!r}: user {os.geteuid()} of the data acquisition may not write there"
        )
    return resolved
