"""Packets made in advance are those that would have been made for each image."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.errors import ConfigError
from tango_stddaq.sim import cycle as cycle_module
from tango_stddaq.sim.cycle import cycle_length
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tests.conftest import EIGER_POSITIONS, free_udp_ports

CYCLE = 4
DETECTORS: dict[str, dict[str, Any]] = {
    "eiger-8": {"detector_type": "eiger", "bit_depth": 8},
    "eiger-16": {"detector_type": "eiger", "bit_depth": 16},
    "eiger-32": {"detector_type": "eiger", "bit_depth": 32},
    "jungfrau": {"detector_type": "jungfrau-converted", "n_modules": 1, "image_pixel_height": 512,
                 "image_pixel_width": 1024, "module_positions": {}},
    "gigafrost": {"detector_type": "gigafrost", "n_modules": 8, "image_pixel_height": 400,
                  "image_pixel_width": 600, "module_positions": {}},
    "gigafrost-16": {"detector_type": "gigafrost", "n_modules": 16, "image_pixel_height": 128,
                     "image_pixel_width": 480, "module_positions": {}},
    "gigafrost-one-packet": {"detector_type": "gigafrost", "n_modules": 8, "image_pixel_height": 4,
                             "image_pixel_width": 24, "module_positions": {}},
}  # fmt: skip


def config_of(name: str, start_udp_port: int = 40_000) -> DaqConfig:
    return config_module.from_dict(
        {
            "detector_name": "T",
            "n_modules": 4,
            "bit_depth": 16,
            "image_pixel_height": 514,
            "image_pixel_width": 1030,
            "module_positions": EIGER_POSITIONS,
            "start_udp_port": start_udp_port,
            **DETECTORS[name],
        }
    )


@pytest.fixture(scope="module", params=DETECTORS)
def simulated(request: pytest.FixtureRequest) -> SimulatedDetector:
    made = SimulatedDetector(config_of(request.param), cycle=CYCLE)
    while not made.prepare():
        pass
    return made


@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=3))
@settings(max_examples=8, deadline=None)
def test_the_packets_of_a_cycle_are_those_of_each_image(
    simulated: SimulatedDetector, image_ids: list[int]
) -> None:
    for image_id in image_ids:
        image = simulated.raw(image_id)
        frames = simulated.frames(image_id)
        assert tuple(frames) == simulated.detector.connections_of(image_id)
        for connection, packets in frames.items():
            expected = simulated.detector.packets(image, image_id, connection)
            assert np.array_equal(packets, expected)


@given(st.integers(0, 2**33), st.integers(1, CYCLE))
@settings(max_examples=8, deadline=None)
def test_images_in_a_row_are_stamped_at_once(
    simulated: SimulatedDetector, first_id: int, n: int
) -> None:
    packets = simulated._packets
    assert packets is not None
    packets.stamp(first_id, n)
    at_once = packets.packets.copy()
    for image_id in range(first_id, first_id + n):
        for frame, packed in zip(
            simulated.frames(image_id).values(), at_once[image_id % CYCLE], strict=True
        ):
            assert np.array_equal(frame, packed)


def test_ids_of_a_cycle_are_told_apart_in_every_module(simulated: SimulatedDetector) -> None:
    first, other = simulated.truth(3), simulated.truth(3 + CYCLE)
    assert (first != other).sum() == len(simulated.detector.modules)
    assert np.array_equal(simulated.truth(3), first)
    assert np.array_equal(simulated.truth(3 + 251 * CYCLE), first)


def test_without_a_cycle_every_id_has_its_own_picture() -> None:
    config = config_of("gigafrost-16")
    plain, short = SimulatedDetector(config), SimulatedDetector(config, cycle=CYCLE)
    assert (plain.truth(3) != plain.truth(3 + CYCLE)).sum() > 50
    assert (plain.truth(3) != short.truth(3)).sum() <= 8


def test_a_cycle_is_even_where_two_sets_of_connections_take_turns() -> None:
    assert cycle_length(detector_of(config_of("gigafrost-16")), 3) == 4
    assert cycle_length(detector_of(config_of("gigafrost")), 3) == 3


def test_a_cycle_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("gigafrost-16")
    monkeypatch.setattr(cycle_module, "MAX_CYCLE_BYTES", 2**20)
    detector = detector_of(config)
    for wrong in (-1, 10**6):
        with pytest.raises(ConfigError, match=rf"cycle {wrong}: is not allowed.* 1 to 8 images"):
            cycle_length(detector, wrong)
    with pytest.raises(ConfigError):
        SimulatedDetector(config, cycle=10)


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("name", DETECTORS)
def test_every_packet_of_a_cycle_arrives_as_it_is(name: str, gso: bool) -> None:
    n_images, first_id = 7, 3
    detector = detector_of(config_of(name))
    with listeners(len(detector.connections)) as receivers:
        first_port = receivers[0].getsockname()[1]
        simulated = SimulatedDetector(config_of(name, first_port), cycle=CYCLE, gso=gso)
        expected = list(packets_of(simulated, range(first_id, first_id + n_images)))
        simulated.transmission().close()  # all packets are made: the times are those of sending
        sending = threading.Thread(target=simulated.run, args=(n_images, 40, first_id))
        sending.start()
        for connection, packet in expected:
            assert receivers[connection].recv(70_000) == packet
        sending.join()
        for receiver in receivers:
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(1)
    assert (simulated.sent.images, simulated.sent.packets) == (n_images, len(expected))
    assert simulated.sent.n_bytes == sum(len(packet) for _, packet in expected)


@contextmanager
def listeners(n: int) -> Iterator[list[socket.socket]]:
    first_port = free_udp_ports(n)
    with ExitStack() as stack:
        receivers = []
        for connection in range(n):
            receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
            receiver.bind(("127.0.0.1", first_port + connection))
            receiver.settimeout(20)
            receivers.append(receiver)
        yield receivers


def packets_of(simulated: SimulatedDetector, image_ids: range) -> Iterator[tuple[int, bytes]]:
    sizes = simulated.detector.packet_sizes()
    for image_id in image_ids:
        image = simulated.raw(image_id)
        for connection in simulated.detector.connections_of(image_id):
            packets = simulated.detector.packets(image, image_id, connection)
            for packet, size in zip(packets, sizes, strict=True):
                yield connection, packet[:size].tobytes()


def test_without_segmentation_offload_the_same_packets_go() -> None:
    with listeners(8) as receivers:
        config = config_of("gigafrost", receivers[0].getsockname()[1])
        simulated = SimulatedDetector(config, cycle=CYCLE)
        with simulated.transmission() as transmission:
            assert transmission.gso
            # The kernel refuses to cut a message into thousands.
            assert transmission._set_segment(8)
            transmission.pace.rate_hz = 40
            assert transmission.send(5, 1, Faults()) == 1
            assert not transmission.gso
        for connection, packet in packets_of(simulated, range(5, 6)):
            assert receivers[connection].recv(70_000) == packet


def test_faults_take_the_slower_way_and_are_as_exact() -> None:
    config = config_of("gigafrost-16")
    with_cycle, without = Faults(drop=0.1, duplicate=0.1), Faults(drop=0.1, duplicate=0.1)
    simulated = SimulatedDetector(config, cycle=CYCLE)
    simulated.run(10, 0, faults=with_cycle)
    SimulatedDetector(config).run(10, 0, faults=without)
    assert with_cycle.dropped
    assert with_cycle.dropped == without.dropped
    n_packets = 10 * 8 * simulated.detector.layout.packets_per_frame
    assert simulated.sent.packets == n_packets - len(with_cycle.dropped) + with_cycle.n_duplicated
