"""Tango class of a metadata stream."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.metadata_stream import MetadataStream


class StdDaqMetadataStream(StageDevice):
    """Publishes the metadata of one suffix over TCP, for programs on other hosts."""

    stage_type = MetadataStream

    Address = device_property(
        dtype=str, default_value="", doc="ZeroMQ address to bind: tcp://HOST:PORT."
    )
    Suffix = device_property(dtype=str, default_value="image", doc="Metadata to pass on.")

    locals().update(counter_attributes(MetadataStream.counters_spec))

    def make_stage(self, config: DaqConfig) -> MetadataStream:
        return MetadataStream(config, self.Address, self.Suffix)

    @attribute(dtype=str, label="address", doc="Address that clients connect to.")
    def address(self) -> str:
        return self.Address if self._stage is None else cast(MetadataStream, self._stage).endpoint


def main() -> None:
    """Run the device server."""
    serve(StdDaqMetadataStream)


if __name__ == "__main__":
    main()
