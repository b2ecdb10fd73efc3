"""GigaFRoST: 8 modules (quadrant and link) of 12-bit pixels, on 8 or 16 connections.

A module is every second row of a quadrant: `width/2` pixels by `height/4` rows. Layout: 32-byte
header, then whole rows, 12-bit pixels packed little endian. Connections 0-7 and 8-15 carry different
images at the same time.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.fields import FrameField, HeaderField, MetadataFields
from tango_stddaq.detectors.layout import (
    FRAME_HEADER_BYTES,
    Detector,
    HeaderKind,
    PacketLayout,
    PixelFormat,
    Placement,
)
from tango_stddaq.errors import ConfigError

PROTOCOL_ID: Final = 0xCB
MAX_SIDE: Final = 2016
N_MODULES: Final = 8
_MAX_PAYLOAD_BYTES: Final = 7400
_BLOCK_PIXELS: Final = 12
_PAD_BYTES: Final = 36
_DO_NOT_STORE_BIT: Final = 15
DO_NOT_STORE: Final = 1 << _DO_NOT_STORE_BIT
_EXPOSURE: Final = 1000
"""Exposure time that simulated packets tell."""

HEADER: Final = np.dtype(
    [
        ("protocol_id", "u1"),
        ("quadrant_blocks", "u1"),
        ("quadrant_rows_low", "u1"),
        ("place", "u1"),
        ("scan_id", "<u4"),
        ("frame_index", "<u4"),
        ("status_flags", "<u2"),
        ("first_row", "<u2"),
        ("image_timing", "<u8"),
        ("sync_time", "<u4"),
        ("scan_time", "<u4"),
    ]
)

FRAME_HEADER: Final = np.dtype(
    {
        "names": ["image_id", "n_missing_packets", "module_id", "swapped_rows", "link_id", "corr_mode",
                  "quadrant_id", "rpf", "do_not_store", "scan_id", "size_x", "size_y", "scan_time",
                  "sync_time", "frame_timestamp", "exposure_time", "mark", "epoch"],
        "formats": ["<u8", "<u8", "<u2", "u1", "u1", "u1", "u1", "u1", "u1", "<u4", "<u4", "<u4", "<u4",
                    "<u4", "<u8", "<u8", "<u2", "<u2"],
        "offsets": [0, 8, 16, 18, 19, 20, 21, 22, 23, 24, 28, 32, 36, 40, 44, 52, 60, 62],
        "itemsize": FRAME_HEADER_BYTES,
    }
)  # fmt: skip
"""The 64-byte frame header."""

METADATA: Final = MetadataFields(
    8,
    (
        HeaderField(1, "scan_id"),
        HeaderField(2, "scan_time"),
        HeaderField(3, "sync_time"),
        HeaderField(4, "frame_timestamp"),
        HeaderField(5, "exposure_time"),
        HeaderField(6, "do_not_store", is_inverted=True),
    ),
)
"""`GFImageMetadata`."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a module and its packets, all divisions whole.

    Attributes
    ----------
    width, height
        Of a module in pixels and rows.
    rows
        Rows in a packet; the last packet of a frame has `last_rows`.
    """

    width: int
    height: int
    rows: int

    @classmethod
    def of(cls, image_height: int, image_width: int) -> "Geometry":
        """Compute the sizes for an image.

        Raises
        ------
        ConfigError
            If a GigaFRoST has no images of this size.
        """
        for name, value, step in (
            ("image_pixel_width", image_width, 2 * _BLOCK_PIXELS),
            ("image_pixel_height", image_height, 4),
        ):
            if value % step or not 0 < value <= MAX_SIDE:
                raise ConfigError(
                    f"{name}: value {value} is not allowed: a GigaFRoST has multiples of {step} up to "
                    f"{MAX_SIDE}"
                )
        width, height = image_width // 2, image_height // 4
        blocks = width // _BLOCK_PIXELS
        cache = _MAX_PAYLOAD_BYTES // (36 * blocks) * blocks // 2
        return cls(width, height, min(cache * 48 // width, height))

    @property
    def packets(self) -> int:
        """Packets in a frame."""
        return -(-self.height // self.rows)

    @property
    def last_rows(self) -> int:
        """Rows in the last packet of a frame."""
        return self.height - (self.packets - 1) * self.rows

    def pad_bytes(self, rows: int) -> int:
        """Return the bytes that trail the pixels of a packet of `rows` rows."""
        return _PAD_BYTES if rows % 2 and self.width % 48 else 0

    def payload_bytes(self, rows: int) -> int:
        """Return the data bytes of a packet of `rows` rows."""
        return self.width * rows * 3 // 2 + self.pad_bytes(rows)

    def image_rows(self, module: int, image_height: int) -> np.ndarray:
        """Return the image row of each row of a module, (height,) int64."""
        quadrant, link = divmod(module % N_MODULES, 2)
        rows = link + 2 * np.arange(self.height, dtype=np.int64)
        is_south = quadrant < 2
        return image_height // 2 + rows if is_south else image_height // 2 - 1 - rows

    def image_column(self, module: int) -> int:
        """Return the first image column of a module: west quadrants at 0, east at the middle."""
        return module % N_MODULES // 2 % 2 * self.width


def detector(config: DaqConfig) -> Detector:
    """Describe the GigaFRoST of a configuration.

    Raises
    ------
    ConfigError
        If it has no images of this size, or not 8 or 16 connections.
    """
    if config.n_modules not in (N_MODULES, 2 * N_MODULES):
        raise ConfigError(
            f"n_modules: value {config.n_modules} is not allowed: a GigaFRoST has 8 or 16 connections"
        )
    height, width = config.sizes.shape
    geometry = Geometry.of(height, width)
    rows, last_rows = geometry.rows, geometry.last_rows
    layout = PacketLayout(
        header=HEADER,
        payload_bytes=geometry.payload_bytes(rows),
        packets_per_frame=geometry.packets,
        header_kind=HeaderKind.GIGAFROST,
        last_payload=geometry.payload_bytes(last_rows),
        pad_bytes=geometry.pad_bytes(rows),
        last_pad=geometry.pad_bytes(last_rows),
        rows_per_packet=rows,
        key_step=config.n_modules // N_MODULES,
        number_field="frame_index",
    )
    offsets = np.zeros((config.n_modules, geometry.packets * rows), np.int64)
    for connection in range(config.n_modules):
        pixels = geometry.image_rows(connection, height) * width + geometry.image_column(connection)
        offsets[connection, : geometry.height] = 2 * pixels
    return Detector(
        layout=layout,
        modules=tuple(range(N_MODULES)),
        placement=Placement(
            offsets.reshape(config.n_modules, geometry.packets, rows),
            geometry.width * 2,
            PixelFormat.PACKED_12,
            n_last_pieces=last_rows,
        ),
        frame_header=FRAME_HEADER,
        frame_fields=(
            FrameField("swapped_rows", "quadrant_rows_low", n_bits=1),
            FrameField("quadrant_id", "place", shift=6),
            FrameField("link_id", "place", shift=5, n_bits=1),
            FrameField("corr_mode", "place", shift=2, n_bits=3),
            FrameField("rpf", constant=rows),
            FrameField("do_not_store", "status_flags", shift=_DO_NOT_STORE_BIT, n_bits=1),
            FrameField("scan_id", "scan_id"),
            FrameField("size_x", constant=geometry.width),
            FrameField("size_y", constant=geometry.height),
            FrameField("scan_time", "scan_time"),
            FrameField("sync_time", "sync_time"),
            FrameField("frame_timestamp", "image_timing", n_bits=40),
            FrameField("exposure_time", "image_timing", shift=40),
        ),
        metadata=METADATA,
        packets=lambda image, image_id, connection: _packets(image, image_id, connection, geometry),
        stamp=stamp,
        more_connections=tuple(range(N_MODULES, config.n_modules)),
    )


def pack_12(pixels: np.ndarray) -> np.ndarray:
    """Pack 12-bit pixels, an even number of them a row, (..., n) -> (..., n * 3 / 2) uint8."""
    low = pixels[..., 0::2].astype(np.uint32) & 0xFFF
    both = low | (pixels[..., 1::2].astype(np.uint32) & 0xFFF) << 12
    parts = np.stack([both & 0xFF, both >> 8 & 0xFF, both >> 16], axis=-1).astype(np.uint8)
    return parts.reshape(*pixels.shape[:-1], -1)


def stamp(headers: np.ndarray, image_ids: np.ndarray) -> None:
    """Write image ids into simulated headers, times that grow with them; see `Detector.stamp`."""
    # The frame index has 32 bits and starts again behind them, as the camera's does.
    headers["frame_index"] = headers["sync_time"] = headers["scan_time"] = image_ids & 0xFFFFFFFF
    headers["image_timing"] = (image_ids & (2**40 - 1)) | _EXPOSURE << 40


def _packets(image: np.ndarray, image_id: int, connection: int, geometry: Geometry) -> np.ndarray:
    n, rows, width = geometry.packets, geometry.rows, geometry.width
    quadrant, link = divmod(connection % N_MODULES, 2)
    quadrant_rows = image.shape[0] // 2
    header = np.zeros(n, HEADER)
    header["protocol_id"] = PROTOCOL_ID
    header["quadrant_blocks"] = width // _BLOCK_PIXELS
    header["quadrant_rows_low"] = quadrant_rows & 0xFE
    header["place"] = quadrant << 6 | link << 5 | quadrant_rows >> 8 & 3
    header["scan_id"] = 1
    header["first_row"] = np.arange(n) * rows
    stamp(header, np.array([image_id], np.uint64))
    column = geometry.image_column(connection)
    own = np.zeros((n * rows, width), np.uint16)
    own[: geometry.height] = image[
        geometry.image_rows(connection, image.shape[0]), column : column + width
    ]
    result = np.zeros((n, HEADER.itemsize + geometry.payload_bytes(rows)), np.uint8)
    result[:, : HEADER.itemsize] = header.view(np.uint8).reshape(n, -1)
    packed = pack_12(own).reshape(n, -1)
    result[:, HEADER.itemsize : HEADER.itemsize + packed.shape[1]] = packed
    return result
