"""The GigaFRoST metadata file: `/<detector_name>/metadata`, one row for each image, and no pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import FileError
from tango_stddaq.io.creation import FILE_ERRORS, FileRules, reason_of
from tango_stddaq.io.growing_file import GrowingFile, is_closed
from tango_stddaq.io.rows import GIGAFROST_METADATA, GrowingRows


class MetadataFile(Closing):
    """A metadata file that is being written; as safe as `ImageFile`.

    Raises
    ------
    FileError
        If it cannot be created.
    """

    def __init__(self, path: Path, config: DaqConfig, rules: FileRules) -> None:
        self.path = path
        self._file = GrowingFile(path, rules)
        try:
            group = self._file.h5.create_group(config.detector_name)
            self._metadata = GrowingRows(group, "metadata", GIGAFROST_METADATA)
        except FILE_ERRORS as error:
            self._file.discard()
            raise FileError(f"{path}: cannot be created: {reason_of(error)}") from error
        self._file.publish()
        self._rows: list[tuple[Any, ...]] = []
        self.n_written = 0
        self.n_lost = 0

    def extend(self, images: Sequence[pb.ImageMetadata]) -> None:
        """Add the rows of images; they are in the file after `flush`.

        Raises
        ------
        FileError
            If there is no room for them; none of them is added.
        """
        try:  # with more room than is needed to flush what was added before
            self._file.make_room(len(images), rows_bytes=self._room_for(len(images)))
        except FILE_ERRORS as error:
            raise FileError(f"{self.path}: cannot be written: {reason_of(error)}") from error
        for image in images:
            gf = image.gf
            self._rows.append(
                (
                    image.image_id,
                    gf.scan_id,
                    gf.scan_time,
                    gf.sync_time,
                    gf.frame_timestamp,
                    gf.exposure_time,
                )
            )
        self.n_written += len(images)

    def _room_for(self, n_more: int) -> int:
        return self._metadata.room_for(len(self._rows) + n_more)

    def lost_ranges(self) -> list[tuple[int, int]]:
        """Return no images: metadata come with the message, and cannot be overwritten."""
        return []

    def flush(self) -> None:
        """Hand all rows to the operating system.

        Raises
        ------
        FileError
            If they cannot be stored.
        """
        if not self._rows:
            return
        try:
            self._file.make_room(rows_bytes=self._room_for(0))
            self._metadata.append(np.array(self._rows, GIGAFROST_METADATA))
            self._rows = []
        except FILE_ERRORS as error:
            raise FileError(f"{self.path}: cannot be written: {reason_of(error)}") from error

    def close(self) -> None:
        """Flush and close; harmless when called again. Errors as in `flush`."""
        if not self._file.is_open:
            return
        try:
            self.flush()
        except FileError:
            self._file.let_go()
            raise
        self._file.close()


def check_stored(path: Path, detector_name: str, n_images: int) -> None:
    """Open a finished metadata file again and count its rows.

    Raises
    ------
    FileError
        If it cannot be read, was not closed, or does not have a row for each of `n_images`.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            n_rows = len(file[f"{detector_name}/metadata"])
    except (OSError, KeyError) as error:
        raise FileError(f"{path}: cannot be read back: {reason_of(error)}") from error
    if not is_closed(path):
        raise FileError(f"{path}: was not closed by its writer; it holds {n_rows} rows")
    if n_rows != n_images:
        raise FileError(f"{path}: {n_rows} rows, but {n_images} images were recorded")
