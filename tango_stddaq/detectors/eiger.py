"""Eiger: half modules of 512 x 256 pixels (x, y), two chips side by side, over UDP.

Layout: 48-byte header, 4096 data bytes, row major; `image_id` is the frame number. In the image the
two chips of a row stand 2 pixels apart, and a half module may be upside down.
"""

from typing import Final

import numpy as np

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors import sls
from tango_stddaq.detectors.fields import FrameField, HeaderField, MetadataFields
from tango_stddaq.detectors.layout import FRAME_HEADER_BYTES, Detector, PacketLayout, Placement
from tango_stddaq.errors import ConfigError

WIDTH: Final = 512
HEIGHT: Final = 256
CHIP_WIDTH: Final = 256
GAP_PIXELS: Final = 2
PAYLOAD_BYTES: Final = 4096
DETECTOR_TYPE: Final = 1

FRAME_HEADER: Final = np.dtype(
    {
        "names": [
            "image_id", "n_missing_packets", "module_id", "bit_depth", "pos_y", "pos_x", "exptime",
            "mark", "epoch",
        ],
        "formats": ["<u8", "<u8", "<u2", "<u2", "<u2", "<u2", "<u4", "<u2", "<u2"],
        "offsets": [0, 8, 16, 18, 20, 22, 24, 60, 62],
        "itemsize": FRAME_HEADER_BYTES,
    }
)  # fmt: skip
"""The 64-byte frame header. `exptime` lies in what is padding for existing programs."""

METADATA: Final = MetadataFields(10, (HeaderField(1, "exptime", is_ours=True),))
"""`EGImageMetadata`."""


def packet_layout(bit_depth: int) -> PacketLayout:
    """Return the datagram layout for 8, 16 or 32 bits per pixel."""
    return PacketLayout(
        header=sls.HEADER,
        payload_bytes=PAYLOAD_BYTES,
        packets_per_frame=WIDTH * HEIGHT * bit_depth // 8 // PAYLOAD_BYTES,
    )


def row_offsets(config: DaqConfig, module: int) -> np.ndarray:
    """Return where each chip row of a half module lies in the image.

    Returns
    -------
    np.ndarray
        (256, 2) int64: for each row of the frame the pixel index of its left and its right chip.
    """
    x0, y0, x1, y1 = config.module_positions[str(module)]
    step = 1 if y1 > y0 else -1
    rows = y0 + step * np.arange(HEIGHT, dtype=np.int64)
    left = rows * config.image_pixel_width + min(x0, x1)
    return np.stack([left, left + CHIP_WIDTH + GAP_PIXELS], axis=1)


def detector(config: DaqConfig) -> Detector:
    """Describe the Eiger of a configuration.

    Raises
    ------
    ConfigError
        If a module's position is not 514 x 256 pixels, or none is given.
    """
    if not config.module_positions:
        raise ConfigError("module_positions: is empty; an Eiger needs [x0, y0, x1, y1] per module")
    for key, (x0, y0, x1, y1) in config.module_positions.items():
        if (abs(x1 - x0), abs(y1 - y0)) != (WIDTH + GAP_PIXELS - 1, HEIGHT - 1):
            raise ConfigError(
                f"module_positions {key!r}: value {[x0, y0, x1, y1]} is not allowed: an Eiger half "
                f"module covers |x1-x0| == {WIDTH + GAP_PIXELS - 1} and |y1-y0| == {HEIGHT - 1}"
            )
    layout = packet_layout(config.bit_depth)
    modules = tuple(sorted(int(key) for key in config.module_positions))
    pixel_bytes = config.bit_depth // 8
    pixel_offsets = np.stack([row_offsets(config, module) for module in modules])
    placement = Placement(
        offsets=np.ascontiguousarray(
            (pixel_offsets * pixel_bytes).reshape(len(modules), layout.packets_per_frame, -1)
        ),
        piece_bytes=CHIP_WIDTH * pixel_bytes,
    )

    def packets(image: np.ndarray, image_id: int, module: int) -> np.ndarray:
        flat = image.reshape(-1)
        chips = row_offsets(config, module)[:, :, None] + np.arange(CHIP_WIDTH)
        result = np.zeros((layout.packets_per_frame, layout.packet_bytes), np.uint8)
        header = np.zeros(layout.packets_per_frame, sls.HEADER)
        stamp(header, np.array([image_id], np.uint64))
        header["packet_number"] = np.arange(layout.packets_per_frame)
        header["module_id"] = module
        header["row"] = module // 2
        header["column"] = module % 2
        header["detector_type"] = DETECTOR_TYPE
        header["header_version"] = sls.HEADER_VERSION
        result[:, : sls.HEADER.itemsize] = header.view(np.uint8).reshape(layout.packets_per_frame, -1)
        pixels = flat[chips.reshape(-1)].astype(f"<u{pixel_bytes}", copy=False)
        result[:, sls.HEADER.itemsize :] = pixels.view(np.uint8).reshape(layout.packets_per_frame, -1)
        return result

    return Detector(
        layout=layout,
        modules=modules,
        placement=placement,
        frame_header=FRAME_HEADER,
        frame_fields=(
            FrameField("bit_depth", constant=config.bit_depth),
            FrameField("pos_y", "column"),
            FrameField("pos_x", "row"),
            FrameField("exptime", "exposure_length"),
        ),
        metadata=METADATA,
        packets=packets,
        stamp=stamp,
    )


def stamp(headers: np.ndarray, image_ids: np.ndarray) -> None:
    """Write image ids into simulated headers; see `Detector.stamp`."""
    headers["frame_number"] = image_ids
