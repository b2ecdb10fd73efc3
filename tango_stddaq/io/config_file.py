"""The configuration file as text: read whole, replaced atomically."""

import os
import tempfile
from pathlib import Path

from tango_stddaq.errors import ConfigError


def read_text(path: str) -> str:
    """Return the file's text.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        return Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def replace_text(path: str, text: str) -> None:
    """Replace the file at once: a reader sees the old text or the new one, never a part.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    target = Path(path)
    try:
        fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(fd, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                Path(temporary).chmod(target.stat().st_mode & 0o777)
            Path(temporary).replace(target)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
