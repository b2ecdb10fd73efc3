"""Receive chain (receiver and synchronizer, a process each) beside a bare receive loop.

The sender is a process too, with packets made in advance and segmentation in the kernel. Two bare loops
take the same packets into as much memory as the ring has, one behind the other, and look at none of
them: one takes the bundles that the kernel hands over where it is asked to (UDP_GRO), as the receiver
does, the other single packets, 32 a call, as a plain recvmmsg loop does. *rate* is the highest of a few
rates at which nothing was lost; *CPU* is measured at half the rate of the loop with bundles.
"""

import socket
import time
from functools import partial
from typing import Any

import numpy as np
from numba import njit, types, uint32, uint64, uintp

from benchmarks.processes import Child, counters_of, cpu_s, stages
from benchmarks.result import Result
from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.io.udp import UdpSocket
from tango_stddaq.processing.native import poll, recvmmsg
from tango_stddaq.sim.demo_config import free_udp_ports
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import UdpReceiver

_ONE_EIGER = {"image_pixel_height": 256, "image_pixel_width": 514, "n_modules": 1,
              "module_positions": {"0": [0, 0, 513, 255]}}  # fmt: skip
_GIGAFROST = {"detector_type": "gigafrost", "n_modules": 8, "module_positions": {}}
_JUNGFRAU = {
    "n_modules": 1,
    "image_pixel_height": 512,
    "image_pixel_width": 1024,
    "module_positions": {},
}
CASES: dict[str, dict[str, Any]] = {
    "jungfrau raw": {**_JUNGFRAU, "detector_type": "jungfrau-raw"},
    "jungfrau converted": {**_JUNGFRAU, "detector_type": "jungfrau-converted"},
    "eiger 16 bit": {**_ONE_EIGER, "detector_type": "eiger"},
    "eiger 32 bit": {**_ONE_EIGER, "detector_type": "eiger", "bit_depth": 32},
    "gigafrost 2016x2016": {**_GIGAFROST, "image_pixel_height": 2016, "image_pixel_width": 2016},
    "gigafrost 480x128": {**_GIGAFROST, "image_pixel_height": 128, "image_pixel_width": 480},
}
_RING_BYTES = 512 * 2**20
_MESSAGE_BYTES = 65_536
_PACKET_BYTES = 9216
_N_BUNDLES = 4
_N_PACKETS = 32
_STEPS = 6
_TRIES = 3
_WARM = 64
_SETTLE_S = 0.4
_SOL_UDP = 17
_UDP_GRO = 104


def run(quick: bool) -> list[Result]:
    """Measure every detector."""
    return [result for name, case in CASES.items() for result in _case(name, case, quick)]


def configuration(case: dict[str, Any]) -> DaqConfig:
    """Return the configuration of a case on free ports, with a ring that memory has room for."""
    data = {"detector_name": "BENCH", "bit_depth": 16, "start_udp_port": 1, **case}
    slot_bytes = config_module.from_dict(data).sizes.slot_bytes
    more: dict[str, Any] = {"ring_slots": max(32, _RING_BYTES // slot_bytes)}
    if case["detector_type"] == "jungfrau-converted":
        more["gains_file"] = _gain_maps()
    return config_module.from_dict({**data, **more, "start_udp_port": free_udp_ports(case["n_modules"])})


def _case(name: str, case: dict[str, Any], quick: bool) -> list[Result]:
    config = configuration(case)
    seconds, rounds = (0.5, 1) if quick else (0.7, 3)
    sender = Child("sender", make_sender, config.model_dump(mode="json"))
    plain_rate = bare_rate = rate = 0.0
    plain_cpu = bare_cpu = cpu = float("inf")
    n_packets = 0.0
    try:
        image_bytes = sender.ask(image_bytes_of)
        for _ in range(rounds):  # the best of each: what else the machine does can only make it worse
            found = _measure_bare(config, sender, seconds, in_bundles=False)
            plain_rate, plain_cpu = max(plain_rate, found[0]), min(plain_cpu, found[1])
            found = _measure_bare(config, sender, seconds)
            bare_rate, bare_cpu = max(bare_rate, found[0]), min(bare_cpu, found[1])
            with stages(config, (ModuleSync, {}), (UdpReceiver, {})) as (sync, receiver):
                _touch_ring(config, sender, sync, bare_rate)
                lost_at = partial(_chain_lost, sender, sync, receiver, seconds=seconds)
                rate = max(rate, _highest(lost_at, sender))
                cpu_now, n_packets = _chain_cpu(sender, sync, receiver, bare_rate / 2, seconds)
                cpu = min(cpu, cpu_now)
    finally:
        sender.close()
    gb = image_bytes / 1e9
    note = f"{rate:,.0f} images/s, {rate * n_packets / 1e6:.2f} M packets/s"
    cost = f"{cpu * 1e6:.0f} us an image"
    results = []
    for loop, limit_hz, limit_cpu in (
        ("bare loop, bundles", bare_rate, bare_cpu),
        ("bare recvmmsg loop", plain_rate, plain_cpu),
    ):
        share = f"receive/{name}, GB per CPU second, to {loop}"
        results += [
            Result(f"receive/{name}, rate, to {loop}", rate * gb, "GB/s", limit_hz * gb, loop, note),
            Result(share, gb / cpu, "GB/s", gb / limit_cpu, loop, cost),
        ]
    return results


# -- the sender, in its own process ----------------------------------------------------------------


def make_sender(data: dict[str, Any]) -> dict[str, Any]:
    """Make the packets of a cycle in advance."""
    config = config_module.from_dict(data)
    simulated = SimulatedDetector(config, cycle=8)
    while not simulated.prepare():
        pass
    return {"simulated": simulated, "next": 1}


def image_bytes_of(sender: dict[str, Any]) -> int:
    """Return the bytes of all packets of an image."""
    detector = sender["simulated"].detector
    return int(detector.packet_sizes().sum()) * len(detector.modules)


class Send:
    """A question to the sender: send so many images, return how many a second it were."""

    def __init__(self, n_images: int, rate_hz: float) -> None:
        self.n_images, self.rate_hz = n_images, rate_hz

    def __call__(self, sender: dict[str, Any]) -> float:
        """Send, going on with the ids."""
        sender["simulated"].run(self.n_images, self.rate_hz, first_id=sender["next"])
        sender["next"] += self.n_images
        return float(sender["simulated"].sent.images_per_s)


# -- rates -----------------------------------------------------------------------------------------


def _highest(lost_at: Any, sender: Child) -> float:
    """Return the highest rate sent without a loss, halving the interval below what can be sent.

    A rate has a few tries: on a machine that others use as well, a core is taken away now and then.
    """

    def tried(rate_hz: float) -> tuple[int, float]:
        for _ in range(_TRIES):
            n_lost, sent_hz = lost_at(rate_hz)
            if not n_lost:
                break
        return n_lost, sent_hz

    n_lost, sent_hz = tried(0)
    if not n_lost:
        return float(sent_hz)
    low, high = 0.0, sent_hz
    for _ in range(_STEPS):
        middle = (low + high) / 2
        n_lost, sent_hz = tried(middle)
        if n_lost:
            high = middle
        else:
            low = max(low, min(middle, sent_hz))
    return low


def _n_images(rate_hz: float, seconds: float) -> int:
    return max(_WARM, int((rate_hz or 3000) * seconds))


def _chain_lost(
    sender: Child, sync: Child, receiver: Child, rate_hz: float, seconds: float
) -> tuple[int, float]:
    before, _ = sync.ask(counters_of)
    n_images = _n_images(rate_hz, seconds)
    sent_hz = sender.ask(Send(n_images, rate_hz))
    after = _settled(sync)
    return n_images - (after["complete"] - before["complete"]), sent_hz


def _settled(sync: Child) -> dict[str, int]:
    """Wait until nothing more arrives."""
    found: dict[str, int] = {}
    while True:
        now, _ = sync.ask(counters_of)
        if now == found:
            return now
        found = now
        time.sleep(_SETTLE_S)


def _chain_cpu(
    sender: Child, sync: Child, receiver: Child, rate_hz: float, seconds: float
) -> tuple[float, float]:
    """Return CPU seconds an image of the whole chain, and packets an image."""
    n_images = _n_images(rate_hz, 2 * seconds)
    (_, sync_before), (before, receiver_before) = sync.ask(counters_of), receiver.ask(counters_of)
    sender.ask(Send(n_images, rate_hz))
    (_, sync_after), (after, receiver_after) = sync.ask(counters_of), receiver.ask(counters_of)
    cpu = sync_after - sync_before + receiver_after - receiver_before
    return cpu / n_images, (after["packets"] - before["packets"]) / n_images


def _touch_ring(config: DaqConfig, sender: Child, sync: Child, rate_hz: float) -> None:
    """Go once round the ring: the first time each page costs a fault."""
    sender.ask(Send(config.sizes.n_slots + _WARM, rate_hz / 4))
    _settled(sync)


# -- the bare loop, in its own process -------------------------------------------------------------


def _measure_bare(
    config: DaqConfig, sender: Child, seconds: float, in_bundles: bool = True
) -> tuple[float, float]:
    """Return the highest rate without loss in images/s, and CPU seconds an image at half of it."""
    bare = Child("bare", make_bare, config.start_udp_port, config.n_modules, in_bundles)
    per_image = sender.ask(messages_per_image)

    def lost_at(rate_hz: float) -> tuple[int, float]:
        bare.begin(take_all)
        n_images = _n_images(rate_hz, seconds)
        sent_hz = sender.ask(Send(n_images, rate_hz))
        n_bytes, _ = bare.end()
        return n_images - n_bytes // per_image, sent_hz

    try:
        lost_at(1000)
        rate = _highest(lost_at, sender)
        n_images = _n_images(rate / 2, 2 * seconds)
        bare.begin(take_all)
        sender.ask(Send(n_images, rate / 2))
        _, cpu = bare.end()
    finally:
        bare.close()
    return rate, cpu / n_images


def messages_per_image(sender: dict[str, Any]) -> int:
    """Return the bytes that the bare loop sees of an image."""
    return image_bytes_of(sender)


def make_bare(port: int, n_ports: int, in_bundles: bool) -> dict[str, Any]:
    """Bind the ports with the receiver's own options, but for bundles if they are not wanted."""
    sockets = [UdpSocket.bind(port + n) for n in range(n_ports)]
    if not in_bundles:
        for entry in sockets:
            entry.handle.setsockopt(_SOL_UDP, _UDP_GRO, 0)
    n, n_bytes = (_N_BUNDLES, _MESSAGE_BYTES) if in_bundles else (_N_PACKETS, _PACKET_BYTES)
    polls = np.zeros(n_ports, np.dtype([("fd", "<i4"), ("ev", "<i2"), ("re", "<i2")]))
    polls["fd"], polls["ev"] = [entry.handle.fileno() for entry in sockets], 1
    buffers = np.full((_RING_BYTES // n_bytes, n_bytes), 1, np.uint8)
    iov = np.zeros((n, 2), np.uint64)
    iov[:, 1] = n_bytes
    messages = np.zeros((n, 8), np.uint64)
    messages[:, 2], messages[:, 3] = iov.ctypes.data + np.arange(n) * 16, 1
    keep = {"sockets": sockets, "buffers": buffers, "iov": iov}
    bare = {**keep, "polls": polls.view(np.int32).reshape(-1, 2), "messages": messages}
    _take(bare, 0)
    return bare


def _take(bare: dict[str, Any], timeout_ms: int) -> int:
    return int(_take_bare(bare["polls"], bare["messages"], bare["iov"], bare["buffers"], timeout_ms))


def take_all(bare: dict[str, Any]) -> tuple[int, float]:
    """Take messages until none came for a second; return bytes and CPU seconds."""
    for entry in bare["sockets"]:
        entry.drain()
    total, start = 0, cpu_s()
    deadline = time.monotonic() + 5
    while True:
        n_bytes = _take(bare, 100)
        total += n_bytes
        if n_bytes:
            deadline = time.monotonic() + 1
        elif time.monotonic() > deadline:
            return total, cpu_s() - start


@njit(nogil=True)
def _take_bare(polls, messages, iov, buffers, timeout_ms):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Poll, then take messages until there are none; returns their bytes."""
    total, at = 0, 0
    for _ in range(1000):
        if poll(uintp(polls.ctypes.data), uint64(polls.shape[0]), types.int32(timeout_ms)) <= 0:
            break
        for source in range(polls.shape[0]):
            if (polls[source, 1] >> 16) & 0x7FFF == 0:
                continue
            for _ in range(64):
                for i in range(messages.shape[0]):
                    region = buffers.ctypes.data + (at + i) % buffers.shape[0] * buffers.shape[1]
                    iov[i, 0] = uint64(region)
                wanted = uint32(messages.shape[0])
                n = recvmmsg(
                    types.int32(polls[source, 0]), uintp(messages.ctypes.data), wanted,
                    types.int32(socket.MSG_DONTWAIT), uintp(0),
                )  # fmt: skip
                for i in range(n):
                    total += np.int64(messages[i, 7] & uint64(0xFFFFFFFF))
                at += max(0, n)
                if n < messages.shape[0]:
                    break
    return total


def _gain_maps() -> str:
    import tempfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    import h5py  # noqa: PLC0415

    path = Path(tempfile.gettempdir()) / "stddaq-bench-gains.h5"
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        file["gains"] = rng.random((3, 512, 1024), np.float32)
        file["pedestals"] = rng.random((3, 512, 1024), np.float32)
    return str(path)
