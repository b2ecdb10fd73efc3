"""Filters between neighbours that know nothing of our code: hand-made messages and rings."""

import json
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import pytest
import zmq

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io.preflight import Request
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.stages.delay_filter import DelayFilter
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.gigafrost_filter import GigafrostFilter
from tango_stddaq.stages.writer_driver import WriterDriver

from .programs import refused as refused_call
from .programs import running as program_running
from .stages import running
from .test_camera_receivers import wait_until

pytestmark = pytest.mark.system

SHAPE = (64, 48)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def metadata(image_id: int, store_image: bool | None = None) -> bytes:
    """An ImageMetadata as protobuf writes it; without a `gf` part where `store_image` is None."""
    height, width = SHAPE
    common = b"".join(
        field(number, value)
        for number, value in enumerate((image_id, height, width, height * width * 2, 2, 1), 1)
        if value
    )
    if store_image is None:
        return common
    return common + field(8, field(4, 77) + (field(6, 1) if store_image else b""))


def filter_config(detector_name: str, **changes: object) -> DaqConfig:
    data: dict[str, object] = {
        "detector_name": detector_name,
        "detector_type": "gigafrost",
        "n_modules": 8,
        "bit_depth": 16,
        "image_pixel_height": SHAPE[0],
        "image_pixel_width": SHAPE[1],
        "start_udp_port": 2000,
        "module_positions": {},
        "number_of_writers": 1,
        "ring_slots": 20,
    }
    return config_module.from_dict({**data, **changes})


@contextmanager
def neighbours(
    name: str, source: str, product: str
) -> Iterator[tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]]:
    """A publisher before a filter and a subscriber behind it."""
    before, behind = Path(f"/tmp/{name}-{source}"), f"ipc:///tmp/{name}-{product}"
    with zmq.Context() as context, context.socket(zmq.XPUB) as out, context.socket(zmq.SUB) as into:
        out.setsockopt(zmq.LINGER, 0)
        into.setsockopt(zmq.LINGER, 0)
        out.bind(f"ipc://{before}")
        into.setsockopt(zmq.SUBSCRIBE, b"")
        into.connect(behind)
        try:
            yield out, into
        finally:
            before.unlink(missing_ok=True)


def receive(handle: "zmq.Socket[bytes]", n: int) -> list[bytes]:
    found = []
    while len(found) < n:
        assert handle.poll(10_000), f"{len(found)} of {n} messages"
        found.append(handle.recv())
    assert not handle.poll(100), "one too many"
    return found


def joined(out: "zmq.Socket[bytes]", into: "zmq.Socket[bytes]", probe: bytes) -> None:
    """Wait until a message goes all the way."""
    assert out.poll(30_000)
    deadline = time.monotonic() + 20
    while not into.poll(50):
        assert time.monotonic() < deadline
        out.send(probe)
    while into.poll(300):
        into.recv()


@contextmanager
def ring_without_index(config: DaqConfig) -> Iterator[None]:
    path = Path(f"/dev/shm/{config.detector_name}-image")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o660)
    n_bytes = config.sizes.n_slots * config.sizes.slot_bytes
    os.ftruncate(fd, -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    os.close(fd)
    try:
        yield
    finally:
        path.unlink()


def test_only_images_to_be_stored_pass_and_arrive_byte_for_byte(detector_name: str) -> None:
    stage = GigafrostFilter(filter_config(detector_name))
    new = field(1022, b"of tomorrow")
    with neighbours(detector_name, "image", "filter") as (out, into), running(stage):
        joined(out, into, metadata(0, store_image=True))
        stage.reset()
        wait_until(lambda: stage.counters["forwarded_images"] == 0)
        wanted = [metadata(k, store_image=True) + new for k in range(1, 11)]
        for k, message in enumerate(wanted, 1):
            out.send(metadata(100 + k, store_image=False))
            out.send(message)
        for message in (metadata(5), b"rubbish", b""):
            out.send(message)
        assert receive(into, 10) == wanted
        wait_until(lambda: stage.counters["malformed"] == 2)
        assert stage.counters == {
            "forwarded_images": 10, "filtered_images": 10, "foreign": 1, "malformed": 2,
        }  # fmt: skip
        stage.forward_all = True
        out.send(metadata(200, store_image=False))
        assert receive(into, 1) == [metadata(200, store_image=False)]


def test_a_file_of_filtered_images_has_gaps_and_no_losses(detector_name: str, tmp_path: Path) -> None:
    config = filter_config(detector_name, filters=[{"kind": "gigafrost"}], writer_source="filter")
    ring = RingOwner(config.segment("image"), config.sizes.n_slots, config.sizes.slot_bytes)
    driver, writer = WriterDriver(config, "filter"), FileWriter(config, 0, "filter")
    try:
        with neighbours(detector_name, "image", "filter") as (out, into), ExitStack() as stack:
            for stage in (writer, driver, GigafrostFilter(config)):
                stack.enter_context(running(stage))
            joined(out, into, metadata(0, store_image=True))
            driver.begin(Request(str(tmp_path), "run_", 4))
            for image_id in range(100, 108):
                ring.begin(image_id)[:2] = (image_id, 0)
                ring.publish(image_id)
                out.send(metadata(image_id, store_image=image_id % 2 == 0))
            wait_until(lambda: not driver.busy)
        assert (driver.ledger.complete, driver.ledger.lost) == (4, 0), driver.reason
        with h5py.File(driver.last_master) as file:
            assert file["entry/data/image_id"][()].tolist() == [100, 102, 104, 106]
            assert file["entry/data/data"][:, 0, 0].tolist() == [100, 102, 104, 106]
    finally:
        ring.close()


def test_images_go_on_after_the_delay_in_their_order(detector_name: str) -> None:
    config = filter_config(detector_name, delay_filter_timeout=0.5)
    stage = DelayFilter(config)
    with ring_without_index(config), neighbours(detector_name, "image", "delay-filter") as (out, into):
        with running(stage):
            joined(out, into, metadata(0))
            messages = [metadata(k, store_image=False) for k in range(1, 6)]
            sent_s = time.monotonic()
            for message in messages:
                out.send(message)
            assert receive(into, 5) == messages
            assert time.monotonic() - sent_s >= 0.5
            assert stage.counters["early_images"] == 0
            # Nothing that waits when the stage ends is lost.
            out.send(metadata(9))
            wait_until(lambda: stage.counters["queue"] == 1)
            ending_s = time.monotonic()
            stage.stop()
            assert receive(into, 1) == [metadata(9)]
            assert time.monotonic() - ending_s < 0.5
        assert stage.counters["overwritten"] == 0


def test_a_ring_that_is_too_small_for_the_delay_shortens_it(detector_name: str) -> None:
    config = filter_config(detector_name, delay_filter_timeout=60)
    stage = DelayFilter(config)
    ring = RingOwner(config.segment("image"), config.sizes.n_slots, config.sizes.slot_bytes)
    try:
        with neighbours(detector_name, "image", "delay-filter") as (out, into), running(stage):
            assert out.poll(10_000)

            def send(image_id: int) -> None:
                ring.begin(image_id)
                ring.publish(image_id)
                out.send(metadata(image_id))

            deadline = time.monotonic() + 20
            image_id = 0
            while not into.poll(20):  # until both ends have found each other
                assert time.monotonic() < deadline
                send(image_id)
                image_id += 1
            while into.poll(300):
                into.recv()
            wait_until(lambda: stage.counters["queue"] == 10)
            stage.reset()
            wait_until(lambda: stage.counters["forwarded_images"] == 0)
            for k in range(image_id, image_id + 5):
                send(k)
            assert len(receive(into, 5)) == 5
            wait_until(lambda: stage.counters["early_images"] == 5)
            # The ring goes once round while ten wait: their pixels are gone, and nobody is told of them.
            for k in range(image_id + 5, image_id + 25):
                ring.begin(k)
                ring.publish(k)
            for k in range(image_id + 25, image_id + 35):
                send(k)
            wait_until(lambda: stage.counters["overwritten"] == 10)
            assert stage.counters["forwarded_images"] == 5
    finally:
        ring.close()


def test_a_filter_that_listens_to_itself_is_refused(detector_name: str) -> None:
    with pytest.raises(ConfigError, match="own stream"):
        DelayFilter(filter_config(detector_name), "delay-filter")


def test_programs_take_the_arguments_of_the_existing_ones(config: DaqConfig, tmp_path: Path) -> None:
    name = config.detector_name
    settings = json.loads(config.model_dump_json(exclude_none=True))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**settings, "delay_filter_timeout": 0.05}))
    refused_call("stage", "gf-filter", words=("Usage:",))
    gf = ("stage", "gf-filter", "-n", path, "-s", "delay-filter")
    delay = ("stage", "delay-filter", path)
    with ExitStack() as stack:
        out, into = stack.enter_context(neighbours(name, "image", "filter"))
        stack.enter_context(ring_without_index(config))
        programs = [
            stack.enter_context(program_running(tmp_path / f"log{k}", *call))
            for k, call in enumerate((gf, delay))
        ]
        joined(out, into, metadata(1))
        messages = [metadata(k, store_image=False) for k in range(5, 10)]
        for message in messages:
            out.send(message)
        assert receive(into, 5) == messages
        for program in programs:
            code, seconds = program.end()
            assert (code, seconds < 4) == (0, True), program.output
        assert f"gf-filter,detector={name}" in programs[0].output
        assert "forwarded_images=" in programs[1].output
