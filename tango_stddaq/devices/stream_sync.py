"""Tango class of the stream synchronizer."""

from tango.server import device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.stream_sync import StreamSync


class StdDaqStreamSync(StageDevice):
    """Joins the parts that stream receivers stored to images."""

    stage_type = StreamSync

    IdleTimeout = device_property(
        dtype=float,
        default_value=1.0,
        doc="Seconds without a part after which incomplete images go on as they are.",
    )

    locals().update(counter_attributes(StreamSync.counters_spec))

    def make_stage(self, config: DaqConfig) -> StreamSync:
        return StreamSync(config, self.IdleTimeout)


def main() -> None:
    """Run the device server."""
    serve(StdDaqStreamSync)


if __name__ == "__main__":
    main()
