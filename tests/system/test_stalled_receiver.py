"""A receiver that got no processor for seconds: the silence in which it did not listen is none."""

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tango_stddaq.sim.detector import SimulatedDetector

from ..conftest import eiger_config
from .programs import Program, running, save

pytestmark = pytest.mark.system

STOPPED_S = 2.0
"""Four times as long as a frame waits for its packets."""


@contextmanager
def listening(
    detector_name: str, tmp_path: Path
) -> Iterator[tuple[Program, Callable[[int, int], None]]]:
    """Run a receiver of one module; yields it, and what sends some packets of its first frame."""
    config = eiger_config(
        detector_name, n_modules=1, image_pixel_height=256, image_pixel_width=514,
        module_positions={"0": [0, 0, 513, 255]},
    )  # fmt: skip
    packets = SimulatedDetector(config).frames(1)[0]
    path = save(config, tmp_path / "config.json")
    with (
        running(tmp_path / "sync.log", "stage", "module-sync", path) as sync,
        running(tmp_path / "receiver.log", "stage", "udp-recv", path, "all", "--direct") as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as detector,
    ):
        sync.wait_for("[event] started")
        receiver.wait_for("[event] started")
        time.sleep(1.0)  # it attaches to the ring
        detector.connect(("127.0.0.1", config.start_udp_port))

        def send(first: int, end: int) -> None:
            for packet in packets[first:end]:
                detector.send(packet)

        yield receiver, send


@pytest.mark.parametrize("n_meanwhile", [0, 16], ids=["nothing came", "packets came"])
def test_a_frame_under_way_survives_a_stop_of_its_receiver(
    detector_name: str, tmp_path: Path, n_meanwhile: int
) -> None:
    with listening(detector_name, tmp_path) as (receiver, send):
        send(0, 32)
        time.sleep(0.1)
        receiver.process.send_signal(signal.SIGSTOP)
        send(32, 32 + n_meanwhile)
        time.sleep(STOPPED_S)
        receiver.process.send_signal(signal.SIGCONT)
        time.sleep(0.2)  # less than a frame waits, more than a turn of the run loop
        send(32 + n_meanwhile, 64)
        time.sleep(0.3)
        assert receiver.end()[0] == 0, receiver.output
    statistics = [line for line in receiver.output.splitlines() if "incomplete_frames=" in line][-1]
    found = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)i", statistics)}
    counts = [found[name] for name in ("packets", "frames", "incomplete_frames", "late")]
    assert counts == [64, 1, 0, 0], receiver.output


def test_a_frame_whose_rest_does_not_come_is_given_up(detector_name: str, tmp_path: Path) -> None:
    """After half a second in which it did listen."""
    with listening(detector_name, tmp_path) as (receiver, send):
        send(0, 32)
        receiver.wait_for("losing: incomplete_frames 1, missing_packets 32", 10)
