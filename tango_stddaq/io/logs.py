"""The text log: one line a message, `[MM-DD HH:MM:SS.mmm][service][vX.Y.Z][level] message`."""

import logging
import sys
import time
from typing import Final

from tango_stddaq import __version__

ROOT: Final = "tango_stddaq"
_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": logging.CRITICAL + 10,
}


class _Formatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; line breaks in a message would look like new messages."""
        stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(record.created))
        service = getattr(record, "service", self._service)
        level = record.levelname.lower()
        text = record.getMessage().replace("\n", " | ")
        line = f"[{stamp}.{int(record.msecs):03d}][{service}][v{__version__}][{level}] {text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(service: str, level: str = "info") -> None:
    """Send the package's messages to standard output; call it once in a program."""
    logger = logging.getLogger(ROOT)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter(service))
    logger.addHandler(handler)
    logger.propagate = False
    set_level(level)


def note_unknown_keys(keys: list[str]) -> None:
    """Warn of configuration keys that nothing reads: they may be misspelt."""
    if keys:
        logging.getLogger(ROOT).warning("unknown configuration keys, not used: %s", ", ".join(keys))


def set_level(level: str) -> None:
    """Set the least severe level that is logged, by its name in the configuration."""
    logging.getLogger(ROOT).setLevel(_LEVELS[level])
