"""What a stage tells of its work every period: to the log, and to an InfluxDB server if there is one."""

import logging
import time
from collections.abc import Mapping
from typing import Final

from tango_stddaq.codecs import statistics
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import influx
from tango_stddaq.service_fields import SERVICES, Periods, influx_fields, program_of, program_text

_LOG: Final = logging.getLogger("tango_stddaq.statistics")


class Report:
    """Statistics of one stage.

    Parameters
    ----------
    service
        Name of the stage: the measurement.
    label_tag, label
        The tag that tells equal stages apart.

    Attributes
    ----------
    program
        Name of the existing program that the stage stands for; its statistics are then logged in that
        program's words as well. "" if it stands for none.
    """

    def __init__(self, config: DaqConfig, service: str, label_tag: str, label: str) -> None:
        self.program = ""
        self._detector, self._label = config.detector_name, label
        self._measurement = service
        self._tags = {"detector": config.detector_name, label_tag: label}
        self._service = SERVICES.get(service)
        self._detector_type = config.detector_type
        self._periods = Periods(self._service) if self._service is not None else None
        self._influx = influx.sink(config.influxdb)

    def replaces_program(self) -> None:
        """From now on the stage stands for the existing program, where there is one."""
        if self._service is not None:
            self.program = program_of(self._service, self._detector_type, self._label)

    def start(self, counters: Mapping[str, float]) -> None:
        """Begin a period with these counts."""
        statistics.prepare()
        if self._periods is not None:
            self._periods.start(counters, time.monotonic())

    def publish(
        self, title: str, values: Mapping[str, float], rate_hz: float, keys: Mapping[str, str]
    ) -> None:
        """End the period.

        Parameters
        ----------
        title
            Who speaks, in the log.
        values
            Counters, and what the stage has to say beside them.
        rate_hz
            Of a stage that the table of services does not know.
        keys
            What the text of the existing program says before its numbers.
        """
        of_period: dict[str, float] = {"repetition_rate_hz": round(rate_hz, 3)}
        if self._periods is not None:
            of_period = self._periods.end(values, time.monotonic())
        fields = influx_fields(self._service, values, of_period)
        line = statistics.encode(self._measurement, self._tags, fields)
        _log(line, title)
        if self._influx is not None:
            self._influx.write(line)
        if self.program and self._service is not None:
            if not keys and self._service.label_key and self._label:
                keys = {self._service.label_key: self._label}
            hidden = self._service.influx_only
            shown = {name: value for name, value in of_period.items() if name not in hidden}
            text = program_text(self._detector, keys, shown)
            _log(f"{text} {time.monotonic_ns()}", title)


def _log(line: str, title: str) -> None:
    """Log statistics whatever the level is, but `off`: they are data, and somebody plots them."""
    record = _LOG.makeRecord(
        _LOG.name, logging.INFO, __file__, 0, line, (), None, extra={"service": title}
    )
    _LOG.handle(record)
