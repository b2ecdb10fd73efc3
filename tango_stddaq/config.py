"""The JSON configuration that all services share: how it is read, and what its keys say together.

The keys stand in `config_keys.py`, the sizes that follow from them in `config_sizes.py`.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError, model_validator

from tango_stddaq.config_entries import FILTER_SUFFIXES, LiveStreamConfig
from tango_stddaq.config_keys import ConfigKeys
from tango_stddaq.config_sizes import Sizes
from tango_stddaq.errors import ConfigError

MAX_CONFIG_BYTES: Final = 4 * 2**20
CAMERAS: Final = ("pco", "bsread")
"""Detector types whose images come whole, over ZeroMQ, not as UDP packets of modules."""


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


class DaqConfig(ConfigKeys):
    """The configuration of one data acquisition, as its JSON file says it."""

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
    def sizes(self) -> Sizes:
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


def _overlap(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> bool:
    """Return whether two boxes [x0, y0, x1, y1], in any order of their corners, share a pixel."""
    return all(
        max(min(one[axis], one[axis + 2]), min(two[axis], two[axis + 2]))
        <= min(max(one[axis], one[axis + 2]), max(two[axis], two[axis + 2]))
        for axis in (0, 1)
    )


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
