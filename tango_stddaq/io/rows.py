"""What a file says of each image beside its pixels: types of rows, and datasets that grow by rows."""

from typing import Any, Final

import h5py
import numpy as np

from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.registry import DETECTORS, detector_of

METADATA: Final = np.dtype([("image_id", "<u8"), ("status", "<u8")])
"""`metadata`, as existing programs know it."""
STATUS_VALUES: Final = "1 good_image, 2 missing_packets, 3 id_missmatch"

_NAME: Final = "S256"
_DETAILS_OF_ALL: Final = [
    ("received_ns", "<u8"),
    ("n_missing_packets", "<u4"),
    ("n_missing_modules", "<u4"),
    ("height", "<u4"),
    ("width", "<u4"),
]
_GIGAFROST: Final = [
    ("scan_id", "<u4"),
    ("scan_time", "<u4"),
    ("sync_time", "<u4"),
    ("frame_timestamp", "<u8"),
    ("exposure_time", "<u8"),
    ("store_image", "u1"),
]
_EIGER: Final = [("exptime", "<u8")]
_JUNGFRAU: Final = [("daq_rec", "<u8")]
_CAMERA: Final = [
    ("global_timestamp_sec", "<u8"),
    ("global_timestamp_ns", "<u8"),
    ("bsread_name", _NAME),
]
_KINDS: Final = {
    "gigafrost": ("gf", _GIGAFROST),
    "eiger": ("eg", _EIGER),
    "jungfrau": ("jf", _JUNGFRAU),
    "jungfrau-raw": ("jf", _JUNGFRAU),
    "jungfrau-converted": ("jf", _JUNGFRAU),
    "pco": ("pco", _CAMERA),
    "bsread": ("pco", _CAMERA),
}
UNITS: Final = {
    "received_ns": "ns",
    "global_timestamp_sec": "s",
    "global_timestamp_ns": "ns",
}
GIGAFROST_METADATA: Final = np.dtype(
    [
        ("image_id", "<u8"),
        ("scan_id", "<u8"),
        ("scan_time", "<u4"),
        ("sync_time", "<u4"),
        ("frame_timestamp", "<u8"),
        ("exposure_time", "<u8"),
    ]
)
"""`metadata` of the GigaFRoST metadata file, as existing programs know it."""

LOST: Final = np.dtype([("first_id", "<u8"), ("last_id", "<u8"), ("reason", "S16")])
"""Images of one reason, `first_id` to `last_id`, both included."""

ROWS_PER_CHUNK: Final = 4096
_PAGE_BYTES: Final = 4096
_MAX_CHUNK_BYTES: Final = 2**18


class Details:
    """Reads the details of an image from its message, for one kind of detector.

    Attributes
    ----------
    dtype
        A row of `details`.
    mask
        A row of `missing_packets`: one bit for each packet of an image; None for a camera.
    """

    def __init__(self, config: DaqConfig) -> None:
        self._kind, own = _KINDS[config.detector_type]
        self._names = [name for name, _ in own]
        self.dtype = np.dtype([*_DETAILS_OF_ALL, *own])
        self.mask: np.dtype | None = None
        if config.detector_type in DETECTORS:
            detector = detector_of(config)
            n_words = len(detector.modules) * detector.layout.mask_words
            self.mask = np.dtype([("image_id", "<u8"), ("mask", "<u8", (n_words,))])

    def of(self, image: pb.ImageMetadata) -> tuple[Any, ...]:
        """Return the row of an image."""
        row = (
            image.received_ns,
            image.n_missing_packets,
            image.n_missing_modules,
            image.height,
            image.width,
        )
        own = getattr(image, self._kind)
        if self._kind == "eg":
            return (*row, own.exptime)
        if self._kind == "jf":
            return (*row, own.daq_rec)
        if self._kind == "pco":
            return (*row, own.global_timestamp_sec, own.global_timestamp_ns, own.bsread_name.encode())
        return (*row, *(getattr(own, name) for name in self._names))


class GrowingRows:
    """A dataset of rows that only grows.

    Parameters
    ----------
    group, name
        Where it is created.
    dtype
        Of a row.
    fill
        What a reader of a virtual dataset sees where there is no row yet.
    compressed
        For rows that are long and alike.
    rows_per_chunk
        Fewer where there are few rows, mostly none.
    """

    def __init__(
        self,
        group: Any,
        name: str,
        dtype: np.dtype,
        fill: Any = None,
        compressed: bool = False,
        rows_per_chunk: int = ROWS_PER_CHUNK,
    ) -> None:
        filters = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compressed else {}
        self._per_chunk = max(1, min(rows_per_chunk, _MAX_CHUNK_BYTES // dtype.itemsize))
        self._chunk_bytes = self._per_chunk * dtype.itemsize + _PAGE_BYTES
        self._compressed = compressed
        self.dataset = group.create_dataset(
            name,
            shape=(0,),
            maxshape=(None,),
            chunks=(self._per_chunk,),
            dtype=dtype,
            fillvalue=fill,
            **filters,
        )
        self._id = self.dataset.id
        self.n_rows = 0

    def room_for(self, n_rows: int) -> int:
        """Return how much the file may grow, at most, when so many rows are appended."""
        n_chunks = -(-(self.n_rows + n_rows) // self._per_chunk) - -(-self.n_rows // self._per_chunk)
        return (
            n_chunks + self._compressed
        ) * self._chunk_bytes  # a compressed chunk moves when it grows

    def append(self, rows: np.ndarray) -> None:
        """Add rows and hand them to the operating system.

        Raises
        ------
        OSError
            If the file cannot take them.
        """
        end = self.n_rows + len(rows)
        self._id.set_extent((end,))
        target = self._id.get_space()
        target.select_hyperslab((self.n_rows,), (len(rows),))
        self._id.write(h5py.h5s.create_simple((len(rows),)), target, rows)
        self.n_rows = end
        self._id.flush()
