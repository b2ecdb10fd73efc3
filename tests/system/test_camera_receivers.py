"""Simulated cameras -> receiver -> ring -> live metadata -> file writer; every pixel compared."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zmq

from tango_stddaq import config as config_module
from tango_stddaq.codecs import writer_action
from tango_stddaq.codecs.bsread_compression import BsreadCompression
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ChannelError, ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.model import Dtype, Image, PcoMetadata, Status
from tango_stddaq.sim.camera import CameraFormat, SimulatedCamera
from tango_stddaq.stages.array10_receiver import Array10Receiver
from tango_stddaq.stages.base import StageState
from tango_stddaq.stages.bsread_receiver import BsreadReceiver
from tango_stddaq.stages.camera_receiver import CameraReceiver
from tango_stddaq.stages.file_writer import FileWriter

from .stages import running

pytestmark = pytest.mark.system

NONE, LZ4, BSLZ4 = BsreadCompression.NONE, BsreadCompression.LZ4, BsreadCompression.BITSHUFFLE_LZ4
SHAPE = (123, 250)
RECEIVERS: dict[str, type[CameraReceiver]] = {"bsread": BsreadReceiver, "array-1.0": Array10Receiver}


def camera_config(detector_name: str, **changes: object) -> DaqConfig:
    data: dict[str, object] = {
        "detector_name": detector_name,
        "detector_type": "pco",
        "n_modules": 1,
        "bit_depth": 16,
        "image_pixel_height": SHAPE[0],
        "image_pixel_width": SHAPE[1],
        "start_udp_port": 0,
        "module_positions": {},
        "number_of_writers": 1,
        "ring_slots": 500,
    }
    return config_module.from_dict({**data, **changes})


def wait_until(predicate: Any, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


class Bench:
    """A camera, its receiver, and somebody who listens to what the receiver announces."""

    def __init__(self, config: DaqConfig, camera: SimulatedCamera, receiver: CameraReceiver) -> None:
        self.config = config
        self.camera = camera
        self.receiver = receiver
        self.metadata = MetadataSource(config)
        self.pixels = PixelSource(config)
        self.images: list[Image] = []

    @property
    def ids(self) -> list[int]:
        return [image.image_id for image in self.images]

    @property
    def counters(self) -> dict[str, int]:
        time.sleep(0.3)  # a tick of the stage
        return {name: n for name, n in self.receiver.counters.items() if n}

    def collect(self, n_images: int, timeout_s: float = 10.0) -> None:
        """Wait until so many images were announced in all."""

        def enough() -> bool:
            self.images += self.metadata.receive(20)
            return len(self.images) >= n_images

        wait_until(enough, timeout_s)
        assert len(self.images) == n_images
        assert self.metadata.n_malformed == 0

    def pixels_of(self, image: Image) -> np.ndarray:
        out = np.empty(image.size, np.uint8)
        assert self.pixels.accepts(image) is None
        assert self.pixels.copy(image, out)
        return out.view(image.dtype.numpy).reshape(image.shape)

    def compare(self, images: list[Image]) -> None:
        """Compare every pixel of images that are still in the ring with what the camera shows."""
        for image in images:
            np.testing.assert_array_equal(self.pixels_of(image), self.camera.truth(image.image_id))


@contextmanager
def bench(
    config: DaqConfig,
    camera_format: CameraFormat | None = None,
    n_connections: int = 4,
    socket_type: str = "pull",
) -> Iterator[Bench]:
    sizes = config.sizes
    camera_format = camera_format if camera_format is not None else CameraFormat()
    with SimulatedCamera(
        sizes.shape,
        sizes.dtype.numpy,
        camera_format,
        socket_type="push" if socket_type == "pull" else "pub",
    ) as camera:
        receiver = RECEIVERS[camera_format.protocol](config, camera.endpoint, n_connections, socket_type)
        with running(receiver):
            one = Bench(config, camera, receiver)
            try:
                camera.wait_for_connections(receiver.n_connections)
                time.sleep(0.2)  # the listener connects to the metadata stream
                yield one
            finally:
                one.metadata.close()
                one.pixels.close()


@pytest.fixture
def camera(detector_name: str) -> Iterator[Bench]:
    """A bsread camera with four connections."""
    with bench(camera_config(detector_name)) as found:
        yield found


FORMATS = [
    CameraFormat(),
    CameraFormat(compression=BSLZ4),
    CameraFormat(compression=LZ4, header_compression=LZ4),
    CameraFormat(encoding="big", header_compression=BSLZ4),
    CameraFormat(encoding="big", compression=BSLZ4),
    CameraFormat(encoding="big", compression=LZ4),
    CameraFormat("array-1.0"),
    CameraFormat("array-1.0", encoding="big"),
]


@pytest.mark.parametrize("bit_depth", [8, 16, 32])
@pytest.mark.parametrize("camera_format", FORMATS, ids=range(len(FORMATS)))
def test_every_pixel_arrives_in_order_over_four_connections(
    detector_name: str, camera_format: CameraFormat, bit_depth: int
) -> None:
    with bench(camera_config(detector_name, bit_depth=bit_depth), camera_format) as one:
        one.camera.run(60, 0, first_id=1000, step=7)
        one.collect(60)
        assert one.ids == list(range(1000, 1000 + 60 * 7, 7))
        one.compare(one.images)
        size = SHAPE[0] * SHAPE[1] * bit_depth // 8
        name = camera_format.channel_name
        for image in one.images:
            image_id = image.image_id
            assert (image.shape, image.size, image.status) == (SHAPE, size, Status.GOOD_IMAGE)
            assert image.dtype == one.config.sizes.dtype
            assert image.detector == (
                PcoMetadata(*one.camera.timestamp(image_id), name)
                if camera_format.protocol == "bsread"
                else None
            )
        assert one.counters == {"images": 60, "messages": 60, "bytes": 60 * size}
        assert one.receiver.state == StageState.RUNNING


@pytest.mark.parametrize("protocol", ["bsread", "array-1.0"])
def test_sub_receives_every_image_once(detector_name: str, protocol: Any) -> None:
    config = camera_config(detector_name)
    with bench(config, CameraFormat(protocol), n_connections=4, socket_type="sub") as one:
        one.camera.run(40, 400)
        one.collect(40)
        assert one.ids == list(range(1, 41))
        one.compare(one.images)
        assert "duplicate" not in one.counters


@pytest.mark.parametrize("compression", list(BsreadCompression))
def test_roi_images_are_announced_with_their_own_size(camera: Bench, compression: Any) -> None:
    camera.camera.format = CameraFormat(compression=compression, roi=(20, 31, 55, 77))
    camera.camera.run(12, 0)
    camera.collect(12)
    assert {(image.shape, image.size) for image in camera.images} == {((55, 77), 55 * 77 * 2)}
    camera.compare(camera.images)
    camera.camera.format = CameraFormat()
    camera.camera.run(3, 0, first_id=13)
    camera.collect(15)
    camera.compare(camera.images[12:])
    assert camera.counters["smaller"] == 12


def test_the_data_header_may_change_in_the_middle_of_the_stream(camera: Bench) -> None:
    formats = [*FORMATS[:6], CameraFormat(channel_name="OTHER"), CameraFormat(roi=(0, 0, 7, 9))]
    used = {}
    for image_id in range(1, 81):
        camera.camera.format = used[image_id] = formats[image_id // 3 % len(formats)]
        camera.camera.send(image_id)
    camera.collect(80)
    assert camera.ids == list(range(1, 81))
    for image in camera.images:
        camera.camera.format = used[image.image_id]
        camera.compare([image])
        assert isinstance(image.detector, PcoMetadata)
        assert image.detector.bsread_name == used[image.image_id].channel_name


def test_malformed_messages_in_between_are_counted_and_nothing_else_is_lost(camera: Bench) -> None:
    good = camera.camera.message(1)
    broken = [
        [b""], [b"{}"] * 4, good[:3], [*good, b""], [b"\xff", *good[1:]], [good[0], b"{}", *good[2:]],
        [*good[:3], b"123"], [good[0].replace(b'"pulse_id":1', b'"pulse_id":-1'), *good[1:]],
        [good[0].replace(b'"pulse_id":1', b'"pulse_id":18446744073709551615'), *good[1:]],
    ]  # fmt: skip
    for image_id in range(1, 41):
        camera.camera.send(image_id)
        if image_id <= len(broken):
            camera.camera.send_frames(broken[image_id - 1])
    camera.camera.format = CameraFormat(compression=BSLZ4)
    for image_id in (41, 42):
        frames = camera.camera.message(image_id)
        camera.camera.send_frames([*frames[:2], frames[2][:-1], frames[3]])
    frames = camera.camera.message(43)
    camera.camera.send_frames([*frames[:2], b"", frames[3]])  # no value for this pulse
    camera.camera.send(44)
    camera.collect(41)
    assert camera.ids == [*range(1, 41), 44]
    camera.compare(camera.images)
    assert camera.counters == {
        "images": 41, "bytes": 41 * SHAPE[0] * SHAPE[1] * 2, "messages": 44 + len(broken), "empty": 1,
        "malformed_headers": len(broken), "malformed_pixels": 2,
    }  # fmt: skip
    assert "bitshuffle_lz4" in camera.receiver.last_fault
    assert camera.receiver.state == StageState.ALARM


def test_a_damaged_image_is_not_to_be_found_in_the_ring(camera: Bench) -> None:
    camera.camera.send(1)
    frames = camera.camera.message(501)  # the same slot
    camera.camera.send_frames([*frames[:2], frames[2][:-1], frames[3]])
    camera.camera.send(502)
    camera.collect(2)
    reader = camera.pixels.reader()
    assert reader is not None
    assert [reader.ticket(image_id) is None for image_id in (1, 501, 502)] == [True, True, False]


@pytest.mark.parametrize(
    ("shape", "dtype", "counter"),
    [
        ((SHAPE[0] + 1, SHAPE[1]), Dtype.UINT16, "refused_size"),
        ((10, SHAPE[1] + 1), Dtype.UINT16, "refused_size"),
        (SHAPE, Dtype.UINT8, "refused_dtype"),
        (SHAPE, Dtype.UINT32, "refused_dtype"),
    ],
)
@pytest.mark.parametrize("protocol", ["bsread", "array-1.0"])
def test_what_does_not_fit_the_configuration_is_refused_and_counted(
    detector_name: str, protocol: Any, shape: tuple[int, int], dtype: Dtype, counter: str
) -> None:
    config = camera_config(detector_name)
    with SimulatedCamera(shape, dtype.numpy, CameraFormat(protocol)) as camera:
        receiver = RECEIVERS[protocol](config, camera.endpoint, 1)
        with running(receiver):
            camera.run(5, 0)
            wait_until(lambda: receiver.counters[counter] == 5)
            assert receiver.counters["images"] == 0
            assert "configured" in receiver.last_fault


def test_late_and_duplicate_images_are_dropped(camera: Bench) -> None:
    for image_id in (10, 11, 12, 13, 13, 20, 21, 22, 23, 22):
        camera.camera.send(image_id)
    camera.collect(8)
    time.sleep(0.8)
    for image_id in (24, 15, 25, 26, 27, 28, 29, 30, 31):
        camera.camera.send(image_id)
    camera.collect(16)
    assert camera.ids == [10, 11, 12, 13, *range(20, 32)]
    camera.compare(camera.images)
    time.sleep(1.2)
    assert (camera.counters["duplicate"], camera.counters["late"]) == (2, 1)


@pytest.mark.parametrize("pause_s", [0.0, 1.3])
def test_a_camera_that_starts_again_at_a_lower_id_goes_on(camera: Bench, pause_s: float) -> None:
    camera.camera.run(40, 0, first_id=5100)
    time.sleep(pause_s)
    camera.camera.run(40, 0, first_id=1)
    camera.collect(80)
    assert camera.ids == [*range(5100, 5140), *range(1, 41)]
    camera.compare(camera.images)
    assert camera.counters["restarts"] == 1


def test_a_camera_that_comes_later_and_one_that_is_replaced(detector_name: str) -> None:
    config = camera_config(detector_name)
    with SimulatedCamera(SHAPE, Dtype.UINT16.numpy) as camera:
        address = camera.endpoint
    receiver = BsreadReceiver(config, address)
    with running(receiver):
        for n in (1, 2):
            with SimulatedCamera(SHAPE, Dtype.UINT16.numpy, address=address) as camera:
                camera.run(20, 0, first_id=100)
                wait_until(lambda n=n: receiver.counters["images"] == 20 * n)
            time.sleep(1.1)
        wait_until(lambda: receiver.counters["restarts"] == 1)


class Driver:
    """Talks to file writer 0 as the writer driver does."""

    def __init__(self, config: DaqConfig) -> None:
        name = config.detector_name
        self._replies = channels.connect(zmq.PULL, channels.ipc_address(name, "writer-0"))
        time.sleep(0.3)  # the writer's answers need somebody who is connected
        self._out = channels.bind(zmq.PUSH, channels.ipc_address(name, "driver-0"))

    def ask(self, action: writer_action.Action) -> writer_action.Response:
        assert self._out.poll(5000, zmq.POLLOUT)
        self._out.send(writer_action.encode(action))
        assert self._replies.poll(5000)
        return writer_action.decode_response(self._replies.recv())

    def record(self, image: Image) -> None:
        self._out.send(writer_action.encode(writer_action.RecordImage(image)))

    def close(self) -> None:
        channels.close(self._out)
        channels.close(self._replies)


@pytest.mark.parametrize("camera_format", [FORMATS[4], FORMATS[7]])
def test_images_reach_the_file(detector_name: str, tmp_path: Path, camera_format: CameraFormat) -> None:
    config, path = camera_config(detector_name), tmp_path / "images.h5"
    with bench(config, camera_format) as one, running(FileWriter(config, 0)):
        driver = Driver(config)
        try:
            assert driver.ask(writer_action.CreateFile(str(path))).ok
            one.camera.run(100, 1000, first_id=3, step=3)
            one.collect(100)
            for image in one.images:
                driver.record(image)
            assert driver.ask(writer_action.ConfirmLastImage()).n_written == 100
            assert driver.ask(writer_action.CloseFile()).ok
        finally:
            driver.close()
        with h5py.File(path) as file:
            group = file[detector_name]
            assert group["metadata"]["image_id"].tolist() == list(range(3, 303, 3))
            for image_id, image in zip(one.ids, group["data"][()], strict=True):
                np.testing.assert_array_equal(image, one.camera.truth(image_id))


def test_fuzzed_messages_never_end_the_receiver(camera: Bench) -> None:
    rng = np.random.default_rng(1)
    for image_id in range(1, 301):
        camera.camera.format = FORMATS[image_id % 6]
        frames = [bytearray(frame) for frame in camera.camera.message(image_id)]
        target = frames[rng.integers(4)]
        for _ in range(rng.integers(1, 4)):
            target[rng.integers(len(target))] = rng.integers(256)
        camera.camera.send_frames([bytes(frame) for frame in frames][: rng.integers(1, 9)])
    camera.camera.format = CameraFormat()
    wait_until(lambda: camera.receiver.counters["messages"] == 300)
    assert camera.receiver.running


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"address": ""}, "address ''"), ({"address": "ipc:///tmp/x"}, "address"),
        ({"n_connections": 0}, "connections 0"), ({"n_connections": 65}, "connections 65"),
        ({"socket_type": "push"}, "socket type 'push'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_naming_them(
    detector_name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        BsreadReceiver(camera_config(detector_name), **{"address": "tcp://127.0.0.1:9", **changes})


@pytest.mark.expects_errors
def test_an_address_that_cannot_be_connected_leaves_nothing_behind(detector_name: str) -> None:
    receiver = BsreadReceiver(camera_config(detector_name), "tcp://127.0.0.1:port")
    for _ in range(2):
        with pytest.raises(ChannelError, match="cannot be connected"):
            receiver.start()


def test_reset_forgets_counts_and_faults(camera: Bench) -> None:
    camera.camera.run(5, 0)
    camera.camera.send_frames([b"bad"])
    camera.collect(5)
    assert camera.counters["malformed_headers"] == 1
    camera.receiver.reset()
    wait_until(lambda: not any(camera.receiver.counters.values()))
    assert camera.receiver.last_fault == ""
