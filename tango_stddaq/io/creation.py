"""How files come to be: inside the allowed directories, as the right user, and never over another file.

A file is made under a hidden name and gets its own name once it can be opened, in one step that fails if
the name is taken. Directories are opened once and checked by what was opened: a link that is changed
meanwhile leads nowhere else.
"""

import errno
import grp
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import FileError
from tango_stddaq.io.identity import as_user

FILE_ERRORS: Final = (OSError, RuntimeError, ValueError)
"""What h5py raises when something below it fails."""
_HDF5_ERRNO: Final = re.compile(r"\berrno = (\d+)\b")
"""HDF5 has it in the middle of a long text, which a writer's answer to the driver would cut."""
_ADVICE: Final = {
    errno.ENOSPC: "remove files, or write to another directory",
    errno.EDQUOT: "remove files, or have the quota of this user, group or directory raised",
}


@dataclass(frozen=True, slots=True)
class FileRules:
    """Where files may lie, and whose they are.

    Attributes
    ----------
    roots
        Directories below which files may be written; none means anywhere.
    mode
        Permissions, as for `chmod`; None leaves it to the process's umask.
    group
        Group that gets the files; None leaves it as the file system sets it.
    user_id
        Who creates the files; None for the user that this process runs as.
    overwrite
        Whether a file of the same name is replaced.
    """

    roots: tuple[str, ...] = ()
    mode: int | None = None
    group: str | None = None
    user_id: int | None = None
    overwrite: bool = False

    @classmethod
    def of(
        cls, config: DaqConfig, roots: tuple[str, ...] = (), user_id: int = 0, overwrite: bool = False
    ) -> "FileRules":
        """Return what a configuration says.

        Parameters
        ----------
        user_id
            The user of this acquisition; 0 or below stands for the one of the configuration.

        Raises
        ------
        FileError
            If files shall belong to a user and none is named.
        """
        user: int | None = None
        if config.switch_user_active:
            user = user_id if user_id > 0 else config.writer_user_id
            if user is None or user < 0:
                raise FileError(
                    "switch_user_active is true, but there is no writer_user_id: set it in the "
                    "configuration or give it with the start"
                )
        mode = int(config.file_mode, 8) if config.file_mode is not None else None
        return cls(roots, mode, config.file_group, user, overwrite)


class Place:
    """The directory that a file shall lie in, and its name there.

    Raises
    ------
    FileError
        If the directory cannot be opened, or lies outside the allowed ones.
    """

    def __init__(self, path: Path, rules: FileRules) -> None:
        self.path = path
        self.rules = rules
        self._hidden = f".{path.name[:200]}.{secrets.token_hex(6)}.new"
        if not path.is_absolute() or not path.name:
            raise FileError(f"{path}: an absolute path is needed")
        with as_user(rules.user_id):
            try:
                self._directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (OSError, ValueError) as error:
                raise FileError(f"{path}: cannot be created: {reason_of(error)}") from error
        try:
            self._check_root()
        except FileError:
            self.close()
            raise

    def _check_root(self) -> None:
        really = Path(f"/proc/self/fd/{self._directory}").readlink()
        roots = [Path(root).resolve() for root in self.rules.roots]
        if roots and not any(really.is_relative_to(root) for root in roots):
            raise FileError(
                f"{self.path}: lies outside the allowed directories {', '.join(self.rules.roots)}"
            )

    def check_free(self) -> None:
        """Refuse a name that is taken; the decision falls in `publish`, this spares the work.

        Raises
        ------
        FileError
            If a file of that name is there and may not be replaced.
        """
        if not self.rules.overwrite and self._is_taken():
            raise FileError(f"{self.path}: exists already; nothing is overwritten")

    def _is_taken(self) -> bool:
        try:
            os.stat(self.path.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @property
    def hidden(self) -> str:
        """Path to create the file under, which cannot be led elsewhere."""
        return f"/proc/self/fd/{self._directory}/{self._hidden}"

    def adopt(self, fd: int) -> None:
        """Give the file group and mode.

        Raises
        ------
        FileError
            If that is not allowed.
        """
        try:
            if self.rules.group is not None:
                os.fchown(fd, -1, _group_id(self.rules.group))
            if self.rules.mode is not None:
                os.fchmod(fd, self.rules.mode)
        except OSError as error:
            raise FileError(
                f"{self.path}: group {self.rules.group} and mode {self.rules.mode} cannot be set: "
                f"{reason_of(error)}"
            ) from error

    def publish(self) -> None:
        """Give the file its name.

        Raises
        ------
        FileError
            If the name is taken.
        """
        with as_user(self.rules.user_id):
            try:
                if self.rules.overwrite:
                    self._rename()
                    return
                try:
                    os.link(
                        self._hidden,
                        self.path.name,
                        src_dir_fd=self._directory,
                        dst_dir_fd=self._directory,
                    )
                except PermissionError:
                    self._publish_without_links()
                    return
                os.unlink(self._hidden, dir_fd=self._directory)
            except FileExistsError as error:
                raise FileError(f"{self.path}: exists already; nothing is overwritten") from error
            except OSError as error:
                raise FileError(f"{self.path}: cannot be created: {reason_of(error)}") from error

    def _publish_without_links(self) -> None:
        """Take the name with an empty file first, where the file system has no hard links."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        os.close(os.open(self.path.name, flags, dir_fd=self._directory))
        self._rename()

    def _rename(self) -> None:
        directory = self._directory
        os.rename(self._hidden, self.path.name, src_dir_fd=directory, dst_dir_fd=directory)

    def discard(self) -> None:
        """Remove what was made under the hidden name."""
        with as_user(self.rules.user_id), suppress(OSError):
            os.unlink(self._hidden, dir_fd=self._directory)

    def close(self) -> None:
        """Let go of the directory."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


@contextmanager
def new_file(path: Path, rules: FileRules) -> Iterator[Place]:
    """Make a file: create it as `place.hidden`, call `place.publish`; what is not published is removed.

    Raises
    ------
    FileError
        If it may not or cannot be created there.
    """
    place = Place(path, rules)
    try:
        place.check_free()
        with as_user(rules.user_id):
            yield place
    except FILE_ERRORS as error:
        raise FileError(f"{path}: cannot be created: {reason_of(error)}") from error
    finally:
        place.discard()
        place.close()


def remove(path: Path, user_id: int | None = None) -> None:
    """Remove a file if it is there.

    Raises
    ------
    FileError
        If it cannot be removed.
    """
    with as_user(user_id):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise FileError(f"{path}: cannot be removed: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Say in a few words why a file operation failed, and what to do where that is known."""
    number = getattr(error, "errno", None)
    if not number:
        found = _HDF5_ERRNO.search(str(error))
        if found is None:
            return str(error)
        number = int(found[1])
    advice = _ADVICE.get(number)
    return f"{os.strerror(number)}: {advice}" if advice else os.strerror(number)


def _group_id(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise FileError(f"file_group {name!r}: there is no such group on this machine") from None
