"""One writer's HDF5 file: `/<detector_name>/data` and `/<detector_name>/metadata`.

Layout as in the existing std_daq: `data` (n, height, width), chunked and extendible; `metadata` compound
{image_id u64, status u64}. Ours beside them: `image_shape` (n, 2), as a camera may send less than the
configured image. Pixels go by direct chunk write from the ring's slot; small images are
gathered to whole chunks first.
"""

import os
from pathlib import Path
from typing import Final

import h5py
import numpy as np

from tango_stddaq.config import Sizes
from tango_stddaq.errors import FileError
from tango_stddaq.io.ring import RingReader
from tango_stddaq.model import Dtype, Image

METADATA: Final = np.dtype([("image_id", "<u8"), ("status", "<u8")])
_METADATA_CHUNK: Final = 1024
_LIBVER: Final = ("v110", "v110")


class ImageFile:
    """A file that is being written.

    Parameters
    ----------
    path
        Must not exist.
    detector_name
        Name of the group.
    sizes
        Shape and type of the images, and how many make a chunk.

    Raises
    ------
    FileError
        If it cannot be created.
    """

    def __init__(self, path: Path, detector_name: str, sizes: Sizes) -> None:
        self.path = path
        self._sizes = sizes
        per_chunk = sizes.images_per_chunk
        try:
            self._file = h5py.File(path, "x", libver=_LIBVER)
        except FileExistsError as error:
            raise FileError(f"{path}: exists already; nothing is overwritten") from error
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: cannot be created: {_reason(error)}") from error
        try:
            group = self._file.create_group(detector_name)
            self._data = group.create_dataset(
                "data",
                shape=(0, *sizes.shape),
                maxshape=(None, *sizes.shape),
                chunks=(per_chunk, *sizes.shape),
                dtype=sizes.dtype.numpy,
                fillvalue=0,
            )
            self._metadata = group.create_dataset(
                "metadata", shape=(0,), maxshape=(None,), chunks=(_METADATA_CHUNK,), dtype=METADATA
            )
            self._shapes = group.create_dataset(
                "image_shape", shape=(0, 2), maxshape=(None, 2), chunks=(_METADATA_CHUNK, 2), dtype="<u4"
            )
        except (OSError, ValueError) as error:  # ValueError: HDF5 allows no chunk of 4 GiB
            self._file.close()
            path.unlink(missing_ok=True)
            raise FileError(f"{path}: cannot be created: {_reason(error)}") from error
        self._chunk = np.zeros((per_chunk, sizes.slot_bytes), np.uint8) if per_chunk > 1 else None
        self._rows = np.zeros(_METADATA_CHUNK, METADATA)
        self._row_shapes = np.zeros((_METADATA_CHUNK, 2), np.uint32)
        self._n_rows_stored = 0
        self._chunk_is_dirty = False
        self.n_written = 0
        """Images accepted; all of them are in the file after `flush`."""

    def append(self, image: Image, reader: RingReader) -> bool:
        """Store one image from its ring.

        Returns
        -------
        bool
            False if the image was overwritten before or while it was read: nothing is stored then.

        Raises
        ------
        FileError
            If it cannot be stored.
        """
        if not self._fits(image):
            raise FileError(
                f"image {image.image_id}: {image.height} x {image.width} {_name(image.dtype)} "
                f"{image.compression.name.lower()} does not fit the dataset of "
                f"{self._sizes.height} x {self._sizes.width} {_name(self._sizes.dtype)}"
            )
        try:
            stored = (
                self._append_to_chunk(image, reader, self._chunk)
                if self._chunk is not None
                else self._append_whole(image, reader)
            )
            if stored:
                at = self.n_written - self._n_rows_stored
                self._rows[at] = (image.image_id, image.status)
                self._row_shapes[at] = image.shape
                self.n_written += 1
                if self.n_written - self._n_rows_stored == _METADATA_CHUNK:
                    self._store_rows()
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written: {_reason(error)}") from error
        return stored

    def _fits(self, image: Image) -> bool:
        """Return whether an image is as configured, or smaller: a camera's region of interest."""
        return (
            image.height <= self._sizes.height
            and image.width <= self._sizes.width
            and image.dtype == self._sizes.dtype
            and image.size == image.height * image.width * image.dtype.numpy.itemsize
            and not image.compression
        )

    def _append_whole(self, image: Image, reader: RingReader) -> bool:
        if image.shape != self._sizes.shape:
            row = np.empty(self._sizes.slot_bytes, np.uint8)
            if not self._copy(image, reader, row):
                return False
            self._write_chunk(self.n_written, row)
            return True
        ticket = reader.ticket(image.image_id)
        if ticket is None:
            return False
        self._write_chunk(self.n_written, reader.slot(image.image_id))
        # A torn row is overwritten by the next image, or cut off when the file is closed.
        return reader.still(image.image_id, ticket)

    def _append_to_chunk(self, image: Image, reader: RingReader, chunk: np.ndarray) -> bool:
        at = self.n_written % len(chunk)
        if not self._copy(image, reader, chunk[at]):
            return False
        self._chunk_is_dirty = True
        if at == len(chunk) - 1:
            self._write_chunk(self.n_written - at, chunk)
            self._chunk_is_dirty = False
        return True

    def _copy(self, image: Image, reader: RingReader, row: np.ndarray) -> bool:
        """Copy an image to (slot_bytes,) uint8; a smaller one to the upper left corner, zeros around."""
        if image.shape == self._sizes.shape:
            return reader.copy(image.image_id, row)
        part = np.empty(image.size, np.uint8)
        if not reader.copy(image.image_id, part):
            return False
        row[:] = 0
        dtype = image.dtype.numpy
        whole = row.view(dtype).reshape(self._sizes.shape)
        whole[: image.height, : image.width] = part.view(dtype).reshape(image.shape)
        return True

    def _write_chunk(self, first: int, pixels: np.ndarray) -> None:
        needed = first + self._sizes.images_per_chunk
        if self._data.shape[0] < needed:
            self._data.resize(needed, axis=0)
        self._data.id.write_direct_chunk((first, 0, 0), pixels.reshape(-1))

    def _store_rows(self) -> None:
        new = self.n_written - self._n_rows_stored
        if new:
            self._metadata.resize(self.n_written, axis=0)
            self._metadata[self._n_rows_stored :] = self._rows[:new]
            self._shapes.resize(self.n_written, axis=0)
            self._shapes[self._n_rows_stored :] = self._row_shapes[:new]
            self._n_rows_stored = self.n_written

    def flush(self) -> None:
        """Hand everything accepted so far to the operating system: it survives this process.

        Raises
        ------
        FileError
            If it cannot be stored.
        """
        try:
            if self._chunk is not None and self._chunk_is_dirty:
                at = self.n_written % len(self._chunk)
                self._chunk[at:] = 0
                self._write_chunk(self.n_written - at, self._chunk)
                self._chunk_is_dirty = False
            self._store_rows()
            self._file.flush()
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written: {_reason(error)}") from error

    def close(self) -> None:
        """Flush, cut to the images that are there, and close.

        Raises
        ------
        FileError
            If something could not be stored; the file is closed all the same.
        """
        if not self._file:
            return
        try:
            self.flush()
            self._data.resize(self.n_written, axis=0)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written: {_reason(error)}") from error
        finally:
            try:
                self._file.close()
            except (OSError, RuntimeError) as error:
                raise FileError(f"{self.path}: cannot be closed: {_reason(error)}") from error


def read_rows(path: Path, detector_name: str) -> np.ndarray:
    """Open a finished file and return its `metadata`, after checking it against `data`.

    Raises
    ------
    FileError
        If it cannot be read, or its counts differ.
    """
    try:
        with h5py.File(path, "r") as file:
            rows: np.ndarray = file[f"{detector_name}/metadata"][()]
            n_images = file[f"{detector_name}/data"].shape[0]
    except (OSError, KeyError) as error:
        raise FileError(f"{path}: cannot be read back: {_reason(error)}") from error
    if n_images != len(rows):
        raise FileError(f"{path}: {n_images} images but {len(rows)} rows of metadata")
    return rows


def _name(dtype: Dtype) -> str:
    return dtype.name.lower()


def _reason(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)
