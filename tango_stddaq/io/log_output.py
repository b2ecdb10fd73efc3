"""Where log lines go: to standard output, and if that is a file of ours, in files of bounded size."""

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tango_stddaq.io.log_flood import FloodGate, Kind

FILE_VARIABLE: Final = "STDDAQ_LOG_FILE"
"""Who starts a program with its output in a file says here which one: then the program bounds it."""
FILE_BYTES: Final = 16 * 2**20
OLD_FILES: Final = 4
_MODE: Final = 0o644


def old_file(path: Path, number: int) -> Path:
    """Return the name of an older file: 1 is the one before the current."""
    return path.with_name(f"{path.name}.{number}")


def rotate(path: Path, n_old: int = OLD_FILES) -> None:
    """Give a log file and its predecessors the next numbers; the oldest goes."""
    for number in range(n_old, 0, -1):
        source = old_file(path, number - 1) if number > 1 else path
        with suppress(FileNotFoundError):
            source.replace(old_file(path, number))


class LogOutput(logging.Handler):
    """Writes lines straight to a file descriptor, so that none waits in a buffer when a program dies.

    Lines that cannot be written, on a full disk for example, are counted; the next one that can be
    written says how many are missing. Warnings that are alike are summed up, see `FloodGate`.

    Parameters
    ----------
    descriptor
        Where to write.
    path
        The file behind it, if this program is to bound it.
    """

    def __init__(
        self,
        descriptor: int = 1,
        path: Path | None = None,
        file_bytes: int = FILE_BYTES,
        gate: FloodGate | None = None,
    ) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._path = path if path is not None and _is_behind(path, descriptor) else None
        self._file_bytes = file_bytes
        self._gate = gate or FloodGate()
        self._n_lost = 0
        self._lost_reason = ""
        self._torn = False
        self._timer: threading.Timer | None = None

    # -- called with the lock of the handler held --------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        try:
            self._sum_up()
            message = record.getMessage()
            if record.levelno >= logging.WARNING and not message.startswith("[event]"):
                kind = Kind.of(getattr(record, "service", ""), record.levelno, message)
                if not self._gate.admit(kind, time.monotonic()):
                    self._start_timer()
                    return
            self._write(self.format(record))
        except Exception:
            self.handleError(record)

    def _sum_up(self, everything: bool = False) -> None:
        for kind, count in self._gate.due(time.monotonic(), everything):
            self._say(
                kind.level, f"came {count} times more, with other numbers: {kind.words}", kind.service
            )

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._gate.window_s + 0.1, self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _say(self, level: int, message: str, service: str = "") -> None:
        self._write(self._line(level, message, service))

    def _line(self, level: int, message: str, service: str = "") -> str:
        record = logging.makeLogRecord(
            {"levelno": level, "levelname": logging.getLevelName(level), "msg": message}
        )
        if service:
            record.service = service
        return self.format(record)

    def _write(self, text: str) -> None:
        if self._path is not None:
            self._bound(self._path)
        if self._n_lost:
            note = f"{self._n_lost} log lines were lost: {self._lost_reason}"
            if not self._put(self._line(logging.WARNING, note)):
                self._n_lost += 1
                return
            self._n_lost = 0
        if not self._put(text):
            self._n_lost += 1

    def _put(self, text: str) -> bool:
        """Write a line; returns whether all of it is written."""
        data = text.encode(errors="backslashreplace") + b"\n"
        if self._torn:  # half a line is there: this one begins on a line of its own
            data = b"\n" + data
        size = len(data)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self._torn = self._torn or len(data) < size
            self._lost_reason = error.strerror or str(error)
            return False
        self._torn = False
        return True

    def _bound(self, path: Path) -> None:
        if os.fstat(self._descriptor).st_size < self._file_bytes:
            return
        try:
            rotate(path)
            fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)
        except OSError as error:
            self._path = None
            self._say(logging.WARNING, f"{path}: cannot begin a new file: {error}; it goes on growing")
            return
        try:
            # What libraries write to standard error goes where the log goes.
            same = self._descriptor == 1 and os.path.sameopenfile(1, 2)
            for target in (1, 2) if same else (self._descriptor,):
                os.dup2(fresh, target)
        finally:
            os.close(fresh)
        self._say(logging.INFO, f"[event] a new file; what came before is in {old_file(path, 1).name}")

    # -- called without it -------------------------------------------------------------------------

    def _on_timer(self) -> None:
        with self.lock or threading.RLock():
            self._timer = None
            self._sum_up()

    def close(self) -> None:
        """Say what is not said yet."""
        with self.lock or threading.RLock():
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._sum_up(everything=True)
        super().close()


def _is_behind(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
