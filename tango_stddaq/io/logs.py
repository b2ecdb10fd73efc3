"""The text log: one line a message, `[MM-DD HH:MM:SS.mmm][service][vX.Y.Z][level] message`."""

import logging
import os
import re
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from tango_stddaq import __version__
from tango_stddaq.config_keys import level_name
from tango_stddaq.errors import ConfigError
from tango_stddaq.io.log_output import FILE_VARIABLE, LogOutput

ROOT: Final = "tango_stddaq"
TRACE: Final = 5
_OFF: Final = logging.CRITICAL + 10
_LEVELS: Final = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": _OFF,
}
LEVELS: Final = tuple(_LEVELS)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
logging.addLevelName(TRACE, "TRACE")


class LineFormatter(logging.Formatter):
    """Formats records as the existing services do.

    Parameters
    ----------
    service
        Of records that name none.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; of a traceback several, each of them complete.

        What others send, a camera for example, gets into messages: it must look neither like a new
        line, nor move the cursor of a terminal.
        """
        stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(record.created))
        service = str(getattr(record, "service", self._service))
        # An IPv6 address has brackets, and would end the field.
        service = _plain(service).replace("[", "(").replace("]", ")")
        level = record.levelname.lower()
        head = f"[{stamp}.{int(record.msecs):03d}][{service}][v{__version__}][{level}] "
        lines = [record.getMessage().replace("\n", " | ")]
        if record.exc_info:
            lines += self.formatException(record.exc_info).splitlines()
        return "\n".join(head + _plain(line) for line in lines)


def _plain(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def configure(service: str, level: str = "info", descriptor: int = 1) -> None:
    """Send all messages of this program to standard output; call it once in a program.

    Warnings of libraries, and exceptions that nobody caught, come in the same form.

    Parameters
    ----------
    descriptor
        2 for standard error, where standard output is a result that programs read.
    """
    logger = logging.getLogger(ROOT)
    for target in (logger, logging.getLogger()):
        for handler in list(target.handlers):
            target.removeHandler(handler)
            handler.close()
    path = os.environ.get(FILE_VARIABLE)
    output = LogOutput(descriptor, Path(path) if path else None)
    output.setFormatter(LineFormatter(service))
    logger.addHandler(output)
    logger.propagate = False
    logging.getLogger().addHandler(output)  # of libraries; their level is WARNING
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    set_level(level)


def note_unknown_keys(keys: list[str]) -> None:
    """Warn of configuration keys that nothing reads: they may be misspelt."""
    if keys:
        logging.getLogger(ROOT).warning("unknown configuration keys, not used: %s", ", ".join(keys))


def set_level(level: str) -> None:
    """Set the least severe level that is logged, in any spelling of the configuration.

    Raises
    ------
    ConfigError
        If there is no such level.
    """
    name = level_name(level)
    if name not in _LEVELS:
        raise ConfigError(f"log level {level!r}: allowed are {', '.join(_LEVELS)}")
    logger = logging.getLogger(ROOT)
    logger.setLevel(_LEVELS[name])
    for handler in logger.handlers:
        if isinstance(handler, LogOutput):  # `off` means statistics too
            handler.setLevel(_OFF if name == "off" else logging.NOTSET)


def level() -> str:
    """Return the least severe level that is logged."""
    current = logging.getLogger(ROOT).level
    return next((name for name, number in _LEVELS.items() if number == current), "info")


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(ROOT).critical(
        "uncaught: %s: %s", kind.__name__, error, exc_info=(kind, error, trace)
    )


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else "unknown"
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        logging.getLogger(ROOT).critical(
            "uncaught in thread %s: %s", name, args.exc_value,
            exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        )  # fmt: skip
