"""The JSON configuration that all services share: every key, its default, unit and check.

Source of the keys: the interface contract of the existing std_daq, one file for all services.
`DaqConfig` is what the file says; `Sizes` is every number that follows from it, computed once.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tango_stddaq.config_entries import (
    FILTER_SUFFIXES,
    SUFFIX_PATTERN,
    CompressorConfig,
    FilterConfig,
    HostConfig,
    InfluxConfig,
    LiveStreamConfig,
    OwnStageConfig,
    RingMemoryConfig,
)
from tango_stddaq.errors import ConfigError
from tango_stddaq.model import Dtype

MIN_SLOTS: Final = 1000
"""An existing program always assumes at least this many slots in a ring."""
SEGMENT_ALIGN_BYTES: Final = 2 * 2**20
MAX_CONFIG_BYTES: Final = 4 * 2**20
CAMERAS: Final = ("pco", "bsread")
"""Detector types whose images come whole, over ZeroMQ, not as UDP packets of modules."""
MAX_PIXELS_PER_SIDE: Final = 65536
MAX_USER_ID: Final = 2**31 - 1

DetectorType = Literal[
    "gigafrost", "eiger", "pco", "jungfrau-raw", "jungfrau-converted", "bsread", "jungfrau"
]
LogLevel = Literal["trace", "debug", "info", "warning", "error", "critical", "off"]
_LOG_ALIASES: Final = {"warn": "warning", "err": "error"}


def level_name(text: str) -> str:
    """Return a log level as `LogLevel` spells it: any case and the short forms are allowed."""
    name = text.strip().lower()
    return _LOG_ALIASES.get(name, name)


Pixel = Annotated[int, Field(ge=0, lt=MAX_PIXELS_PER_SIDE)]


def live_stream_rule(mode: str, numbers: Sequence[float] = ()) -> LiveStreamConfig:
    """Return the rule of a live stream that is given as a name and two numbers.

    Raises
    ------
    ConfigError
        If there is no such rule, or its numbers are not possible.
    """
    try:
        return LiveStreamConfig.model_validate({"type": mode, "config": [float(n) for n in numbers]})
    except ValidationError as error:
        raise ConfigError(
            f"live stream mode {mode!r} {list(numbers)}: allowed are forward, batch [n, m] (whole "
            f"n <= m) and periodic [n, hz]: {error.errors()[0]['msg']}"
        ) from None


class DaqConfig(BaseModel):
    """The configuration of one data acquisition, as its JSON file says it."""

    model_config = ConfigDict(
        extra="allow", frozen=True, allow_inf_nan=False, title="tango_stddaq configuration"
    )

    detector_name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="Prefix of every name: shared memory, sockets, HDF5 groups, Tango devices.",
    )
    detector_type: DetectorType = Field(description="Which detector or camera sends the data.")
    n_modules: int = Field(ge=1, le=1024, description="Number of modules (UDP ports).")
    bit_depth: Literal[8, 16, 32] = Field(description="Bits of a pixel as the detector sends it.")
    image_pixel_height: int = Field(ge=1, lt=MAX_PIXELS_PER_SIDE, description="Image rows.")
    image_pixel_width: int = Field(ge=1, lt=MAX_PIXELS_PER_SIDE, description="Image columns.")
    start_udp_port: int = Field(ge=0, le=65535, description="Module m sends to port start_udp_port + m.")
    module_positions: dict[str, tuple[Pixel, Pixel, Pixel, Pixel]] = Field(
        description="Module number to [x0, y0, x1, y1] in pixels; {} where unused."
    )

    log_level: LogLevel = Field(default="info", description="Least severe message that is logged.")
    stats_collection_period: float = Field(
        default=10, gt=0, le=3600, description="Seconds between two statistics lines."
    )
    ram_buffer_gb: float = Field(
        default=0,
        ge=0,
        le=2**30,
        description="Size of the image ring in GiB; at least 1000 slots are used.",
    )
    max_number_of_forwarders_spawned: int = Field(
        default=8, ge=1, le=1024, description="Parts an image is cut into between servers."
    )
    use_all_forwarders: bool = Field(
        default=False, description="Cut the configured image, not the detector's largest."
    )
    sender_sends_full_images: bool = Field(
        default=False, description="Senders take whole images in turn instead of parts."
    )
    module_sync_queue_size: int = Field(
        default=50,
        ge=1,
        le=100_000,
        description="Newer images that an incomplete image waits for, and at least 50 ms; but never "
        "more than half of the ring.",
    )
    gpfs_block_size: int = Field(
        default=16 * 2**20, ge=1, description="Block of the file system in bytes; sets the chunks."
    )
    number_of_writers: int = Field(default=0, ge=0, le=256, description="File writers.")
    delay_filter_timeout: float = Field(default=10, ge=0, description="Seconds.")
    switch_user_active: bool = Field(
        default=False, description="Create files as the user of writer_user_id."
    )
    writer_user_id: int | None = Field(
        default=None, ge=-1, le=MAX_USER_ID, description="User id that owns the files."
    )
    file_mode: str | None = Field(
        default=None,
        pattern=r"^0?[0-7]{3}$",
        description="Addition of tango_stddaq: permissions of the files in octal, like 0640; "
        "else those that the umask of the writers leaves.",
    )
    file_group: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$",
        description="Addition of tango_stddaq: group of the files, by name or number.",
    )
    submodule_info: dict[str, Any] = Field(
        default_factory=dict, description="Free information about submodules."
    )
    live_stream_configs: dict[str, LiveStreamConfig] = Field(
        default_factory=dict, description="ZeroMQ TCP address to stream settings."
    )
    camera_address: str | None = Field(
        default=None,
        pattern=r"^tcp://[A-Za-z0-9.:\[\]_-]+:\d{1,5}$",
        description="Addition of tango_stddaq: where a camera (pco, bsread) sends from, tcp://HOST:PORT.",
    )
    camera_protocol: Literal["bsread", "array-1.0"] = Field(
        default="bsread", description="Addition of tango_stddaq: what the camera speaks."
    )
    gains_file: str = Field(
        default="",
        description="Addition of tango_stddaq: HDF5 file with the gain maps of a jungfrau-converted.",
    )
    pedestals_file: str = Field(
        default="", description="Addition of tango_stddaq: HDF5 file with its pedestals, if not there."
    )
    compressors: tuple[CompressorConfig, ...] = Field(
        default=(), description="Addition of tango_stddaq: the compressors to run, see below."
    )
    filters: tuple[FilterConfig, ...] = Field(
        default=(), description="Addition of tango_stddaq: the filters to run, see below."
    )
    stages: tuple[OwnStageConfig, ...] = Field(
        default=(), description="Addition of tango_stddaq: stages of your own to run, see below."
    )
    writer_source: str = Field(
        default="image",
        pattern=SUFFIX_PATTERN,
        description="Addition of tango_stddaq: suffix of the images that go to the files: `image`, or "
        "that of a compressor, a filter or a stage of your own.",
    )
    hosts: dict[Annotated[str, Field(pattern=SUFFIX_PATTERN)], HostConfig] = Field(
        default_factory=dict,
        description="Addition of tango_stddaq: name to address and writers of each server, where there "
        "are several. The first receives from the detector.",
    )
    forward_port: int = Field(
        default=7100,
        ge=1024,
        le=65535,
        description="Addition of tango_stddaq: first TCP port of those between servers.",
    )
    ring_memory: RingMemoryConfig = Field(
        default_factory=RingMemoryConfig,
        description="Addition of tango_stddaq: how the rings lie in memory: `prefault`, `huge_pages`, "
        "`lock`, see below.",
    )
    influxdb: InfluxConfig | None = Field(
        default=None,
        description="Addition of tango_stddaq: an InfluxDB server that gets the statistics too: `url`, "
        "`org`, `bucket`, `token_file`, `timeout_s`, see below.",
    )
    ring_slots: int | None = Field(
        default=None,
        ge=4,
        description="Addition of tango_stddaq: slots of a ring, where no existing std_daq program "
        "shares it. Existing programs always take at least 1000.",
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return level_name(value)

    @field_validator("live_stream_configs")
    @classmethod
    def _addresses(cls, value: dict[str, LiveStreamConfig]) -> dict[str, LiveStreamConfig]:
        for address in value:
            if not re.fullmatch(r"tcp://(\*|[A-Za-z0-9.:\[\]_-]+):\d{1,5}", address):
                raise ValueError(f"address {address!r}: allowed is tcp://HOST:PORT or tcp://*:PORT")
            if int(address.rsplit(":", 1)[1]) > 65535:
                raise ValueError(f"address {address!r}: allowed are ports up to 65535")
        return value

    @model_validator(mode="after")
    def _modules_are_known(self) -> "DaqConfig":
        known = {str(module) for module in range(self.n_modules)}
        for key, (x0, y0, x1, y1) in self.module_positions.items():
            if key not in known:
                raise ValueError(
                    f"module_positions key {key!r}: allowed are the modules 0 to "
                    f"{self.n_modules - 1} (n_modules is {self.n_modules})"
                )
            if max(x0, x1) >= self.image_pixel_width or max(y0, y1) >= self.image_pixel_height:
                raise ValueError(
                    f"module_positions {key!r} {[x0, y0, x1, y1]}: outside the image of "
                    f"{self.image_pixel_width} x {self.image_pixel_height} pixels (width x height)"
                )
        boxes = list(self.module_positions.items())
        for at, (key, box) in enumerate(boxes):
            for other, other_box in boxes[:at]:
                if _overlap(box, other_box):
                    raise ValueError(
                        f"module_positions {key!r} {list(box)}: lies over module {other!r} "
                        f"{list(other_box)}"
                    )
        last_port = self.start_udp_port + self.n_modules - 1
        if last_port > 65535:
            raise ValueError(
                f"start_udp_port {self.start_udp_port}: last port is {last_port}, "
                "allowed is at most 65535"
            )
        return self

    @model_validator(mode="after")
    def _filters_fit(self) -> "DaqConfig":
        for at, entry in enumerate(self.filters):
            if entry.kind in [other.kind for other in self.filters[:at]]:
                raise ValueError(f"filters {at}: kind {entry.kind!r} stands there twice")
            if entry.kind == "gigafrost" and self.detector_type != "gigafrost":
                raise ValueError(
                    f"filters {at}: kind 'gigafrost': images of a {self.detector_type} have no "
                    "store_image; allowed is 'delay'"
                )
        sources = self._sources()
        for first in [entry.suffix for entry in self.filters]:
            suffix, passed = first, [first]
            while suffix in sources:
                suffix = sources[suffix]
                if suffix in passed:
                    raise ValueError(f"source of {first!r}: it waits for itself: {' < '.join(passed)}")
                passed.append(suffix)
        return self

    @model_validator(mode="after")
    def _compressors_fit(self) -> "DaqConfig":
        methods = [entry.method for entry in self.compressors]
        for at, entry in enumerate(self.compressors):
            if entry.method in methods[:at]:
                raise ValueError(
                    f"compressors {at}: method {entry.method!r} stands there twice; both would own the "
                    f"ring {self.segment(entry.suffix)}"
                )
            if self.ring_of(entry.source) in [other.suffix for other in self.compressors]:
                raise ValueError(
                    f"compressors {at}: source {entry.source!r} is compressed already; allowed are the "
                    "suffixes of other stages, like 'image'"
                )
            multiple = 8 * self.sizes.dtype.numpy.itemsize
            if entry.block_size % multiple:
                raise ValueError(
                    f"compressors {at}: block_size {entry.block_size}: allowed are 0 and multiples of "
                    f"{multiple} bytes (8 pixels)"
                )
        return self

    @model_validator(mode="after")
    def _own_stages_fit(self) -> "DaqConfig":
        for at, entry in enumerate(self.stages):
            if entry.stage in [other.stage for other in self.stages[:at]]:
                raise ValueError(f"stages {at}: stage {entry.stage!r} stands there twice")
            if entry.source == entry.stage:
                raise ValueError(f"stages {at}: source {entry.source!r}: it waits for itself")
        return self

    @model_validator(mode="after")
    def _hosts_fit(self) -> "DaqConfig":
        if not self.hosts:
            return self
        placed = sorted(writer for host in self.hosts.values() for writer in host.writers)
        if placed != list(range(self.number_of_writers)):
            raise ValueError(
                f"hosts: writers {placed} have a place; allowed is one for each of the "
                f"{self.number_of_writers} writers from 0 (number_of_writers)"
            )
        last = self.forward_port + self.max_number_of_forwarders_spawned + 2 * self.number_of_writers
        if last > 65535:
            raise ValueError(f"forward_port {self.forward_port}: last port is {last}, allowed is 65535")
        if self.compressors:
            raise ValueError("compressors: allowed are none where there are several hosts")
        return self

    @property
    def unknown_keys(self) -> list[str]:
        """Keys of the file that nothing here reads: kept, reported, not an error."""
        return sorted(self.model_extra or {})

    @cached_property
    def sizes(self) -> "Sizes":
        """Every size that follows from this configuration."""
        return Sizes.of(self)

    def require_camera_address(self) -> str:
        """Return where the camera sends from.

        Raises
        ------
        ConfigError
            If the configuration does not say it.
        """
        if self.camera_address is None:
            raise ConfigError("camera_address: is missing; a camera needs it: tcp://HOST:PORT")
        return self.camera_address

    def _sources(self) -> dict[str, str]:
        """Return what each filter and compressor listens to, by the suffix of its own stream."""
        sources = {entry.suffix: entry.source for entry in self.filters}
        return sources | {entry.suffix: entry.source for entry in self.compressors}

    def ring_of(self, suffix: str) -> str:
        """Return the suffix of the ring that holds the pixels of a stream: filters have none."""
        sources = self._sources()
        while suffix in FILTER_SUFFIXES.values():
            suffix = sources.get(suffix, "image")
        return suffix

    def leaves_images_out(self, suffix: str) -> bool:
        """Return whether images may be missing from a stream on purpose: then a gap is no loss."""
        sources = self._sources()
        passing = {"delay-filter", "blosc2", "h5bitshuffle-lz4"}
        passing |= {entry.suffix for entry in self.filters if entry.forward_all}
        while suffix != "image":
            if suffix not in passing:
                return True
            suffix = sources.get(suffix, "image")
        return False

    def segment(self, suffix: str) -> str:
        """Return the name of a ring's shared-memory segment, without the leading slash."""
        return f"{self.detector_name}-{suffix}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes derived from the configuration; nobody else computes them.

    Attributes
    ----------
    dtype
        Type of a pixel in the image ring.
    slot_bytes
        Bytes of one uncompressed converted image.
    n_slots
        Slots of the image ring.
    segment_bytes
        Bytes of the ring's segment, rounded up to 2 MiB.
    images_per_chunk
        Images in one HDF5 chunk.
    """

    height: int
    width: int
    dtype: Dtype
    slot_bytes: int
    n_slots: int
    segment_bytes: int
    images_per_chunk: int

    @classmethod
    def of(cls, config: DaqConfig) -> "Sizes":
        """Compute the sizes of `config`."""
        if config.detector_type == "jungfrau-converted":
            dtype = Dtype.FLOAT32
        elif config.detector_type == "gigafrost":
            dtype = Dtype.UINT16
        else:
            dtype = Dtype.from_numpy(np.dtype(f"uint{config.bit_depth}"))
        height, width = config.image_pixel_height, config.image_pixel_width
        slot_bytes = height * width * dtype.numpy.itemsize
        n_slots = config.ring_slots or max(int(config.ram_buffer_gb * 2**30) // slot_bytes, MIN_SLOTS)
        return cls(
            height=height,
            width=width,
            dtype=dtype,
            slot_bytes=slot_bytes,
            n_slots=n_slots,
            segment_bytes=segment_bytes(n_slots, slot_bytes),
            images_per_chunk=max(1, config.gpfs_block_size // slot_bytes),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.height, self.width)


def _overlap(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> bool:
    """Return whether two boxes [x0, y0, x1, y1], in any order of their corners, share a pixel."""
    return all(
        max(min(one[axis], one[axis + 2]), min(two[axis], two[axis + 2]))
        <= min(max(one[axis], one[axis + 2]), max(two[axis], two[axis + 2]))
        for axis in (0, 1)
    )


def segment_bytes(n_slots: int, slot_bytes: int) -> int:
    """Return the bytes of a ring's segment: whole pages of 2 MiB."""
    return -(-n_slots * slot_bytes // SEGMENT_ALIGN_BYTES) * SEGMENT_ALIGN_BYTES


def parse(text: str | bytes, source: str = "configuration") -> DaqConfig:
    """Check the JSON text of a configuration.

    Parameters
    ----------
    text
        The JSON document.
    source
        Named in errors: usually the file.

    Raises
    ------
    ConfigError
        One line per fault, each naming key, value and what is allowed.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{source}: {len(text)} bytes; allowed are {MAX_CONFIG_BYTES}")
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: a JSON object is needed, found {type(data).__name__}")
    return from_dict(data, source)


def from_dict(data: dict[str, Any], source: str = "configuration") -> DaqConfig:
    """Check a configuration that is a dictionary already; errors as in `parse`."""
    for key, value in data.items():
        try:
            json.dumps({key: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{source}: {key!a}: value {value!a} is not allowed: half a surrogate is no unicode text"
            ) from None
    try:
        # Strict, as JSON: a number in quotes, or true for 1, is a mistake and not a number.
        return DaqConfig.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{source}:\n{_explain(error)}") from None


def load(path: str | Path) -> DaqConfig:
    """Read and check a configuration file.

    Raises
    ------
    ConfigError
        If the file cannot be read, or as in `parse`.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse(text, str(path))


def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file."""
    return DaqConfig.model_json_schema()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} stands there twice")
        result[key] = value
    return result


def _explain(error: ValidationError) -> str:
    """Turn pydantic's report into one line per fault: key, value, what is allowed."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            lines.append(f"  {key}: is missing; {_allowed(key)}")
            continue
        message = fault["msg"].removeprefix("Value error, ")
        if not key:
            lines.append(f"  {message}")
            continue
        shown = json.dumps(fault["input"], default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        lines.append(f"  {key}: value {shown} is not allowed: {message}; {_allowed(key)}")
    return "\n".join(lines)


def _allowed(key: str) -> str:
    """Say what is allowed for a top-level key, from its own description."""
    info = DaqConfig.model_fields.get(key.split(".", maxsplit=1)[0])
    return f"expected: {info.description}" if info and info.description else "see the JSON schema"
