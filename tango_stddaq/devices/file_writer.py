"""Tango class of a file writer."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.file_writer import FileWriter


class StdDaqFileWriter(StageDevice):
    """Stores its share of the images in an HDF5 file of its own."""

    stage_type = FileWriter

    WriterId = device_property(dtype=int, default_value=0, doc="Number of this writer, from 0.")
    Suffix = device_property(dtype=str, default_value="image", doc="Stream or ring of the images.")

    OutputRoots = device_property(
        dtype=(str,), default_value=[], doc="Directories below which files may be written; none: any."
    )

    locals().update(counter_attributes(FileWriter.counters_spec))

    def make_stage(self, config: DaqConfig) -> FileWriter:
        roots = tuple(root for root in self.OutputRoots if root)
        return FileWriter(config, self.WriterId, self.Suffix, roots)

    @attribute(dtype=str, label="current file", doc="File being written; empty between acquisitions.")
    def currentFile(self) -> str:
        return "" if self._stage is None else cast(FileWriter, self._stage).current_file


def main() -> None:
    """Run the device server."""
    serve(StdDaqFileWriter)


if __name__ == "__main__":
    main()
