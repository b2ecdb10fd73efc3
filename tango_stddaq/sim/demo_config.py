"""Configurations of the demo: small detectors on free ports of this machine."""

import os
import socket
from typing import Any, Final

from tango_stddaq.config import CAMERAS

_MODULE_POSITIONS: Final = {
    "0": [0, 0, 513, 255],
    "1": [516, 0, 1029, 255],
    "2": [0, 513, 513, 258],
    "3": [516, 513, 1029, 258],
}
_FIRST_PORT: Final = 50_010
_LAST_PORT: Final = 60_000


DETECTORS: Final[dict[str, dict[str, Any]]] = {
    "eiger": {
        "detector_type": "eiger",
        "n_modules": 4,
        "image_pixel_height": 514,
        "image_pixel_width": 1030,
        "module_positions": _MODULE_POSITIONS,
    },
    "jungfrau": {
        "detector_type": "jungfrau-raw",
        "n_modules": 1,
        "image_pixel_height": 512,
        "image_pixel_width": 1024,
        "module_positions": {},
    },
    "gigafrost": {
        "detector_type": "gigafrost",
        "n_modules": 8,
        "image_pixel_height": 1008,
        "image_pixel_width": 1008,
        "module_positions": {},
    },
    "pco": {
        "detector_type": "pco",
        "n_modules": 1,
        "image_pixel_height": 800,
        "image_pixel_width": 1000,
        "module_positions": {},
    },
}
"""What each simulated detector has of its own: an Eiger 0.5M of four half modules, the lower two upside
down; one Jungfrau module; a GigaFRoST with a quarter of its pixels; a PCO camera over BSREAD."""


def build(
    detector: str, name: str, bit_depth: int, n_writers: int, compression: str = "none"
) -> dict[str, Any]:
    """Return the configuration of one of `DETECTORS` on free ports; the files get `compression`."""
    own = DETECTORS[detector]
    if own["detector_type"] in CAMERAS:
        own = {**own, "camera_address": f"tcp://127.0.0.1:{free_tcp_port()}"}
    if compression != "none":
        compressor = {"method": compression, "threads": min(2, os.cpu_count() or 1)}
        own = {**own, "compressors": [compressor], "writer_source": compression.replace("_", "-")}
    return {
        **own,
        "detector_name": name,
        "bit_depth": bit_depth,
        "start_udp_port": free_udp_ports(own["n_modules"]),
        "number_of_writers": n_writers,
        "ring_slots": 200,
        "live_stream_configs": {f"tcp://127.0.0.1:{free_tcp_port()}": {"type": "forward"}},
    }


def free_udp_ports(n: int) -> int:
    """Return the first of `n` consecutive UDP ports that are free now."""
    # Two demos that start at once shall not look at the same ports.
    first = _FIRST_PORT + os.getpid() * 16 % (_LAST_PORT - _FIRST_PORT - 1024)
    for start in range(first, _LAST_PORT, n):
        handles: list[socket.socket] = []
        try:
            for port in range(start, start + n):
                handles.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                handles[-1].bind(("0.0.0.0", port))
        except OSError:
            continue
        else:
            return start
        finally:
            for handle in handles:
                handle.close()
    raise OSError("no free UDP ports")


def free_tcp_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as handle:
        handle.bind(("127.0.0.1", 0))
        return int(handle.getsockname()[1])
