"""Tango class of the GigaFRoST filter."""

from typing import Any, cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import PUSHED, READ_WRITE, StageDevice, counter_attributes, serve
from tango_stddaq.stages.gigafrost_filter import GigafrostFilter


class StdDaqGigafrostFilter(StageDevice):
    """Passes on the images that the camera was told to store; their pixels stay in the ring."""

    stage_type = GigafrostFilter

    Suffix = device_property(dtype=str, default_value="image", doc="Stream that announces the images.")
    ForwardAll = device_property(
        dtype=bool, default_value=False, doc="Begin with forwardAll: pass on the other images as well."
    )

    locals().update(counter_attributes(GigafrostFilter.counters_spec))

    def make_stage(self, config: DaqConfig) -> GigafrostFilter:
        return GigafrostFilter(config, self.Suffix, self.ForwardAll)

    def watched(self) -> dict[str, Any]:
        values = super().watched()
        if self._stage is not None:
            values["forwardAll"] = cast(GigafrostFilter, self._stage).forward_all
        return values

    @attribute(
        dtype=bool,
        access=READ_WRITE,
        label="forward all",
        doc="Whether images that are not to be stored are passed on as well.",
        **PUSHED,
    )
    def forwardAll(self) -> bool:
        return cast(GigafrostFilter, self.stage).forward_all

    @forwardAll.write
    def forwardAll(self, value: bool) -> None:
        cast(GigafrostFilter, self.stage).forward_all = value
        self._pusher.wake()


def main() -> None:
    """Run the device server."""
    serve(StdDaqGigafrostFilter)


if __name__ == "__main__":
    main()
