"""One writer's HDF5 file: `/<detector_name>/data`, `/<detector_name>/metadata`, and our own beside them.

`data` (n, height, width) and `metadata` {image_id u64, status u64} are those of the existing std_daq.
Ours are `image_id` and `details`, with a row for each image, `missing_packets`, one for each
incomplete image, and `lost`, with the images that this writer lost. docs/files.md describes them.

Uncompressed pixels go from the slots of the ring to the file in one call of the kernel for many images:
HDF5 gives the place, and is not asked again until the chunk is full. Compressed ones are chunks of their
own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import hdf5plugin
import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.blosc2_frame import frame_of_chunk
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import FileError
from tango_stddaq.io.creation import FILE_ERRORS, FileRules, reason_of
from tango_stddaq.io.growing_file import GrowingFile
from tango_stddaq.io.ring import RingReader
from tango_stddaq.io.rows import LOST, METADATA, STATUS_VALUES, UNITS, Details, GrowingRows
from tango_stddaq.model import Compression, Dtype, Image, Status
from tango_stddaq.stats import IdRanges, LossReason

MAX_ROWS_WAITING: Final = 1024
"""Images whose rows wait in memory, at most, before they are written."""
MAX_CHUNK_BYTES: Final = 2**32 - 1
_FEW_ROWS: Final = 128
_MAX_RUN_BYTES: Final = 64 * 2**20
_NO_FILTER: Final = 1
_FILTERS: Final = {
    Compression.H5BITSHUFFLE_LZ4: lambda: hdf5plugin.Bitshuffle(nelems=0, cname="lz4"),
    Compression.BLOSC2: lambda: hdf5plugin.Blosc2(
        cname="lz4", clevel=5, filters=hdf5plugin.Blosc2.BITSHUFFLE
    ),
}

Messages = Sequence[pb.ImageMetadata]


class ImageFile(Closing):
    """A file that is being written.

    Parameters
    ----------
    path
        Must not exist, unless `rules` allow to replace it.
    config
        Shape and type of the images, how many make a chunk, and the name of the group.
    compression
        How images come from the ring; single ones may be uncompressed.
    details
        What is stored of each image; made from `config` if not given.

    Raises
    ------
    FileError
        If it cannot be created.
    """

    def __init__(
        self,
        path: Path,
        config: DaqConfig,
        compression: Compression = Compression.NONE,
        rules: FileRules | None = None,
        details: Details | None = None,
    ) -> None:
        self.path = path
        self._compression = compression
        self._sizes = sizes = config.sizes
        self._details = details or Details(config)
        self._per_chunk = 1 if compression else sizes.images_per_chunk
        whole = (sizes.height, sizes.width, sizes.slot_bytes, int(sizes.dtype))
        self._whole = whole
        if self._per_chunk * sizes.slot_bytes > MAX_CHUNK_BYTES:
            raise FileError(
                f"{path}: cannot be created: a chunk of {self._per_chunk * sizes.slot_bytes} bytes; "
                "HDF5 allows less than 4 GiB: lower gpfs_block_size"
            )
        self._file = GrowingFile(path, rules or FileRules())
        try:
            self._create_datasets(config)
        except FILE_ERRORS as error:
            self._file.discard()
            raise FileError(f"{path}: cannot be created: {reason_of(error)}") from error
        self._file.publish()
        self._offset = 0
        self._rows: list[tuple[int, int]] = []
        self._details_rows: list[tuple[Any, ...]] = []
        self._masks: list[tuple[int, np.ndarray]] = []
        self._packed: np.ndarray | None = None
        self._lost = IdRanges()
        self.n_written = 0
        """Images accepted; all of them are in the file after `flush`."""
        self.n_lost = 0
        """Images that were overwritten in the ring before or while they were read."""

    def _create_datasets(self, config: DaqConfig) -> None:
        group = self._file.h5.create_group(config.detector_name)
        self._data = _create_data(group, config, self._per_chunk, self._compression)
        self._ids = GrowingRows(group, "image_id", np.dtype("<u8"), fill=2**64 - 1)
        is_camera = "bsread_name" in (self._details.dtype.names or ())
        self._detail_rows = GrowingRows(group, "details", self._details.dtype, compressed=is_camera)
        self._mask_rows = (
            GrowingRows(group, "missing_packets", self._details.mask, rows_per_chunk=_FEW_ROWS)
            if self._details.mask
            else None
        )
        self._lost_rows = GrowingRows(group, "lost", LOST, rows_per_chunk=_FEW_ROWS)
        self._metadata = GrowingRows(group, "metadata", METADATA, np.array((2**64 - 1, 0), METADATA))
        self._metadata.dataset.attrs["status_values"] = STATUS_VALUES
        for name in self._details.dtype.names or ():
            if name in UNITS:
                self._detail_rows.dataset.attrs[f"{name}_units"] = UNITS[name]

    # -- images ------------------------------------------------------------------------------------

    def append(self, image: Image, reader: RingReader) -> bool:
        """Store one image; returns whether it was still in the ring. Errors as in `extend`."""
        return self.extend([image_metadata.to_message(image)], reader) == 1

    def extend(self, images: Messages, reader: RingReader) -> int:
        """Store images from their ring, in their order.

        Returns
        -------
        int
            How many are stored: those that were overwritten before or while they were read are not, and
            are noted as lost.

        Raises
        ------
        FileError
            If one does not fit or cannot be stored. Those before it are stored.
        """
        before = self.n_written
        try:
            at = 0
            while at < len(images):
                at += self._next(images, at, reader)
                if len(self._rows) >= MAX_ROWS_WAITING:
                    self._store_rows()
        except FILE_ERRORS as error:
            raise FileError(f"{self.path}: cannot be written: {reason_of(error)}") from error
        return self.n_written - before

    def _next(self, images: Messages, at: int, reader: RingReader) -> int:
        """Store the image at `at`, and those behind it that go with it; returns how many were done."""
        image = images[at]
        if image.compression:
            self._append_chunk(image, reader)
            return 1
        if self._compression or not self._is_whole(image):
            self._append_alone(image, reader)
            return 1
        room = self._per_chunk - self.n_written % self._per_chunk
        most = max(1, min(room, _MAX_RUN_BYTES // self._sizes.slot_bytes))
        end = at + 1
        while end < len(images) and end - at < most and self._is_whole(images[end]):
            end += 1
        return self._append_run(images[at:end], reader)

    def _is_whole(self, image: pb.ImageMetadata) -> bool:
        found = (image.height, image.width, image.size, image.dtype)
        return found == self._whole and not image.compression

    def _append_run(self, images: Messages, reader: RingReader) -> int:
        """Write whole images side by side; returns how many are done, stored or lost."""
        tickets = [reader.ticket(image.image_id) for image in images]
        n_there = next((k for k, ticket in enumerate(tickets) if ticket is None), len(images))
        if n_there == 0:
            self.note_lost(images[0].image_id)
            return 1
        there = images[:n_there]
        self._write(there, [reader.slot(image.image_id) for image in there])
        for k, image in enumerate(there):
            ticket = tickets[k]
            if ticket is None or not reader.still(image.image_id, ticket):
                # Its place is taken by the next image; those behind it are written again.
                self.note_lost(image.image_id)
                return k + 1
            self._note(image, reader)
        return n_there

    def _write(self, images: Messages, slots: list[np.ndarray]) -> None:
        slot_bytes = self._sizes.slot_bytes
        in_chunk = self.n_written % self._per_chunk
        if in_chunk == 0:
            self._start_chunk(self._per_chunk * slot_bytes)
        self._file.write_at(slots, self._offset + in_chunk * slot_bytes)

    def _start_chunk(self, n_bytes: int) -> None:
        n_rows = min(self._per_chunk, MAX_ROWS_WAITING)
        self._file.make_room(n_bytes, not self._compression, self._room_for(n_rows))
        self._data.set_extent((self.n_written + 1, *self._sizes.shape))
        if not self._compression:
            self._offset = self._data.get_chunk_info_by_coord((self.n_written, 0, 0)).byte_offset

    def _append_alone(self, image: pb.ImageMetadata, reader: RingReader) -> None:
        """Store a smaller image (a camera's region of interest), or one that would not compress."""
        self._check_fits(image)
        part = np.empty(image.size, np.uint8)
        if not reader.copy(image.image_id, part):
            self.note_lost(image.image_id)
            return
        pixels = part
        if image.size != self._sizes.slot_bytes:
            dtype = self._sizes.dtype.numpy
            whole = np.zeros(self._sizes.shape, dtype)
            whole[: image.height, : image.width] = part.view(dtype).reshape(image.height, image.width)
            pixels = whole.reshape(-1).view(np.uint8)
        if self._compression:
            self._start_chunk(pixels.nbytes)
            self._data.write_direct_chunk((self.n_written, 0, 0), pixels, _NO_FILTER)
        else:
            self._write([image], [pixels])
        self._note(image, reader)

    def _append_chunk(self, image: pb.ImageMetadata, reader: RingReader) -> None:
        """Store a compressed image as it is."""
        self._check_fits(image)
        if self._packed is None:
            self._packed = np.empty(self._sizes.slot_bytes, np.uint8)  # once: new pages cost time
        part = self._packed[: image.size]
        if not reader.copy(image.image_id, part):
            self.note_lost(image.image_id)
            return
        chunk = _chunk_of(part, self._compression)
        self._start_chunk(len(chunk))
        self._data.write_direct_chunk((self.n_written, 0, 0), chunk)
        self._note(image, reader)

    def _check_fits(self, image: pb.ImageMetadata) -> None:
        """Refuse an image that is not as configured, or smaller: a camera's region of interest.

        Raises
        ------
        FileError
            Saying what it is and what it should be.
        """
        height, width, slot_bytes, dtype = self._whole
        if image.compression:
            fits = (image.height, image.width) == (height, width) and image.size <= slot_bytes
            fits = fits and int(image.compression) == self._compression
        else:
            fits = image.height <= height and image.width <= width
            fits = fits and image.size * height * width == image.height * image.width * slot_bytes
        if not (fits and image.dtype == dtype):
            kind = Compression(image.compression).name.lower()
            raise FileError(
                f"image {image.image_id}: {image.height} x {image.width} "
                f"{Dtype(image.dtype).name.lower()} {kind} does not fit the dataset of "
                f"{height} x {width} {Dtype(dtype).name.lower()} "
                f"{self._compression.name.lower()}"
            )

    def _note(self, image: pb.ImageMetadata, reader: RingReader) -> None:
        self._rows.append((image.image_id, image.status))
        self._details_rows.append(self._details.of(image))
        self.n_written += 1
        if int(image.status) != Status.GOOD_IMAGE and self._mask_rows is not None:
            self._note_missing(image.image_id, reader)

    def _note_missing(self, image_id: int, reader: RingReader) -> None:
        """Keep which packets of an incomplete image are missing, where the ring knows it."""
        ticket = reader.ticket(image_id)
        mask = reader.missing_packets(image_id)
        if mask is None or ticket is None or self._details.mask is None:
            return
        if mask.shape == self._details.mask["mask"].shape:
            mask = mask.copy()
            if reader.still(image_id, ticket):
                self._masks.append((image_id, mask))

    def note_lost(self, image_id: int) -> None:
        """Note an image that cannot be stored, because its pixels are not there."""
        self._lost.add(image_id)
        self.n_lost += 1

    def lost_ranges(self) -> list[tuple[int, int]]:
        """Return the images lost that are not in `lost` yet, as (first, last), both included."""
        return self._lost.ranges()

    def _room_for(self, n_more: int) -> int:
        """Return what the rows that wait, and those of so many images to come, need in the file."""
        n_images = len(self._rows) + n_more
        room = sum(rows.room_for(n_images) for rows in (self._ids, self._detail_rows, self._metadata))
        if self._mask_rows is not None:
            room += self._mask_rows.room_for(len(self._masks) + n_more)
        return room + self._lost_rows.room_for(len(self._lost.ranges()) + n_more)

    # -- rows --------------------------------------------------------------------------------------

    def _store_rows(self) -> None:
        """Write what waits, pixels before the rows that name them: a row in the file has its pixels."""
        if self._rows:
            self._file.make_room(rows_bytes=self._room_for(0))
            self._data.set_extent((self.n_written, *self._sizes.shape))
            self._data.flush()
            rows = np.array(self._rows, METADATA)
            if self._masks and self._mask_rows is not None:
                self._mask_rows.append(np.array(self._masks, self._details.mask))
                self._masks = []
            self._detail_rows.append(np.array(self._details_rows, self._details.dtype))
            self._metadata.append(rows)
            # Last: whoever follows the master file sees images by these, and what is seen must be whole,
            # also if this process is killed between two of these lines.
            self._ids.append(np.ascontiguousarray(rows["image_id"]))
            self._rows, self._details_rows = [], []
        if self._lost.count:
            reason = LossReason.OVERWRITTEN.encode()
            lost = [(first, last, reason) for first, last in self._lost.ranges()]
            self._lost_rows.append(np.array(lost, LOST))
            self._lost = IdRanges()

    def flush(self) -> None:
        """Hand everything accepted so far to the operating system: it survives this process.

        Raises
        ------
        FileError
            If it cannot be stored.
        """
        try:
            self._store_rows()
        except FILE_ERRORS as error:
            raise FileError(f"{self.path}: cannot be written: {reason_of(error)}") from error

    def close(self) -> None:
        """Flush, cut to the images that are there, and close; harmless when called again.

        Raises
        ------
        FileError
            If something could not be stored; the file is closed all the same.
        """
        if not self._file.is_open:
            return
        try:
            self._store_rows()
            self._data.set_extent((self.n_written, *self._sizes.shape))
            self._data.flush()
        except FILE_ERRORS as error:
            self._file.let_go()
            raise FileError(f"{self.path}: cannot be written: {reason_of(error)}") from error
        self._file.close()

    def let_go(self) -> None:
        """Close without storing what waits: after an error, nothing more is asked of a broken file."""
        self._file.let_go()


def _create_data(group: Any, config: DaqConfig, per_chunk: int, compression: Compression) -> Any:
    """Create `data`; without a filter its chunks get their places as soon as it grows."""
    sizes = config.sizes
    space = h5py.h5s.create_simple((0, *sizes.shape), (h5py.h5s.UNLIMITED, *sizes.shape))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((per_chunk, *sizes.shape))
    if compression:
        made = _FILTERS[compression]()
        properties.set_filter(made.filter_id, h5py.h5z.FLAG_OPTIONAL, made.filter_options)
    else:
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    kind = h5py.h5t.py_create(sizes.dtype.numpy)
    return h5py.h5d.create(group.id, b"data", kind, space, properties)


def _chunk_of(part: np.ndarray, compression: Compression) -> np.ndarray:
    """Turn the bytes in the ring into the chunk that the filter of the file expects."""
    if compression is Compression.BLOSC2:
        return np.frombuffer(frame_of_chunk(part.tobytes()), np.uint8)
    return part
