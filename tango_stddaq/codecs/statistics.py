"""Statistics of a service as a line of the InfluxDB line protocol."""

import importlib
import platform
import sys
import threading
import time
from collections.abc import Mapping
from typing import Final

_LIBRARY: Final = "influxdb_client"


def prepare() -> None:
    """Load what `encode` needs, in a thread: a run loop would be held up for half a second."""
    if _LIBRARY not in sys.modules:
        threading.Thread(
            target=importlib.import_module, args=(_LIBRARY,), name="statistics", daemon=True
        ).start()


def encode(
    service: str,
    tags: Mapping[str, str],
    fields: Mapping[str, float],
    time_ns: int | None = None,
) -> str:
    """Return one line: measurement, tags, fields, time.

    Parameters
    ----------
    service
        The measurement.
    tags
        Empty ones are left out; `host` is added.
    fields
        Counters and rates.
    time_ns
        Nanoseconds since 1970; None for now.
    """
    # Imported late: the package loads a whole HTTP client, half a second of every server's start.
    from influxdb_client import Point  # noqa: PLC0415

    point = Point(service).tag("host", platform.node())
    for key, value in tags.items():
        if value:
            point.tag(key, value)
    for key, number in fields.items():
        point.field(key, number)
    return str(point.time(time_ns if time_ns is not None else time.time_ns()).to_line_protocol())
