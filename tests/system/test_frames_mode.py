"""Receiver to frame ring, converter to image ring: either half may be an existing program."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import FRAME_HEADER
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.preflight import Request
from tango_stddaq.model import Image
from tango_stddaq.processing.slots import INDEX_ENTRY, INDEX_HEADER, claim_slot
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tango_stddaq.stages.data_convert import DataConvert
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import ReceiveMode, UdpReceiver
from tango_stddaq.stages.writer_driver import WriterDriver
from tests.conftest import EIGER_POSITIONS
from tests.system.masks import check_masks
from tests.system.stages import running
from tests.system.test_detectors import config_of

pytestmark = pytest.mark.system

N_IMAGES = 6


@pytest.mark.parametrize(
    ("kind", "height", "width", "n_modules", "more"),
    [
        pytest.param("gigafrost", 400, 600, 8, {}, id="gigafrost-padded-packets"),
        pytest.param("gigafrost", 128, 480, 16, {}, id="gigafrost-16-connections"),
        pytest.param("jungfrau-raw", 1024, 1024, 2, {}, id="jungfrau"),
        pytest.param("eiger", 514, 1030, 4, {"module_positions": EIGER_POSITIONS}, id="eiger"),
    ],
)
@pytest.mark.parametrize("drop_every", [0, 61])
def test_both_halves_together_give_the_same_images(
    detector_name: str,
    tmp_path: Path,
    kind: str,
    height: int,
    width: int,
    n_modules: int,
    more: dict[str, Any],
    drop_every: int,
) -> None:
    config = config_of(detector_name, kind, height, width, n_modules, **more)
    faults = Faults(drop_every)
    driver = WriterDriver(config)
    sync, convert = ModuleSync(config), DataConvert(config)
    with running(
        sync,
        FileWriter(config, 0),
        driver,
        convert,
        UdpReceiver(config, mode=ReceiveMode.FRAMES),
    ):
        simulator = SimulatedDetector(config)
        first_id = first_after_all_are_connected(simulator, sync)
        driver.begin(Request(str(tmp_path), "run_", N_IMAGES, start_id=first_id))
        simulator.run(N_IMAGES, 20, first_id=first_id, faults=faults)
        assert driver.wait_until_idle(20), driver.status
        check_masks(config, range(first_id, first_id + N_IMAGES), faults)
        damaged = sorted({image_id for image_id, _, _ in faults.dropped})
        assert (driver.ledger.expected, driver.ledger.lost) == (N_IMAGES, 0)
        assert list(driver.ledger.incomplete_ids) == damaged
        with h5py.File(driver.last_master) as file:
            images = file["entry/data/data"][()]
    for image_id, image in enumerate(images, start=first_id):
        expected = simulator.truth(image_id)
        differs = image != expected
        assert differs.any() == (image_id in damaged)
        assert not image[differs].any()


def first_after_all_are_connected(simulator: SimulatedDetector, sync: ModuleSync) -> int:
    """Send images until all modules of one arrive: a subscriber misses what comes before it connects.

    Returns the next image id.
    """
    for image_id in range(1, 100):
        simulator.run(1, 100, first_id=image_id)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            if sync.counters["complete"]:
                return image_id + 1
            time.sleep(0.01)
    pytest.fail("no image was ever complete")


def test_converter_before_an_existing_synchronizer(detector_name: str) -> None:
    """Nobody of ours owns the image ring: the converter makes it, as existing converters do."""
    config: DaqConfig = config_of(detector_name, "gigafrost", 280, 528, 8)
    sync = zmq.Context.instance().socket(zmq.PULL)
    sync.bind(f"ipc:///tmp/{detector_name}-sync")
    ring = Path("/dev/shm") / f"{detector_name}-image"
    try:
        with running(DataConvert(config), UdpReceiver(config, mode=ReceiveMode.FRAMES)):
            simulator = SimulatedDetector(config)
            pairs = set()
            for image_id in range(1, 200):  # until both have found each other
                simulator.run(1, 100, first_id=image_id)
                while sync.poll(50):
                    header = sync.recv()
                    assert len(header) == 64
                    pairs.add((int.from_bytes(header[:8], "little"), header[16]))
                if {(image_id, module) for module in range(8)} <= pairs:
                    break
            else:
                pytest.fail(f"no whole image came: {sorted(pairs)}")
            pixels = np.fromfile(ring, np.uint16)
        slot = image_id % config.sizes.n_slots * height_times_width(config)
        image = pixels[slot : slot + height_times_width(config)].reshape(280, 528)
        assert np.array_equal(image, simulator.truth(image_id))
    finally:
        sync.close(0)
        (Path("/tmp") / f"{detector_name}-sync").unlink()
        ring.unlink(missing_ok=True)


def test_a_synchronizer_that_comes_last_gets_no_image_without_its_pixels(detector_name: str) -> None:
    """It clears the ring: frames that were announced before would go on with zeros, called good."""
    config = config_of(detector_name, "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS)
    convert, simulator = DataConvert(config), SimulatedDetector(config)
    with running(convert, UdpReceiver(config, mode=ReceiveMode.FRAMES)):
        first = 1
        while convert.counters["unannounced_frames"] < 4:  # until they have found each other
            simulator.run(1, 100, first_id=first)
            first += 1
            assert first < 200
        time.sleep(0.3)
        sync = ModuleSync(config)
        with (
            running(sync),
            closing(MetadataSource(config)) as metadata,
            closing(PixelSource(config)) as pixels,
        ):
            time.sleep(1.0)
            simulator.run(3, 20, first_id=first)
            images: list[Image] = []
            deadline = time.monotonic() + 20
            while len(images) < 3:
                assert time.monotonic() < deadline, sync.counters
                images += metadata.receive(50)
            assert [image.image_id for image in images] == [first, first + 1, first + 2]
            for image in images:
                buffer = np.empty(image.size, np.uint8)
                assert pixels.copy(image, buffer)
                found = buffer.view(image.dtype.numpy).reshape(image.shape)
                assert np.array_equal(found, simulator.truth(image.image_id))


def height_times_width(config: DaqConfig) -> int:
    return config.image_pixel_height * config.image_pixel_width


def test_a_frame_whose_slot_its_id_has_taken_again_is_not_announced(detector_name: str) -> None:
    config = config_of(detector_name, "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS)
    receiver = UdpReceiver(config, [0], ReceiveMode.FRAMES)
    converter = channels.connect(zmq.SUB, channels.ipc_address(detector_name, "0"))
    receiver._open()
    try:
        workspace, ring = receiver._workspace, receiver._owned[0]
        assert workspace is not None
        assert ring is not None
        entry = ring.index_address + INDEX_HEADER.itemsize + 5 * INDEX_ENTRY.itemsize
        assert ring.n_slots > 5
        deadline_s = time.monotonic() + 10
        epoch = 1
        while not converter.poll(20):  # until they have found each other
            assert time.monotonic() < deadline_s
            assert claim_slot(entry, 5, epoch)
            assert claim_slot(entry, 5, epoch + 1)
            workspace.events[:2]["image_id"] = 5
            workspace.events[:2]["epoch"] = epoch, epoch + 1
            workspace.n_events[0] = 2
            receiver._announce(workspace)
            epoch += 2
        headers = np.frombuffer(converter.recv(), FRAME_HEADER)
        assert (headers["image_id"].tolist(), headers["epoch"].tolist()) == ([5], [epoch - 1])
        assert not converter.poll(100)
        assert receiver.counters["unannounced_frames"] == (epoch - 1) // 2
    finally:
        receiver._close()
        channels.close(converter)
