"""What all Tango classes have in common as to logs: the level, the Tango logging system, InfluxDB."""

import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import tango
from tango import AttrWriteType
from tango.server import Device, attribute

from tango_stddaq.errors import StdDaqError
from tango_stddaq.io import influx, logs
from tango_stddaq.stages.base import LOG_LINES

_Method = TypeVar("_Method", bound=Callable[..., Any])


def tango_errors(method: _Method) -> _Method:
    """Let a client see our errors as they are: reason, one clear text, origin; no traceback."""

    @functools.wraps(method)
    def wrapped(self: Device, *args: Any) -> Any:
        try:
            return method(self, *args)
        except StdDaqError as error:
            tango.Except.throw_exception(
                f"StdDaq_{type(error).__name__}", str(error), f"{self.get_name()}.{method.__name__}"
            )

    return wrapped  # type: ignore[return-value]


class TangoLog:
    """Hands the messages of a stage to the Tango logging system.

    A target of that system may be a device far away: a run loop must not wait for it.
    """

    def __init__(self, device: Device) -> None:
        self._streams = {
            logging.DEBUG: device.debug_stream,
            logging.INFO: device.info_stream,
            logging.WARNING: device.warn_stream,
            logging.ERROR: device.error_stream,
            logging.CRITICAL: device.fatal_stream,
        }
        self._waiting: deque[tuple[int, str]] = deque(maxlen=LOG_LINES)

    def add(self, level: int, message: str) -> None:
        """Take a message; the text log has all of them, this the last that wait."""
        self._waiting.append((level, message))

    def flush(self) -> None:
        """Hand over what waits."""
        while self._waiting:
            level, message = self._waiting.popleft()
            self._streams.get(level, self._streams[logging.DEBUG])("%s", message)


class LogFace(Device):
    """The log level of a server, and what became of its statistics."""

    @attribute(
        dtype=str, access=AttrWriteType.READ_WRITE, label="log level",
        doc="Least severe message that this server logs, all its devices: trace, debug, info, warning, "
        "error, critical or off. Writing it to the facade sets it for all stages. ReloadConfig sets it "
        "to that of the configuration.",
    )  # fmt: skip
    def logLevel(self) -> str:
        return logs.level()

    @logLevel.write
    @tango_errors
    def logLevel(self, value: str) -> None:
        self._set_log_level(value)

    def _set_log_level(self, value: str) -> None:
        """Set the level, and log that it was asked for.

        Raises
        ------
        ConfigError
            If there is no such level.
        """
        before = logs.level()
        logs.set_level(value)
        if logs.level() != before:
            text = f"[event] log level {logs.level()}, was {before}"
            logging.getLogger(f"{logs.ROOT}.{self.get_name()}").info(text)

    @attribute(
        dtype="DevULong64", unit="lines", format="%d", label="influxdb written",
        doc="Statistics lines of this server that the InfluxDB server took; 0 if none is configured.",
    )  # fmt: skip
    def influxdbWritten(self) -> int:
        sink = self._sink()
        return sink.n_written if sink is not None else 0

    @attribute(
        dtype="DevULong64", unit="lines", format="%d", label="influxdb dropped",
        doc="Statistics lines of this server that the InfluxDB server did not get; they are in the log.",
    )  # fmt: skip
    def influxdbDropped(self) -> int:
        sink = self._sink()
        return sink.n_dropped if sink is not None else 0

    def _sink(self) -> influx.InfluxSink | None:
        """Return where statistics go, beside the log."""
        return None
