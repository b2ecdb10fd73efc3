"""Tango class of the metadata synchronizer."""

from tango.server import device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.stream_sync import MetadataSync


class StdDaqMetadataSync(StageDevice):
    """Puts whole images from another server in the order of its metadata stream."""

    stage_type = MetadataSync

    Address = device_property(
        dtype=str, default_value="", doc="ZeroMQ address of the metadata stream: tcp://HOST:PORT."
    )
    IdleTimeout = device_property(
        dtype=float,
        default_value=1.0,
        doc="Seconds without a message after which what waits goes on, or is given up.",
    )

    locals().update(counter_attributes(MetadataSync.counters_spec))

    def make_stage(self, config: DaqConfig) -> MetadataSync:
        return MetadataSync(config, self.Address, self.IdleTimeout)


def main() -> None:
    """Run the device server."""
    serve(StdDaqMetadataSync)


if __name__ == "__main__":
    main()
