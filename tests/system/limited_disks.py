"""File systems with little room, each of another kind; made as root, and gone afterwards."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

LIMIT_MIB = 24


@dataclass(frozen=True)
class LimitedDisk:
    """A directory in which `LIMIT_MIB` or a little less can be stored.

    Attributes
    ----------
    says
        What the system calls it when there is no more room.
    copies_on_write
        Whether what is on the disk needs room again when it is changed: then no room can be reserved
        for rows that go behind others.
    """

    path: Path
    says: str
    copies_on_write: bool = False


@contextmanager
def tmpfs(directory: Path) -> Iterator[LimitedDisk]:
    """A file system in memory."""
    _run("mount", "-t", "tmpfs", "-o", f"size={LIMIT_MIB}m", "none", directory)
    try:
        yield LimitedDisk(directory, "No space left on device")
    finally:
        _run("umount", "-l", directory)


@contextmanager
def ext4(directory: Path) -> Iterator[LimitedDisk]:
    """A disk that finds its blocks late."""
    with _image_of_a_disk(directory, LIMIT_MIB, "mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal"):
        yield LimitedDisk(directory, "No space left on device")


@contextmanager
def quota(directory: Path) -> Iterator[LimitedDisk]:
    """A large disk, and a quota on a directory of it, which btrfs imposes on root as well."""
    with _image_of_a_disk(directory, 512, "mkfs.btrfs", "-q"):
        limited = directory / "limited"
        _run("btrfs", "quota", "enable", directory)
        _run("btrfs", "subvolume", "create", limited)
        _run("btrfs", "qgroup", "limit", f"{LIMIT_MIB}M", limited)
        yield LimitedDisk(limited, "Disk quota exceeded", copies_on_write=True)


KINDS: dict[str, Callable[[Path], "contextmanager[LimitedDisk]"]] = {  # type: ignore[valid-type]
    "tmpfs": tmpfs,
    "ext4": ext4,
    "quota": quota,
}


@contextmanager
def _image_of_a_disk(directory: Path, size_mib: int, *make: str) -> Iterator[None]:
    image = directory.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size_mib * 2**20)
    _run(*make, image)
    _run("mount", "-o", "loop", image, directory)
    try:
        yield
    finally:
        _run("umount", "-l", directory)
        image.unlink()


def _run(program: str, *arguments: object) -> None:
    """Run a program; the test is skipped where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("making a file system needs root")
    if shutil.which(program) is None:
        pytest.skip(f"making a file system needs the program {program}")
    found = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"{program} {' '.join(map(str, arguments))}: {found.stderr.strip()}")
