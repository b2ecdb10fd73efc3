"""File writer: stores the images that the writer driver hands to it in one HDF5 file."""

from pathlib import Path

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError, FileError
from tango_stddaq.io.creation import FileRules
from tango_stddaq.io.image_file import ImageFile
from tango_stddaq.io.image_source import PixelSource
from tango_stddaq.io.rows import Details
from tango_stddaq.model import COMPRESSED_SUFFIXES, Compression
from tango_stddaq.processing.hosts import writer_channels
from tango_stddaq.stages.arrivals import Arrivals
from tango_stddaq.stages.writer_base import Messages, WriterStage


class FileWriter(WriterStage):
    """Writer `writer_id` of `number_of_writers`.

    Parameters
    ----------
    suffix
        Which ring holds the pixels; it says whether they are compressed.
    output_roots
        Directories below which files may be written; none means anywhere.
    """

    name = "file-writer"
    label_tag = "id"

    def __init__(
        self,
        config: DaqConfig,
        writer_id: int,
        suffix: str = "image",
        output_roots: tuple[str, ...] = (),
    ) -> None:
        if writer_id < 0:
            raise ConfigError(f"writer id {writer_id}: allowed is 0 or above")
        super().__init__(config, str(writer_id), str(writer_id), output_roots)
        self.writer_id = writer_id
        self._suffix = config.ring_of(suffix)
        self._compression = COMPRESSED_SUFFIXES.get(self._suffix, Compression.NONE)
        self._details: Details | None = None
        self._pixels: PixelSource | None = None
        self.source = suffix
        self._arrivals: Arrivals | None = None

    def _open(self) -> None:
        self._details = Details(self.config)
        super()._open()
        self._pixels = PixelSource(self.config, self._suffix)
        # The ring is attached before the first image needs it: its page tables are large.
        self._pixels.reader()
        if writer_channels(self.config, self.writer_id) is not None:
            self._arrivals = Arrivals(self.config, self._suffix)

    def _new_file(self, path: Path, rules: FileRules) -> ImageFile:
        if self._arrivals is not None:
            self._arrivals.forget()
        return ImageFile(path, self.config, self._compression, rules, self._details)

    def _store(self, images: Messages) -> None:
        if self._arrivals is not None:
            images, missing = self._arrivals.wait_for(images, self._goes_on)
            if isinstance(self._file, ImageFile):
                for image_id in missing:
                    self._file.note_lost(image_id)
        reader = self._pixels.reader() if self._pixels is not None else None
        if reader is None:
            raise FileError(f"the ring {self.config.segment(self._suffix)} is not there")
        if isinstance(self._file, ImageFile):
            self._file.extend(images, reader)

    def _goes_on(self) -> bool:
        """Let the driver know that this writer lives while it waits; False when it shall end."""
        self._tell_progress()
        return not self._stop.is_set()

    def _close(self) -> None:
        super()._close()
        if self._pixels is not None:
            self._pixels.close()
            self._pixels = None
        if self._arrivals is not None:
            self._arrivals.close()
            self._arrivals = None
