"""Metadata writer: stores what a GigaFRoST says of each image in one HDF5 file, beside the pixels'."""

from pathlib import Path

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io.creation import FileRules
from tango_stddaq.io.metadata_file import MetadataFile
from tango_stddaq.io.rows import GIGAFROST_METADATA
from tango_stddaq.stages.writer_base import Messages, WriterStage


class MetaWriter(WriterStage):
    """The metadata writer of a GigaFRoST.

    Parameters
    ----------
    output_roots
        Directories below which files may be written; none means anywhere.
    """

    name = "meta-writer"

    def __init__(self, config: DaqConfig, output_roots: tuple[str, ...] = ()) -> None:
        if config.detector_type != "gigafrost":
            raise ConfigError(
                f"detector_type {config.detector_type}: only a gigafrost has a metadata writer"
            )
        super().__init__(config, "meta", "", output_roots)
        self._image_bytes = GIGAFROST_METADATA.itemsize

    def _new_file(self, path: Path, rules: FileRules) -> MetadataFile:
        return MetadataFile(path, self.config, rules)

    def _store(self, images: Messages) -> None:
        if isinstance(self._file, MetadataFile):
            self._file.extend(images)
