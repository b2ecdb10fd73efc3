"""Statistics straight to an InfluxDB v2 server: from a thread of its own, never in the way of data.

Lines wait in a bounded queue. A server that refuses, hangs or is not there costs the oldest of them,
and they are counted. Everything in this process that uses the same settings shares one sink.
"""

import atexit
import importlib
import logging
import os
import re
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tango_stddaq.config_entries import InfluxConfig
from tango_stddaq.errors import ConfigError

TOKEN_VARIABLE: Final = "STDDAQ_INFLUXDB_TOKEN"  # noqa: S105
QUEUE_LINES: Final = 10_000
BATCH_LINES: Final = 1000
_GATHER_S: Final = 0.2
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_EXIT_S: Final = 0.5
"""So long the end of a process waits for the last batch."""
_MAX_TOKEN_BYTES: Final = 4096
_TOKEN: Final = re.compile(r"[!-~]*")
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
_OK_BUT_USELESS: Final = (400, 413, 422)
"""The server will never take this batch: the next one may be better."""
_log = logging.getLogger("tango_stddaq.influxdb")


class InfluxSink:
    """Sends lines of the line protocol in batches.

    Attributes
    ----------
    n_written
        Lines that the server took.
    n_dropped
        Lines that it did not get: the queue was full, or the server refused them.
    """

    def __init__(self, settings: InfluxConfig, queue_lines: int = QUEUE_LINES) -> None:
        self.settings = settings
        self.n_written = 0
        self.n_dropped = 0
        self.error = ""
        self._queue: deque[str] = deque()
        self._queue_lines = queue_lines
        self._sending = 0
        self._closed = False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._client: Any = None
        self._writer: Any = None
        self._thread = threading.Thread(target=self._run, name="influxdb", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Hand over a line; never waits. The oldest line goes when there is no room."""
        with self._lock:
            self._queue.append(line)
            if len(self._queue) > self._queue_lines:
                self._queue.popleft()
                self.n_dropped += 1
        self._wake.set()

    @property
    def n_waiting(self) -> int:
        """Lines that the server has not confirmed yet."""
        return len(self._queue) + self._sending

    def close(self, timeout_s: float = _EXIT_S) -> None:
        """Send what waits, for at most `timeout_s`; what is left then counts as dropped."""
        self._ended.set()
        self._wake.set()
        self._thread.join(timeout_s)
        with self._lock:
            self._closed = True
            self.n_dropped += self.n_waiting
            self._queue.clear()
            self._sending = 0

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        # Here, and not when the first line comes: that may be when the process ends, which is too late.
        # Nobody waits for this thread, so that the half second does not matter.
        importlib.import_module("influxdb_client")
        try:
            self._send_all()
        finally:  # its destructors fail, loudly, when the interpreter is about to end
            self._disconnect()

    def _send_all(self) -> None:
        wait_s = 0.0
        while True:
            self._wake.wait()
            if not self._ended.wait(max(_GATHER_S, wait_s)):
                self._wake.clear()
            batch = self._take()
            if not batch:
                if self._ended.is_set():
                    return
                continue
            problem, useless = self._send(batch)
            self._settle(batch, problem, useless)
            wait_s = 0.0 if not problem or useless else min(2 * wait_s or _FIRST_WAIT_S, _LONGEST_WAIT_S)
            if self._ended.is_set() and problem:
                return
            if self._queue:
                self._wake.set()

    def _take(self) -> list[str]:
        with self._lock:
            n_lines = min(len(self._queue), BATCH_LINES)
            self._sending = n_lines
            return [self._queue.popleft() for _ in range(n_lines)]

    def _send(self, batch: list[str]) -> tuple[str, bool]:
        """Return what went wrong, "" if nothing, and whether to give this batch up."""
        try:
            if self._client is None:
                self._client = self._connect()
            self._writer.write(self.settings.bucket, self.settings.org, batch)
        except Exception as error:  # whatever a client library raises must not end this thread
            self._disconnect()
            status = getattr(error, "status", None)
            if status is None:
                return f"{type(error).__name__}: {_first_line(error)}", False
            reason = getattr(error, "reason", "")
            return f"HTTP {status} {reason}".rstrip(), status in _OK_BUT_USELESS
        return "", False

    def _settle(self, batch: list[str], problem: str, useless: bool) -> None:
        with self._lock:
            if self._closed:
                return
            self._sending = 0
            if not problem:
                self.n_written += len(batch)
            elif useless:
                self.n_dropped += len(batch)
            else:
                self._queue.extendleft(reversed(batch))
                while len(self._queue) > self._queue_lines:
                    self._queue.popleft()
                    self.n_dropped += 1
        if problem and problem != self.error:
            kept = "these lines are dropped" if useless else "lines wait"
            _log.warning("InfluxDB at %s: %s; %s", self.settings.url, problem, kept)
        elif self.error and not problem:
            _log.info(
                "InfluxDB at %s takes lines again; %d were dropped", self.settings.url, self.n_dropped
            )
        self.error = problem

    def _connect(self) -> Any:
        from influxdb_client import InfluxDBClient  # noqa: PLC0415
        from influxdb_client.client.write_api import SYNCHRONOUS  # noqa: PLC0415

        settings = self.settings
        client = InfluxDBClient(
            settings.url,
            token=read_token(settings),
            org=settings.org,
            timeout=int(settings.timeout_s * 1000),
        )
        self._writer = client.write_api(write_options=SYNCHRONOUS)
        return client

    def _disconnect(self) -> None:
        """Forget the connection: the next one reads the token anew."""
        client, self._client, self._writer = self._client, None, None
        if client is not None:
            with suppress(Exception):
                client.close()


def read_token(settings: InfluxConfig) -> str:
    """Return the token, from the file or the environment; it is read anew for every connection.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    if not settings.token_file:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not _TOKEN.fullmatch(token):
            raise ConfigError(f"environment variable {TOKEN_VARIABLE}: is not a token")
        return token
    path = Path(settings.token_file)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TOKEN_BYTES + 1)
        text = data.decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise ConfigError(f"influxdb.token_file {path}: cannot be read: {reason}") from None
    if not text or len(data) > _MAX_TOKEN_BYTES or not _TOKEN.fullmatch(text):
        raise ConfigError(f"influxdb.token_file {path}: must hold one token and nothing else")
    return text


def _first_line(error: Exception) -> str:
    return _ADDRESS.sub("", (str(error).splitlines() or [""])[0])[:300]


_sinks: dict[InfluxConfig, InfluxSink] = {}
_sinks_lock = threading.Lock()


def sink(settings: InfluxConfig | None) -> InfluxSink | None:
    """Return the sink of these settings, which all of this process share; None without settings."""
    if settings is None:
        return None
    with _sinks_lock:
        if settings not in _sinks:
            _sinks[settings] = InfluxSink(settings)
        return _sinks[settings]


@atexit.register
def _close_all() -> None:
    deadline = time.monotonic() + _EXIT_S
    for entry in _sinks.values():
        entry.close(max(0.0, deadline - time.monotonic()))
        if entry.n_dropped:
            _log.warning("InfluxDB at %s: %d lines were dropped", entry.settings.url, entry.n_dropped)
