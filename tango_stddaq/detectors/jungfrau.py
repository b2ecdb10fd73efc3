"""Jungfrau: modules of 1024 x 512 pixels (x, y), 16 bit, 128 packets of four rows each.

Layout: 48-byte header, 8192 data bytes. `image_id` is the bunch id, frames are told apart by the frame
number. *raw*: pixels as they are; *converted*: energies as float32, see `processing/convert.py`.
"""

from typing import Final

import numpy as np

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors import sls
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

WIDTH: Final = 1024
HEIGHT: Final = 512
PAYLOAD_BYTES: Final = 8192
ROWS_PER_PACKET: Final = PAYLOAD_BYTES // 2 // WIDTH
DETECTOR_TYPE: Final = 3

LAYOUT: Final = PacketLayout(
    header=sls.HEADER,
    payload_bytes=PAYLOAD_BYTES,
    packets_per_frame=HEIGHT // ROWS_PER_PACKET,
    header_kind=HeaderKind.SLS_BUNCH_ID,
)

FRAME_HEADER: Final = np.dtype(
    {
        "names": ["image_id", "n_missing_packets", "module_id", "id", "frame_index", "daq_rec",
                  "module_number", "mark", "epoch"],
        "formats": ["<u8", "<u8", "<u2", "<u8", "<u8", "<u8", "<u8", "<u2", "<u2"],
        "offsets": [0, 8, 16, 18, 26, 34, 42, 60, 62],
        "itemsize": FRAME_HEADER_BYTES,
    }
)  # fmt: skip
"""The 64-byte frame header."""

FRAME_FIELDS: Final = (
    FrameField("id", "image_id", is_copy=True),
    FrameField("frame_index", "frame_number"),
    FrameField("daq_rec", "detector_specific_3"),
    FrameField("module_number", "module_id", is_copy=True),
)
METADATA: Final = MetadataFields(9, (HeaderField(1, "daq_rec"),))
"""`JFImageMetadata`."""


def positions(config: DaqConfig) -> dict[int, tuple[int, int]]:
    """Return the upper left corner (x, y) of each module; without positions they are stacked.

    Raises
    ------
    ConfigError
        If a module does not cover 1024 x 512 pixels, or the stack is not as high as the image.
    """
    for key, (x0, y0, x1, y1) in config.module_positions.items():
        if (x1 - x0, y1 - y0) != (WIDTH - 1, HEIGHT - 1):
            raise ConfigError(
                f"module_positions {key!r}: value {[x0, y0, x1, y1]} is not allowed: a Jungfrau module "
                f"covers x1-x0 == {WIDTH - 1} and y1-y0 == {HEIGHT - 1}"
            )
    if config.module_positions:
        return {int(key): (box[0], box[1]) for key, box in sorted(config.module_positions.items())}
    shape = (config.n_modules * HEIGHT, WIDTH)
    if shape != config.sizes.shape:
        raise ConfigError(
            f"module_positions: is empty; {config.n_modules} modules one below the other make an image "
            f"of {shape[1]} x {shape[0]} pixels (width x height), the configuration says "
            f"{config.image_pixel_width} x {config.image_pixel_height}"
        )
    return {module: (0, module * HEIGHT) for module in range(config.n_modules)}


def detector(config: DaqConfig) -> Detector:
    """Describe the Jungfrau of a configuration.

    Raises
    ------
    ConfigError
        If its geometry or bit depth is wrong.
    """
    if config.bit_depth != 16:
        raise ConfigError(f"bit_depth: value {config.bit_depth} is not allowed: a Jungfrau has 16")
    corners = positions(config)
    modules = tuple(sorted(corners))
    pixel_bytes = config.sizes.dtype.numpy.itemsize
    rows = np.arange(HEIGHT, dtype=np.int64)
    pixels = np.stack(
        [(corners[m][1] + rows) * config.image_pixel_width + corners[m][0] for m in modules]
    )
    offsets = (pixels * pixel_bytes).reshape(len(modules), LAYOUT.packets_per_frame, -1)
    converted = config.detector_type == "jungfrau-converted"
    if config.image_pixel_width == WIDTH and not converted:
        # The rows of a packet follow one another in the image: one piece instead of four.
        placement = Placement(np.ascontiguousarray(offsets[:, :, :1]), PAYLOAD_BYTES)
    else:
        placement = Placement(
            np.ascontiguousarray(offsets),
            WIDTH * pixel_bytes,
            PixelFormat.GAIN if converted else PixelFormat.COPY,
            fill_byte=0xFF if converted else 0,
        )
    return Detector(
        layout=LAYOUT,
        modules=modules,
        placement=placement,
        frame_header=FRAME_HEADER,
        frame_fields=FRAME_FIELDS,
        metadata=METADATA,
        packets=lambda image, image_id, module: packets(image, image_id, module, *corners[module]),
        stamp=stamp,
    )


def stamp(headers: np.ndarray, image_ids: np.ndarray) -> None:
    """Write image ids into simulated headers: the frame number is the id, and so is the bunch id."""
    headers["frame_number"] = image_ids
    headers["detector_specific_1"] = image_ids.astype("<f8").view("<u8")


def packets(image: np.ndarray, image_id: int, module: int, x: int, y: int) -> np.ndarray:
    """Cut a module at (x, y) out of a raw image and into datagrams; see `Detector.packets`."""
    n = LAYOUT.packets_per_frame
    header = np.zeros(n, sls.HEADER)
    stamp(header, np.array([image_id], np.uint64))
    header["packet_number"] = np.arange(n)
    header["module_id"] = module
    header["detector_type"] = DETECTOR_TYPE
    header["header_version"] = sls.HEADER_VERSION
    result = np.zeros((n, LAYOUT.packet_bytes), np.uint8)
    result[:, : sls.HEADER.itemsize] = header.view(np.uint8).reshape(n, -1)
    pixels = np.ascontiguousarray(image[y : y + HEIGHT, x : x + WIDTH], "<u2")
    result[:, sls.HEADER.itemsize :] = pixels.view(np.uint8).reshape(n, -1)
    return result
