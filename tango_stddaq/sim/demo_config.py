"""The configuration of the demo: a small Eiger on free ports of this machine."""

import socket
from typing import Any, Final

_MODULE_POSITIONS: Final = {
    "0": [0, 0, 513, 255],
    "1": [516, 0, 1029, 255],
    "2": [0, 513, 513, 258],
    "3": [516, 513, 1029, 258],
}
_FIRST_PORT: Final = 50_010
_LAST_PORT: Final = 60_000


def eiger(name: str, bit_depth: int, n_writers: int) -> dict[str, Any]:
    """Return the configuration of an Eiger 0.5M: four half modules, the lower two upside down."""
    return {
        "detector_name": name,
        "detector_type": "eiger",
        "n_modules": 4,
        "bit_depth": bit_depth,
        "image_pixel_height": 514,
        "image_pixel_width": 1030,
        "start_udp_port": free_udp_ports(4),
        "module_positions": _MODULE_POSITIONS,
        "number_of_writers": n_writers,
        "ring_slots": 200,
        "live_stream_configs": {f"tcp://127.0.0.1:{free_tcp_port()}": {"type": "forward"}},
    }


def free_udp_ports(n: int) -> int:
    """Return the first of `n` consecutive UDP ports that are free now."""
    for start in range(_FIRST_PORT, _LAST_PORT, n):
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
