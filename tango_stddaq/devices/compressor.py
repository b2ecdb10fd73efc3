"""Tango class of a compressor."""

from typing import Any, cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.config_entries import CompressorConfig
from tango_stddaq.devices.base import (
    PUSHED,
    READ_WRITE,
    StageDevice,
    counter_attributes,
    serve,
    tango_errors,
)
from tango_stddaq.devices.events import push_change
from tango_stddaq.errors import ConfigError
from tango_stddaq.model import Compression
from tango_stddaq.processing.compress import MAX_LEVEL, METHODS, MIN_LEVEL
from tango_stddaq.stages.compressor import MAX_THREADS, ImageCompressor


class StdDaqCompressor(StageDevice):
    """Publishes every image once more, compressed, on a ring and a stream of its own."""

    stage_type = ImageCompressor

    Method = device_property(
        dtype=str,
        default_value="",
        doc="h5bitshuffle_lz4 or blosc2. What the entry of that method in compressors of the "
        "configuration says is the start value of everything else.",
    )
    ImageSuffix = device_property(
        dtype=str, default_value="", doc="Ring with the pixels, if it is not that of the source."
    )

    locals().update(counter_attributes(ImageCompressor.counters_spec))

    def make_stage(self, config: DaqConfig) -> ImageCompressor:
        if self.Method not in METHODS:
            raise ConfigError(f"property Method {self.Method!r}: allowed are {', '.join(METHODS)}")
        given = [entry for entry in config.compressors if entry.method == self.Method]
        entry = given[0] if given else CompressorConfig(method=self.Method)
        return ImageCompressor(
            config,
            METHODS[self.Method],
            entry.threads,
            entry.level,
            entry.block_size,
            entry.source,
            self.ImageSuffix,
        )

    def watched(self) -> dict[str, Any]:
        values = super().watched()
        if self._stage is not None:
            stage = self._compressor()
            values |= {
                "compressionRatio": round(stage.ratio, 3),
                "inputRate": round(stage.input_rate / 1e6, 3),
                "outputRate": round(stage.output_rate / 1e6, 3),
                "threads": stage.threads,
                "level": stage.level,
            }
        return values

    # -- settings, also while it runs --------------------------------------------------------------

    @attribute(
        dtype="DevULong", access=READ_WRITE, label="threads", min_value="1", max_value=str(MAX_THREADS),
        doc="Images compressed at the same time. A change counts at once, until the server restarts.",
        **PUSHED,
    )  # fmt: skip
    def threads(self) -> int:
        return 0 if self._stage is None else self._compressor().threads

    @threads.write
    @tango_errors
    def threads(self, value: int) -> None:
        self._compressor().threads = int(value)
        push_change(self, "threads", int(value))

    @attribute(
        dtype="DevULong", access=READ_WRITE, label="level", min_value=str(MIN_LEVEL),
        max_value=str(MAX_LEVEL),
        doc="Level of blosc2: 1 is fastest, 9 smallest. A change counts from the next image on, until "
        "the server restarts. bitshuffle has no level and refuses a change.",
        **PUSHED,
    )  # fmt: skip
    def level(self) -> int:
        return 0 if self._stage is None else self._compressor().level

    @level.write
    @tango_errors
    def level(self, value: int) -> None:
        stage = self._compressor()
        if stage.method is not Compression.BLOSC2:
            raise ConfigError(f"level {value}: {self.Method} has no level")
        stage.level = int(value)
        push_change(self, "level", int(value))

    # -- what it does ------------------------------------------------------------------------------

    @attribute(dtype=str, label="method", doc="Method and the library that does the work.")
    def method(self) -> str:
        if self._stage is None:
            return self.Method
        library = self._compressor().library
        return f"{self.Method} ({library})" if library else self.Method

    @attribute(
        dtype=float, label="compression ratio", format="%.2f",
        doc="Bytes in per byte out, over the last seconds with images; 0 before the first.",
        **PUSHED,
    )  # fmt: skip
    def compressionRatio(self) -> float:
        return 0.0 if self._stage is None else self._compressor().ratio

    @attribute(
        dtype=float, unit="MB/s", label="input rate", format="%.1f",
        doc="Pixel bytes compressed per second (MB are 10^6 bytes).",
        **PUSHED,
    )  # fmt: skip
    def inputRate(self) -> float:
        return 0.0 if self._stage is None else self._compressor().input_rate / 1e6

    @attribute(
        dtype=float, unit="MB/s", label="output rate", format="%.1f",
        doc="Bytes published per second (MB are 10^6 bytes).",
        **PUSHED,
    )  # fmt: skip
    def outputRate(self) -> float:
        return 0.0 if self._stage is None else self._compressor().output_rate / 1e6

    def _compressor(self) -> ImageCompressor:
        return cast(ImageCompressor, self.stage)


def main() -> None:
    """Run the device server."""
    serve(StdDaqCompressor)


if __name__ == "__main__":
    main()
