"""The keys of the JSON configuration: each with its default, its unit and the check of its own value.

Source of the keys: the interface contract of the existing std_daq, one file for all services. What the
keys must say together is checked in `config.py`.
"""

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tango_stddaq.config_entries import (
    SUFFIX_PATTERN,
    CompressorConfig,
    FilterConfig,
    HostConfig,
    InfluxConfig,
    LiveStreamConfig,
    OwnStageConfig,
    RingMemoryConfig,
)

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


class ConfigKeys(BaseModel):
    """What the file may hold."""

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
