"""Statistics under the names of the existing services: one table, from our counters to their fields.

The names and their meaning are those of the std_daq programs. Counts are of the period since the last
report, as theirs: the sum of a field over all reports is the total. Our own counters, which grow until
they are reset, stand beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Grown:
    """What counters grew by during the period, added up."""

    counters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Now:
    """What a counter is at the end of the period."""

    counter: str


@dataclass(frozen=True, slots=True)
class PerSecond:
    """What a counter grew by, per second."""

    counter: str


@dataclass(frozen=True, slots=True)
class Quotient:
    """What one counter grew by for each that another grew by; 0 if that one did not grow.

    Attributes
    ----------
    scale
        The quotient is multiplied by it.
    digits
        After the decimal point.
    """

    above: str
    below: str
    scale: float = 1.0
    digits: int = 3


Source = Grown | Now | PerSecond | Quotient
_MIB_PER_MS: Final = 1000 / 2**20
"""From bytes per microsecond."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the statistics of a stage look like where it stands for an existing program.

    Attributes
    ----------
    program
        Name of the program; `{detector}` is the short name of the detector (eg, jf, gf), `{label}` what
        tells equal stages apart.
    fields
        Name of a field to where it comes from, in the order of the text.
    label_key
        What the text calls the label of a stage; "" if it does not say it.
    influx_only
        Fields that the existing program does not have in its text.
    """

    program: str
    fields: Mapping[str, Source]
    label_key: str = ""
    influx_only: frozenset[str] = field(default_factory=frozenset)


def _timed(counter: str, **more: Source) -> Mapping[str, Source]:
    """Fields that nearly all services have, and more."""
    return MappingProxyType(
        {"processed_times": Grown((counter,)), "repetition_rate_hz": PerSecond(counter), **more}
    )


def _writer(program: str) -> Service:
    fields = _timed(
        "images",
        n_written_images=Grown(("images",)),
        avg_buffer_write_us=Quotient("write_us", "images"),
        max_buffer_write_us=Now("max_buffer_write_us"),
        avg_throughput=Quotient("bytes", "write_us", _MIB_PER_MS),
    )
    return Service(program, fields, "id", frozenset({"processed_times", "repetition_rate_hz"}))


_CAMERA: Final = _timed("images")
_FILTER: Final = _timed("forwarded_images", forwarded_images=Grown(("forwarded_images",)))
_SYNC: Final = _timed(
    "images", n_corrupted_images=Grown(("incomplete", "overwritten")), queue=Now("queue")
)

SERVICES: Final[Mapping[str, Service]] = MappingProxyType(
    {
        "udp-recv": Service(
            "std_udp_recv_{detector}",
            _timed(
                "frames",
                frames_counter=Grown(("frames",)),
                n_corrupted_frames=Grown(("incomplete_frames",)),
                n_missed_packets=Grown(("missing_packets",)),
            ),
            "module_id",
        ),
        "data-convert": Service(
            "std_data_convert_{detector}",
            _timed(
                "frames",
                n_corrupted_frames=Grown(("incomplete_frames",)),
                n_missed_packets=Grown(("missing_packets",)),
            ),
            "module_id",
            frozenset({"n_corrupted_frames", "n_missed_packets"}),
        ),
        "module-sync": Service("std_data_sync_module", _SYNC),
        "bsread-recv": Service("std_bsread_recv", _CAMERA, "source"),
        "array10-recv": Service("std_array10_recv", _CAMERA, "source"),
        "live-stream": Service(
            "std_live_stream",
            _timed(
                "images",
                n_active_connections=Now("n_active_connections"),
                zmq_fails=Grown(("zmq_fails",)),
            ),
            "port",
            frozenset({"n_active_connections", "zmq_fails"}),
        ),
        "metadata-stream": Service(
            "std_metadata_stream",
            _timed("messages", n_active_connections=Now("n_active_connections")),
            "port",
        ),
        "compressor": Service(
            "std_data_compress_{label}",
            _timed(
                "images",
                compressed_images=Grown(("compressed_images",)),
                ratio=Quotient("compressed_bytes", "bytes", digits=6),
            ),
        ),
        "gf-filter": Service("std_gf_filter", _FILTER, "source"),
        "delay-filter": Service("std_delay_filter", _FILTER, "source"),
        "stream-send": Service(
            "std_stream_send", _timed("images", zmq_fails=Grown(("zmq_fails",))), "image_part"
        ),
        "stream-receive": Service(
            "std_stream_receive",
            _timed(
                "images",
                zmq_receive_fails=Grown(("malformed", "refused_size")),
                images_missed=Grown(("short_parts", "late", "unannounced")),
            ),
            "image_part",
        ),
        "sync-stream": Service("std_data_sync_stream", _SYNC),
        "sync-metadata": Service("std_data_sync_metadata", _SYNC),
        "writer-driver": Service("std_det_driver", _timed("dispatched")),
        "file-writer": _writer("std_det_writer"),
        "meta-writer": _writer("std_det_meta_writer_gf"),
    }
)
"""Of every stage that can stand for an existing program, by the stage's name."""


class Periods:
    """Turns the counters of one stage into the fields of its periods.

    A counter that the stage does not have counts as 0, so that the table may name what only some
    stages of a name have.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._before: dict[str, float] = {}
        self._before_s: float | None = None

    def start(self, counters: Mapping[str, float], now_s: float) -> None:
        """Begin a period: what is counted so far belongs to none, or to one that was reported."""
        self._before = dict(counters)
        self._before_s = now_s

    def end(self, counters: Mapping[str, float], now_s: float) -> dict[str, float]:
        """End the period and begin the next; returns its fields."""
        elapsed_s = now_s - self._before_s if self._before_s is not None else 0.0
        found = {
            name: self._value(source, counters, elapsed_s)
            for name, source in self.service.fields.items()
        }
        self.start(counters, now_s)
        return found

    def _value(self, source: Source, counters: Mapping[str, float], elapsed_s: float) -> float:
        match source:
            case Grown(names):
                return sum(self._grown(name, counters) for name in names)
            case Now(name):
                return counters.get(name, 0)
            case PerSecond(name):
                return round(self._grown(name, counters) / elapsed_s, 3) if elapsed_s > 0 else 0.0
            case Quotient(above, below, scale, digits):
                divisor = self._grown(below, counters)
                return round(scale * self._grown(above, counters) / divisor, digits) if divisor else 0.0

    def _grown(self, name: str, counters: Mapping[str, float]) -> float:
        return max(counters.get(name, 0) - self._before.get(name, 0), 0)


def influx_fields(
    service: Service | None, counters: Mapping[str, float], of_period: Mapping[str, float]
) -> dict[str, float]:
    """Return our counters and the fields of the period; of two with one name ours ends in `_total`."""
    found: dict[str, float] = {}
    for name, value in counters.items():
        source = service.fields.get(name) if service is not None else None
        if source is None:
            found[name] = value
        elif not isinstance(source, Now):
            found[f"{name}_total"] = value
    return {**found, **of_period}


def program_text(detector: str, keys: Mapping[str, str], fields: Mapping[str, float]) -> str:
    """Return the statistics as an existing program words them: `detector=X,key=value,...`."""
    parts = [f"detector={detector}", *(f"{key}={value}" for key, value in keys.items())]
    parts += [f"{name}={_number(name, value)}" for name, value in fields.items()]
    return ",".join(parts)


_TWO_DECIMALS: Final = ("repetition_rate_hz", "avg_throughput")


def _number(name: str, value: float) -> str:
    if name in _TWO_DECIMALS:
        return f"{value:.2f}"
    if isinstance(value, int) or name.endswith("_us"):
        return str(round(value))
    return f"{value:.6g}"


_SHORT: Final = {
    "eiger": "eg", "gigafrost": "gf", "jungfrau": "jf", "jungfrau-raw": "jf", "jungfrau-converted": "jf",
}  # fmt: skip


def program_of(service: Service, detector_type: str, label: str) -> str:
    """Return the name of the existing program that a stage stands for."""
    detector = _SHORT.get(detector_type, detector_type)
    return service.program.format(detector=detector, label=label.replace("-", "_"))
