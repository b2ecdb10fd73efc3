"""Tango class of the delay filter."""

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.delay_filter import DelayFilter


class StdDaqDelayFilter(StageDevice):
    """Passes on every image some seconds after it came; its pixels stay in the ring."""

    stage_type = DelayFilter

    Suffix = device_property(dtype=str, default_value="image", doc="Stream that announces the images.")

    locals().update(counter_attributes(DelayFilter.counters_spec))

    def make_stage(self, config: DaqConfig) -> DelayFilter:
        return DelayFilter(config, self.Suffix)

    @attribute(
        dtype=float,
        label="delay",
        unit="s",
        doc="How long an image waits: delay_filter_timeout of the configuration.",
    )
    def delay(self) -> float:
        return self.stage.config.delay_filter_timeout


def main() -> None:
    """Run the device server."""
    serve(StdDaqDelayFilter)


if __name__ == "__main__":
    main()
