"""The 48-byte header, version 2, that Eiger and Jungfrau packets share (slsDetectorPackage)."""

from typing import Final

import numpy as np

HEADER: Final = np.dtype(
    [
        ("frame_number", "<u8"),
        ("exposure_length", "<u4"),
        ("packet_number", "<u4"),
        ("detector_specific_1", "<u8"),
        ("timestamp", "<u8"),
        ("module_id", "<u2"),
        ("row", "<u2"),
        ("column", "<u2"),
        ("detector_specific_2", "<u2"),
        ("detector_specific_3", "<u4"),
        ("round_robin", "<u2"),
        ("detector_type", "u1"),
        ("header_version", "u1"),
    ]
)

HEADER_VERSION: Final = 2
