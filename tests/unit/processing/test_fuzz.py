"""Tens of thousands of damaged packets of every detector: no crash, no byte outside the ring."""

import numpy as np
import pytest

from tango_stddaq import config as config_module
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.processing.assembly import Workspace
from tango_stddaq.sim import demo_config

from .kernel import receive

GUARD = 1 << 16
GUARD_BYTE = 0xA5
N_PACKETS = 20_000
N_SLOTS = 4
BINS = ("bad_size", "bad_header", "duplicate", "late")


@pytest.mark.parametrize("name", ["eiger", "jungfrau", "gigafrost"])
def test_damaged_packets_never_reach_beyond_the_ring(name: str) -> None:
    rng = np.random.default_rng(11)
    config = config_module.from_dict(demo_config.build(name, "FUZZ", 16, 1))
    detector, slot_bytes = detector_of(config), config.sizes.slot_bytes
    memory = np.full(2 * GUARD + N_SLOTS * slot_bytes, GUARD_BYTE, np.uint8)
    workspace = Workspace.of(detector.layout, detector.placement)
    for source in range(len(detector.connections)):
        workspace.set_ring(source, memory.ctypes.data + GUARD, slot_bytes, N_SLOTS, 0)
    image = rng.integers(0, 4096, config.sizes.shape).astype(np.uint16)
    sizes = detector.packet_sizes()
    header_bytes = detector.layout.header.itemsize
    n_sent = 0
    while n_sent < N_PACKETS:
        image_id = int(rng.integers(0, 50))
        source = int(rng.integers(len(detector.connections)))
        packets = detector.packets(image, image_id, detector.connections[source])
        datagrams = []
        for packet, size in zip(packets, sizes, strict=True):
            data = bytearray(packet[:size].tobytes())
            kind = rng.integers(6)
            if kind == 0:
                data[int(rng.integers(header_bytes))] = int(rng.integers(256))
            elif kind == 1:
                data[:header_bytes] = rng.bytes(header_bytes)
            elif kind == 2:
                del data[int(rng.integers(len(data))) :]
            elif kind == 3:
                data += rng.bytes(int(rng.integers(1, 600)))
            datagrams.append(bytes(data))
        rng.shuffle(datagrams)
        receive(workspace, source, datagrams, int(rng.integers(1, 65)), int(rng.choice([1, 5, 128])))
        n_sent += len(datagrams)
        workspace.take_events()
    for source in range(len(detector.connections)):
        workspace.flush(source)
    totals = workspace.totals()
    assert totals["packets"] == n_sent
    taken = n_sent - sum(totals[name] for name in BINS)
    expected = totals["frames"] * detector.layout.packets_per_frame - totals["missing_packets"]
    assert taken == expected  # every packet ended in a frame or in one bin
    assert (memory[:GUARD] == GUARD_BYTE).all()
    assert (memory[-GUARD:] == GUARD_BYTE).all()
