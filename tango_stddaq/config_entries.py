"""The parts of the configuration that are objects themselves: an entry each of a list or a table."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tango_stddaq.stage_names import NAME_PATTERN, class_name

SUFFIX_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
FILTER_SUFFIXES: Final = {"gigafrost": "filter", "delay": "delay-filter"}
"""Suffix of the stream of each kind of filter."""


class LiveStreamConfig(BaseModel):
    """One live stream: which images are sent.

    `forward` sends every image; `batch [n, m]` sends n consecutive images of every m;
    `periodic [n, hz]` sends n consecutive images, hz times a second.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    type: Literal["forward", "batch", "periodic"] = Field(description="Which images are sent.")
    config: tuple[int, float] | None = Field(
        default=None, description="[n, m] for batch, [n, hz] for periodic; absent for forward."
    )
    source: str = Field(
        default="image",
        pattern=SUFFIX_PATTERN,
        description="Addition of tango_stddaq: suffix of the images, `image` or that of another stage.",
    )
    protocol: Literal["array-1.0", "bsread"] = Field(
        default="array-1.0", description="Addition of tango_stddaq: what clients speak."
    )
    compression: Literal["none", "bitshuffle_lz4"] = Field(
        default="none", description="Addition of tango_stddaq: how bsread sends pixels."
    )

    @field_validator("config", mode="before")
    @classmethod
    def _empty_means_absent(cls, value: Any) -> Any:
        if value in ([], {}, ()):
            return None
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _compresses_bsread_only(self) -> "LiveStreamConfig":
        if self.compression != "none" and self.protocol != "bsread":
            raise ValueError(f"compression {self.compression!r}: allowed with protocol 'bsread' only")
        return self

    @model_validator(mode="after")
    def _has_numbers(self) -> "LiveStreamConfig":
        if self.type == "forward":
            return self
        if self.config is None:
            raise ValueError(f"type {self.type} needs config: two numbers [n, m] or [n, hz]")
        n, period = self.config
        if n < 1 or period <= 0:
            raise ValueError(f"config {list(self.config)}: both numbers must be above 0")
        if self.type == "batch" and (period != int(period) or n > period):
            raise ValueError(f"config {list(self.config)}: batch needs whole n <= m")
        return self


class CompressorConfig(BaseModel):
    """One compressor: a server that publishes every image of its source once more, compressed.

    Its ring and stream have the suffix `h5bitshuffle-lz4` or `blosc2`; there can be one of each.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    method: Literal["h5bitshuffle_lz4", "blosc2"] = Field(description="How images are compressed.")
    threads: int = Field(default=1, ge=1, le=64, description="Images compressed at the same time.")
    level: int = Field(default=5, ge=1, le=9, description="Of blosc2: 1 is fastest, 9 smallest.")
    block_size: int = Field(
        default=0,
        ge=0,
        le=2**24,
        description="Of bitshuffle: bytes of a block, a multiple of 8 pixels; 0: the library's choice.",
    )
    source: str = Field(
        default="image",
        pattern=SUFFIX_PATTERN,
        description="Suffix of the stream that announces the images.",
    )

    @property
    def suffix(self) -> str:
        """Suffix of its own ring and stream."""
        return self.method.replace("_", "-")


class FilterConfig(BaseModel):
    """One filter: a server that passes on the metadata of some images, or of all but later.

    Its stream has the suffix `filter` (gigafrost) or `delay-filter`; there can be one of each. Pixels
    stay in the ring of its source.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: Literal["gigafrost", "delay"] = Field(
        description="gigafrost: images with `store_image` set; delay: after `delay_filter_timeout`."
    )
    source: str = Field(
        default="image",
        pattern=SUFFIX_PATTERN,
        description="Suffix of the stream that announces the images.",
    )
    forward_all: bool = Field(default=False, description="Of gigafrost: pass on all images.")

    @property
    def suffix(self) -> str:
        """Suffix of its own stream."""
        return FILTER_SUFFIXES[self.kind]


class OwnStageConfig(BaseModel):
    """One stage of your own, from an installed package: a server that gets every image of its source."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    stage: str = Field(pattern=NAME_PATTERN, description="Its name.")
    source: str = Field(
        default="image",
        pattern=SUFFIX_PATTERN,
        description="Suffix of the stream that announces the images.",
    )
    settings: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Values of its settings at the start, by name."
    )

    @property
    def tango_class(self) -> str:
        """Name of its Tango class, which is that of its server as well."""
        return f"StdDaq{class_name(self.stage)}"


class HostConfig(BaseModel):
    """One server of an acquisition that runs on several; see [several servers](servers.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    address: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$",
        description="IP address or name by which the other servers reach it.",
    )
    writers: tuple[Annotated[int, Field(ge=0, lt=256)], ...] = Field(
        default=(), description="File writers that run there."
    )


class RingMemoryConfig(BaseModel):
    """How every stage maps the rings: options for a server that has its memory to itself.

    See [memory and CPUs](memory.md) for what each is worth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prefault: bool = Field(
        default=False,
        description="Touch all pages at the start, so that the first round through a ring costs no "
        "page faults. Needs Linux 5.14.",
    )
    huge_pages: bool = Field(
        default=False,
        description="Ask for pages of 2 MiB; /dev/shm must be mounted with `huge=advise`.",
    )
    lock: bool = Field(
        default=False,
        description="The owner of a ring locks it in memory: it is never swapped out. Needs a limit of "
        "locked memory (`ulimit -l`) above its size.",
    )


class InfluxConfig(BaseModel):
    """Where statistics go, beside the log: a server with the write interface of InfluxDB v2.

    The token comes from `token_file`, or from the environment variable `STDDAQ_INFLUXDB_TOKEN`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    url: str = Field(
        pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._/-]*)?$",
        max_length=512,
        description="http://HOST:PORT or https://HOST:PORT, without a password in it.",
    )
    org: str = Field(default="", max_length=256, description="Organisation.")
    bucket: str = Field(min_length=1, max_length=256, description="Bucket.")
    token_file: str = Field(
        default="", max_length=4096, description="File that holds the token and nothing else."
    )
    timeout_s: float = Field(
        default=5, gt=0, le=60, description="Seconds that the server may take for a batch."
    )
