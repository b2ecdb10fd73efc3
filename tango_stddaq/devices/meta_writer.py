"""Tango class of the GigaFRoST metadata writer."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.meta_writer import MetaWriter


class StdDaqMetaWriter(StageDevice):
    """Stores what a GigaFRoST says of each image in one HDF5 file, beside those of the pixels."""

    stage_type = MetaWriter

    OutputRoots = device_property(
        dtype=(str,), default_value=[], doc="Directories below which files may be written; none: any."
    )

    locals().update(counter_attributes(MetaWriter.counters_spec))

    def make_stage(self, config: DaqConfig) -> MetaWriter:
        return MetaWriter(config, tuple(root for root in self.OutputRoots if root))

    @attribute(dtype=str, label="current file", doc="File being written; empty between acquisitions.")
    def currentFile(self) -> str:
        return "" if self._stage is None else cast(MetaWriter, self._stage).current_file


def main() -> None:
    """Run the device server."""
    serve(StdDaqMetaWriter)


if __name__ == "__main__":
    main()
