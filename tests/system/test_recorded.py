"""Recorded packets over UDP through all stages: ring, live stream and files, pixel by pixel."""

import json
import lzma
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zmq

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.io.preflight import Request
from tango_stddaq.io.ring import RingReader
from tango_stddaq.sim import replay
from tango_stddaq.sim.faults import Faults
from tango_stddaq.stages.base import Stage
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.live_stream import LiveStream
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import UdpReceiver
from tango_stddaq.stages.writer_driver import WriterDriver

from ..conftest import free_udp_ports
from .programs import wait_until

pytestmark = [pytest.mark.system, pytest.mark.recorded]

HEADER_BYTES = 48
PIXELS_PER_PACKET = 1024
CHIP = 256


def recorded_packets(directory: Path, port: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Read a dump by hand: image id, packet number, pixels."""
    data = lzma.decompress((directory / f"{port}.dat.xz").read_bytes())
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        packet = data[at + 8 : at + 8 + length]
        image_id, _, number = struct.unpack_from("<QII", packet)
        yield image_id, number, np.frombuffer(packet, "<u4", offset=HEADER_BYTES)
        at += 8 + length


def lay(image: np.ndarray, position: list[int], number: int, pixels: np.ndarray) -> None:
    """Put the two rows of a packet where they belong, the gap between the chips left out."""
    x, y0, _, y1 = position
    for row, values in enumerate(pixels.reshape(2, 2 * CHIP), start=2 * number):
        y = y0 + row if y1 > y0 else y0 - row
        image[y, x : x + CHIP] = values[:CHIP]
        image[y, x + CHIP + 2 : x + 2 * CHIP + 2] = values[CHIP:]


def assembled(directory: Path, dropped: set[tuple[int, int, int]]) -> dict[int, np.ndarray]:
    """Assemble the images by hand; `dropped` has image id, module and place in the recording."""
    config = json.loads((directory / "config.json").read_text())
    images: dict[int, np.ndarray] = {}
    for module, position in config["module_positions"].items():
        places: dict[int, int] = {}
        port = config["start_udp_port"] + int(module)
        for image_id, number, pixels in recorded_packets(directory, port):
            image = images.setdefault(image_id, np.zeros((514, 1030), "<u4"))
            place = places[image_id] = places.get(image_id, -1) + 1
            if (image_id, int(module), place) not in dropped:
                lay(image, position, number, pixels)
    return images


@dataclass
class Pipeline:
    """All stages in this process, and a client of the live stream."""

    recorded: DaqConfig
    config: DaqConfig
    driver: WriterDriver
    stages: list[Stage]
    client: "zmq.Socket[bytes]"
    live: dict[int, np.ndarray] = field(default_factory=dict)

    def acquire(self, directory: Path, output: Path, drop_every: int = 0) -> Faults:
        recording = replay.load(directory, self.recorded)
        self.driver.begin(Request(str(output), "run_", len(recording.image_ids)))
        faults = replay.replay(recording, self.config, 50.0, faults=Faults(drop_every))
        assert self.driver.wait_until_idle(30)
        assert not self.driver.failed, self.driver.reason
        while self.client.poll(1000):
            header, pixels = self.client.recv_multipart()
            values: dict[str, Any] = json.loads(header)
            assert values["htype"] == "array-1.0"
            image = np.frombuffer(pixels, values["type"]).reshape(values["shape"])
            self.live[values["frame"]] = image
        return faults

    def in_ring(self, image_id: int) -> np.ndarray:
        sizes = self.config.sizes
        out = np.empty(sizes.slot_bytes, np.uint8)
        with RingReader.attach(self.config.segment("image"), sizes.n_slots, sizes.slot_bytes) as ring:
            assert ring.copy(image_id, out)
        return out.view("<u4").reshape(sizes.shape)


@pytest.fixture
def pipeline(shared_data: Path, detector_name: str) -> Iterator[Pipeline]:
    recorded = json.loads((shared_data / "config.json").read_text())
    changes = {
        "detector_name": detector_name,
        "start_udp_port": free_udp_ports(4),
        "number_of_writers": 2,
        "ring_slots": 20,
    }
    config = config_module.from_dict({**recorded, **changes})
    stream = LiveStream(config, "tcp://127.0.0.1:*")
    driver = WriterDriver(config)
    stages: list[Stage] = [
        ModuleSync(config), FileWriter(config, 0), FileWriter(config, 1), driver, stream,
        UdpReceiver(config),
    ]  # fmt: skip
    with ExitStack() as stack:
        for stage in stages:
            stage.start()
            stack.callback(stage.stop)
        receiver = stages[-1]
        wait_until(lambda: "Waiting" not in receiver.status, "the receiver has the ring")
        client = stack.enter_context(zmq.Context.instance().socket(zmq.SUB))
        client.setsockopt(zmq.LINGER, 0)
        monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        client.setsockopt(zmq.SUBSCRIBE, b"")
        client.connect(stream.endpoint)
        assert monitor.poll(10_000)
        client.disable_monitor()
        monitor.close(0)
        assert not client.poll(300)  # the subscription has time to arrive
        yield Pipeline(config_module.from_dict(recorded), config, driver, stages, client)


def test_recorded_images_arrive_bit_exact_in_ring_stream_and_file(
    pipeline: Pipeline, shared_data: Path, expected_images: dict[int, str], tmp_path: Path
) -> None:
    pipeline.acquire(shared_data, tmp_path)
    ids = sorted(expected_images)
    ledger = pipeline.driver.ledger
    assert (ledger.expected, ledger.complete, ledger.incomplete, ledger.lost) == (
        len(ids),
        len(ids),
        0,
        0,
    )
    in_ring = {image_id: sha256(pipeline.in_ring(image_id)).hexdigest() for image_id in ids}
    assert in_ring == expected_images
    live = {image_id: sha256(image).hexdigest() for image_id, image in pipeline.live.items()}
    assert live == expected_images
    with h5py.File(pipeline.driver.last_master) as file:
        data = file["entry/data"]
        stored = zip(data["image_id"][()].tolist(), data["data"][()], strict=True)
        assert {image_id: sha256(image).hexdigest() for image_id, image in stored} == expected_images


def test_writers_share_the_images_round_robin(
    pipeline: Pipeline, shared_data: Path, expected_images: dict[int, str], tmp_path: Path
) -> None:
    pipeline.acquire(shared_data, tmp_path)
    ids = sorted(expected_images)
    for writer, path in enumerate(pipeline.driver.last_files):
        with h5py.File(path) as file:
            group = file[pipeline.config.detector_name]
            assert group["metadata"]["image_id"].tolist() == ids[writer::2]
            stored = [sha256(image).hexdigest() for image in group["data"][()]]
        assert stored == [expected_images[image_id] for image_id in ids[writer::2]]


def test_lost_packets_read_zero_and_are_accounted_for(
    pipeline: Pipeline, shared_data: Path, expected_images: dict[int, str], tmp_path: Path
) -> None:
    faults = pipeline.acquire(shared_data, tmp_path, drop_every=1000)
    incomplete = sorted({image_id for image_id, _, _ in faults.dropped})
    assert incomplete
    ledger = pipeline.driver.ledger
    assert list(ledger.incomplete_ids) == incomplete
    assert (ledger.complete, ledger.lost) == (len(expected_images) - len(incomplete), 0)
    truth = assembled(shared_data, set(faults.dropped))
    with h5py.File(pipeline.driver.last_master) as file:
        assert file["entry/ledger/incomplete_ids"][()].tolist() == incomplete
        data = file["entry/data"]
        status = file["entry/instrument/detector/status"][()].tolist()
        for image_id, image, state in zip(data["image_id"], data["data"], status, strict=True):
            assert state == (2 if image_id in incomplete else 1)
            np.testing.assert_array_equal(image, truth[int(image_id)])
    for image_id, image in pipeline.live.items():
        np.testing.assert_array_equal(image, truth[image_id])
    assert sorted(pipeline.live) == sorted(expected_images)


def test_hand_made_assembly_agrees_with_the_description(
    shared_data: Path, expected_images: dict[int, str]
) -> None:
    images = assembled(shared_data, set())
    assert {image_id: sha256(image).hexdigest() for image_id, image in images.items()} == expected_images
