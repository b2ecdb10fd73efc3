"""The simulator's packets of a cycle, beside a bare loop of sendmmsg over the same bytes.

Sockets listen, and nobody reads: what does not fit in their buffers is dropped, as for the loop.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from numba import njit, types, uint32, uintp

from benchmarks.result import Result, paired
from tango_stddaq import config as config_module
from tango_stddaq.processing.native import sendmmsg
from tango_stddaq.sim.demo_config import free_udp_ports
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.transmission import Transmission

_CYCLE = 16
_SOL_UDP, _UDP_GRO = 17, 104
_MESSAGE_BYTES = 64

_GIGAFROST = {"detector_type": "gigafrost", "n_modules": 8}
_LARGE = {"image_pixel_height": 2016, "image_pixel_width": 2016, "module_positions": {}}
_CASES: dict[str, tuple[dict[str, Any], int]] = {
    "eiger 16 bit, 1 module": (
        {"detector_type": "eiger", "n_modules": 1, "image_pixel_height": 256, "image_pixel_width": 514,
         "module_positions": {"0": [0, 0, 513, 255]}},
        1,
    ),
    "jungfrau, 1 module": (
        {"detector_type": "jungfrau-raw", "n_modules": 1, "image_pixel_height": 512,
         "image_pixel_width": 1024, "module_positions": {}},
        1,
    ),
    "gigafrost 2016x2016, 1 module": ({**_GIGAFROST, **_LARGE}, 1),
    "gigafrost 2016x2016, 8 modules": ({**_GIGAFROST, **_LARGE}, 8),
    "gigafrost 480x128, 8 modules": (
        {**_GIGAFROST, "image_pixel_height": 128, "image_pixel_width": 480, "module_positions": {}},
        8,
    ),
}  # fmt: skip
"""Configuration, and how many of the modules are sent."""


def run(quick: bool) -> list[Result]:
    """Measure a sender at full speed, with segmentation offload and without, and one at a rate."""
    results = []
    for name, (config, n_modules) in _CASES.items():
        for gso in (True, False):
            with _sender(config, n_modules, gso) as (simulated, transmission):
                how = "GSO" if gso else "sendmmsg"
                results += _full_speed(f"{name}, {how}", simulated, transmission, 5 if quick else 15)
    config, n_modules = _CASES["eiger 16 bit, 1 module"]
    with _sender({**config, "bit_depth": 8}, n_modules, True) as (simulated, _):
        for rate_hz in (1_000, 12_000):
            simulated.run(rate_hz if quick else 3 * rate_hz, rate_hz)
            results.append(
                Result(f"simulator/at {rate_hz} Hz", simulated.sent.images_per_s, "images/s", rate_hz,
                       "the rate asked for", "eiger 8 bit, 1 module, GSO")
            )  # fmt: skip
    return results


@contextmanager
def _sender(
    config: dict[str, Any], n_modules: int, gso: bool
) -> Iterator[tuple[SimulatedDetector, Transmission]]:
    with ExitStack() as stack:
        port = free_udp_ports(config["n_modules"])
        for n in range(config["n_modules"]):
            sink = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sink.bind(("127.0.0.1", port + n))
            sink.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        loaded = config_module.from_dict(
            {"detector_name": "BENCH", "bit_depth": 16, "start_udp_port": port, **config}
        )
        simulated = SimulatedDetector(loaded, cycle=_CYCLE, gso=gso)
        detector = simulated.detector
        simulated.detector = replace(detector, modules=detector.modules[:n_modules])
        yield simulated, stack.enter_context(simulated.transmission())


def _full_speed(
    name: str, simulated: SimulatedDetector, transmission: Transmission, rounds: int
) -> list[Result]:
    packets = simulated._packets
    assert packets is not None  # noqa: S101
    n_images = max(_CYCLE, 200 * 2**20 // packets.image_bytes // _CYCLE * _CYCLE)
    faults = Faults()

    def simulate() -> None:
        done = 0
        while done < n_images:
            done += transmission.send(done, n_images - done, faults)

    handles, messages = transmission._handles, transmission._messages
    per_frame = transmission._per_frame

    def bare() -> None:
        _bare(handles[0], messages.ctypes.data, per_frame, _CYCLE, n_images)

    took, limit = paired(simulate, bare, rounds)
    gb = n_images * packets.image_bytes / 1e9
    note = f"{n_images / took:,.0f} images/s"
    return [Result(f"simulator/{name}", gb / took, "GB/s", gb / limit, "bare loop", note)]


@njit(nogil=True)
def _bare(handles, messages, per_frame, n_cycle, n_images):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    n_modules = handles.size
    for image in range(n_images):
        for module in range(n_modules):
            start = ((image % n_cycle) * n_modules + module) * per_frame
            done = 0
            while done < per_frame:
                n = sendmmsg(
                    types.int32(handles[module]), uintp(messages + (start + done) * _MESSAGE_BYTES),
                    uint32(per_frame - done), types.int32(0),
                )  # fmt: skip
                done += max(n, 0)
