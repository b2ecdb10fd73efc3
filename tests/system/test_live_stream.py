"""Ring -> live stream -> clients over TCP. The clients know the contract, and nothing of our code."""

import hashlib
import json
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import bitshuffle
import numpy as np
import pytest
import zmq

from tango_stddaq import config as config_module
from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.bsread_compression import BsreadCompression, compress
from tango_stddaq.config import DaqConfig
from tango_stddaq.config_entries import LiveStreamConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels, stream_socket
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import Compression, Dtype, Image, PcoMetadata
from tango_stddaq.stages.base import StageState
from tango_stddaq.stages.bsread_receiver import BsreadReceiver
from tango_stddaq.stages.live_stream import LiveStream

from .stages import running
from .test_camera_receivers import wait_until

pytestmark = pytest.mark.system

SHAPE = (64, 128)
TYPES = [name.lower() for name in Dtype.__members__ if name != "UNKNOWN"]


def stream_config(detector_name: str, **changes: object) -> DaqConfig:
    data: dict[str, object] = {
        "detector_name": detector_name,
        "detector_type": "pco",
        "n_modules": 1,
        "bit_depth": 32,
        "image_pixel_height": SHAPE[0],
        "image_pixel_width": SHAPE[1],
        "start_udp_port": 0,
        "module_positions": {},
        "ring_slots": 16,
    }
    return config_module.from_dict({**data, **changes})


def picture(image_id: int, shape: tuple[int, int], kind: str) -> np.ndarray:
    rng = np.random.default_rng(image_id)
    if np.dtype(kind).kind == "f":
        return rng.normal(0, 9, shape).astype(kind)
    return rng.integers(0, 100, shape).astype(kind)


class Source:
    """What stands before a live stream: a ring and its metadata."""

    def __init__(self, config: DaqConfig) -> None:
        sizes = config.sizes
        self.ring = RingOwner(config.segment("image"), sizes.n_slots, sizes.slot_bytes)
        self.out = channels.bind(zmq.XPUB, channels.ipc_address(config.detector_name, "image"))

    def wait_for_subscriber(self) -> None:
        assert self.out.poll(10_000)
        assert self.out.recv() == b"\x01"

    def publish(
        self, image_id: int, pixels: np.ndarray, announced: bool = True, **changes: Any
    ) -> Image:
        data = pixels.reshape(-1).view(np.uint8)
        self.ring.begin(image_id)[: data.size] = data
        self.ring.publish(image_id)
        image = Image(image_id, *pixels.shape, data.size, Dtype.from_numpy(pixels.dtype))
        image = replace(image, **changes)
        if announced:
            self.out.send(image_metadata.encode(image))
        return image

    def close(self) -> None:
        channels.close(self.out)
        self.ring.close()


class Bench:
    def __init__(self, config: DaqConfig, source: Source, stage: LiveStream, stack: ExitStack) -> None:
        self.config, self.source, self.stage, self._stack = config, source, stage, stack
        self._context = stack.enter_context(zmq.Context())

    def client(self, hwm: int = 1000, receive_bytes: int = 0) -> "zmq.Socket[bytes]":
        """A client that is known to have subscribed."""
        before = self.stage.counters["n_active_connections"]
        handle = self._context.socket(zmq.SUB)
        handle.setsockopt(zmq.LINGER, 0)
        handle.setsockopt(zmq.RCVHWM, hwm)
        if receive_bytes:
            handle.setsockopt(zmq.RCVBUF, receive_bytes)
        handle.setsockopt(zmq.SUBSCRIBE, b"")
        handle.connect(self.stage.endpoint)
        self._stack.callback(handle.close, 0)
        wait_until(lambda: self.stage.counters["n_active_connections"] == before + 1)
        return handle

    def wait_sent(self, n_images: int) -> None:
        wait_until(lambda: self.stage.counters["images"] >= n_images)


@contextmanager
def bench(config: DaqConfig, **settings: Any) -> Iterator[Bench]:
    with ExitStack() as stack:
        source = Source(config)
        stack.callback(source.close)
        stage = LiveStream(config, "tcp://127.0.0.1:*", **settings)
        stack.enter_context(running(stage))
        source.wait_for_subscriber()
        yield Bench(config, source, stage, stack)


def receive(handle: "zmq.Socket[bytes]", timeout_ms: int = 10_000) -> list[bytes]:
    assert handle.poll(timeout_ms), "nothing came"
    return handle.recv_multipart()


def drain(handle: "zmq.Socket[bytes]", quiet_ms: int = 500) -> list[list[bytes]]:
    found = []
    while handle.poll(quiet_ms):
        found.append(handle.recv_multipart())
    return found


def id_of(frames: list[bytes]) -> int:
    return int(json.loads(frames[0])["frame"])


# -- array-1.0 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_array10_of_every_type_byte_for_byte(detector_name: str, kind: str) -> None:
    shape = (SHAPE[0], SHAPE[1] // 2)
    with bench(stream_config(detector_name)) as run:
        client = run.client()
        for image_id in (0, 7, 2**63 + 5):
            pixels = picture(image_id, shape, kind)
            run.source.publish(image_id, pixels)
            header, data = receive(client)
            assert header == (
                b'{"htype":"array-1.0", "shape":[64,64], "type":"%s", "frame":%d}'
                % (kind.encode(), image_id)
            )
            assert data == pixels.tobytes()


# -- bsread --------------------------------------------------------------------------------------------


def read_bsread(frames: list[bytes]) -> tuple[int, tuple[int, int], str, np.ndarray]:
    """A bsread client made from the contract alone: pulse id, timestamp, channel name, image."""
    main_frame, header_frame, data, stamp = frames
    main, header = json.loads(main_frame), json.loads(header_frame)
    assert main["htype"] == "bsr_m-1.1"
    assert main["hash"] == hashlib.md5(header_frame, usedforsecurity=False).hexdigest()
    assert main.get("dh_compression", "none") == "none"
    assert header["htype"] == "bsr_d-1.1"
    (channel,) = header["channels"]
    width, height = channel["shape"]
    dtype = np.dtype(channel["type"]).newbyteorder(
        ">" if channel.get("encoding", "little") == "big" else "<"
    )
    if channel.get("compression", "none") == "bitshuffle_lz4":
        n_bytes, block_bytes = struct.unpack(">QI", data[:12])
        assert n_bytes == width * height * dtype.itemsize
        pixels = bitshuffle.decompress_lz4(
            np.frombuffer(data, np.uint8, offset=12),
            (height, width),
            dtype,
            block_bytes // dtype.itemsize,
        )
    else:
        pixels = np.frombuffer(data, dtype).reshape(height, width)
    seconds, nanoseconds = struct.unpack("<qq", stamp)
    assert main["global_timestamp"] == {"sec": seconds, "ns": nanoseconds}
    return main["pulse_id"], (seconds, nanoseconds), channel["name"], pixels


@pytest.mark.parametrize("compression", ["none", "bitshuffle_lz4"])
@pytest.mark.parametrize("kind", TYPES)
def test_bsread_of_every_type(detector_name: str, kind: str, compression: str) -> None:
    shape = (SHAPE[0], SHAPE[1] // 2)
    with bench(stream_config(detector_name), protocol="bsread", compression=compression) as run:
        client = run.client()
        before_s = int(time.time())
        pixels = picture(3, shape, kind)
        run.source.publish(3, pixels)
        frames = receive(client)
        pulse_id, stamp, name, found = read_bsread(frames)
        assert (pulse_id, name) == (3, detector_name)
        assert before_s <= stamp[0] <= time.time()
        assert found.dtype == pixels.dtype
        np.testing.assert_array_equal(found, pixels)
        if compression != "none":
            assert len(frames[2]) < pixels.nbytes
            wait_until(lambda: run.stage.counters["bytes"] == len(frames[2]))


def test_bsread_keeps_what_the_camera_said(detector_name: str) -> None:
    with bench(stream_config(detector_name), protocol="bsread") as run:
        client = run.client()
        camera = PcoMetadata(1_700_000_000, 123_456_789, "BEAMLINE-CAM:FPICTURE")
        run.source.publish(4, picture(4, SHAPE, "uint32"), detector=camera)
        pulse_id, stamp, name, _ = read_bsread(receive(client))
        assert (pulse_id, stamp, name) == (4, (1_700_000_000, 123_456_789), "BEAMLINE-CAM:FPICTURE")


def test_incompressible_images_are_sent_as_they_are(detector_name: str) -> None:
    with bench(stream_config(detector_name), protocol="bsread", compression="bitshuffle_lz4") as run:
        client = run.client()
        noise = np.random.default_rng(1).integers(0, 2**32, SHAPE, np.uint32)
        run.source.publish(1, noise)
        frames = receive(client)
        assert "compression" not in json.loads(frames[1])["channels"][0]
        np.testing.assert_array_equal(read_bsread(frames)[3], noise)
        assert not run.stage.counters["refused"]


def test_images_compressed_in_the_ring_are_passed_on_to_bsread_only(detector_name: str) -> None:
    config = stream_config(detector_name)
    pixels = picture(1, SHAPE, "uint32")
    chunk = np.frombuffer(compress(pixels, BsreadCompression.BITSHUFFLE_LZ4), np.uint8).reshape(1, -1)
    changes = {"height": SHAPE[0], "width": SHAPE[1], "dtype": Dtype.UINT32}
    h5, blosc2 = Compression.H5BITSHUFFLE_LZ4, Compression.BLOSC2
    with bench(config, protocol="bsread") as run:
        client = run.client()
        run.source.publish(1, chunk, compression=blosc2, **changes)
        run.source.publish(2, chunk, compression=h5, **changes)
        pulse_id, _, _, found = read_bsread(receive(client))
        assert pulse_id == 2
        np.testing.assert_array_equal(found, pixels)
        assert run.stage.counters["refused"] == 1
    with bench(config) as run:
        run.source.publish(1, chunk, compression=h5, **changes)
        wait_until(lambda: run.stage.counters["refused"] == 1)


@pytest.mark.parametrize("compression", ["none", "bitshuffle_lz4"])
def test_our_own_receiver_reads_the_bsread_stream(detector_name: str, compression: str) -> None:
    """One server's stream is another one's camera."""
    config = stream_config(detector_name, ring_slots=200)
    other = stream_config(f"{detector_name}-far", ring_slots=200)
    with bench(config, protocol="bsread", compression=compression) as run:
        receiver = BsreadReceiver(other, run.stage.endpoint, socket_type="sub")
        metadata, pixels = MetadataSource(other), PixelSource(other)
        with running(receiver):
            wait_until(lambda: run.stage.counters["n_active_connections"] == 1)
            time.sleep(0.7)  # our own listener finds the receiver's channel
            for image_id in range(20, 40):
                run.source.publish(image_id, picture(image_id, SHAPE, "uint32"))
            found: list[Image] = []
            while len(found) < 20:
                found += (new := metadata.receive(10_000))
                assert new, receiver.last_fault
            assert [image.image_id for image in found] == list(range(20, 40))
            out = np.zeros(config.sizes.slot_bytes, np.uint8)
            for image in found:
                assert pixels.copy(image, out)
                expected = picture(image.image_id, SHAPE, "uint32")
                np.testing.assert_array_equal(out.view(np.uint32).reshape(SHAPE), expected)
        metadata.close()
        pixels.close()


# -- what is sent --------------------------------------------------------------------------------------


def test_each_address_follows_its_own_rule(detector_name: str) -> None:
    """Any number of entries: here three streams of one ring."""
    config = stream_config(
        detector_name,
        ring_slots=200,
        live_stream_configs={
            "tcp://127.0.0.1:1": {"type": "forward"},
            "tcp://127.0.0.1:2": {"type": "batch", "config": [2, 10]},
            "tcp://127.0.0.1:3": {"type": "periodic", "config": [3, 0.001]},
        },
    )
    expected = [list(range(40)), [0, 1, 10, 11, 20, 21, 30, 31], [0, 1, 2]]
    source = Source(config)
    with ExitStack() as stack:
        stack.callback(source.close)
        context = stack.enter_context(zmq.Context())
        clients = []
        for rule in config.live_stream_configs.values():
            stage = LiveStream(config, "tcp://127.0.0.1:*", rule=rule)
            stack.enter_context(running(stage))
            if not clients:  # an XPUB tells of the first subscription only
                source.wait_for_subscriber()
            clients.append(Bench(config, source, stage, stack).client())
        for image_id in range(40):
            source.publish(image_id, picture(image_id, SHAPE, "uint32"))
        for client, ids in zip(clients, expected, strict=True):
            assert [id_of(receive(client)) for _ in ids] == ids
            assert not client.poll(100)
        assert context


def test_periodic_keeps_its_rate_and_shows_a_new_client_something_at_once(detector_name: str) -> None:
    rule = LiveStreamConfig(type="periodic", config=(2, 5))
    with bench(stream_config(detector_name), rule=rule) as run:
        n_seconds, rate_hz = 2, 50
        client = run.client()
        started = time.monotonic()
        for at in range(n_seconds * rate_hz):
            time.sleep(max(0.0, started + at / rate_hz - time.monotonic()))
            run.source.publish(at, picture(at, SHAPE, "uint32"))
        took_s = time.monotonic() - started
        ids = [id_of(frames) for frames in drain(client)]
        # A slow machine takes longer; each period begun gives two images, one after the other.
        assert len(ids) == pytest.approx(2 * 5 * took_s, abs=4)
        assert all(second == first + 1 for first, second in zip(ids[::2], ids[1::2], strict=False))
        assert run.stage.counters["skipped"] == n_seconds * rate_hz - len(ids)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocol": "video"}, ("video", "array-1.0, bsread")),
        ({"protocol": "bsread", "compression": "lz4"}, ("lz4", "none, bitshuffle_lz4")),
        ({"compression": "bitshuffle_lz4"}, ("array-1.0 has none",)),
    ],
)
def test_impossible_settings_are_named(
    config: DaqConfig, settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as info:
        LiveStream(config, "tcp://127.0.0.1:*", **settings)
    assert not [word for word in words if word not in str(info.value)]


# -- slow clients, lost images -------------------------------------------------------------------------


def test_no_client_ever_gets_a_wrong_image(detector_name: str) -> None:
    """Its queue holds images whose slots have been reused many times."""
    with bench(stream_config(detector_name, ring_slots=4)) as run:
        slow = run.client()
        for image_id in range(100):
            run.source.publish(image_id, picture(image_id, SHAPE, "uint32"))
            time.sleep(0.001)
        wait_until(lambda: sum(run.stage.counters[n] for n in ("images", "overwritten")) == 100)
        assert run.stage.counters["images"] > 8
        for header, data in drain(slow):
            expected = picture(json.loads(header)["frame"], SHAPE, "uint32")
            assert data == expected.tobytes()


def test_overwritten_images_are_counted_and_not_sent(detector_name: str) -> None:
    with bench(stream_config(detector_name)) as run:
        client = run.client()
        old = run.source.publish(1, picture(1, SHAPE, "uint32"), announced=False)
        run.source.publish(17, picture(17, SHAPE, "uint32"), announced=False)
        run.source.out.send(image_metadata.encode(old))
        wait_until(lambda: run.stage.counters["overwritten"] == 1)
        assert not client.poll(200)
        wait_until(lambda: run.stage.state == StageState.ALARM)


def flood(run: Bench, image_ids: range) -> None:
    """Publish as fast as the stage sends."""
    first = run.stage.counters["images"]
    for at, image_id in enumerate(image_ids):
        run.source.publish(image_id, picture(0, SHAPE, "uint32"))
        if at % 4 == 3:
            run.wait_sent(first + at + 1)


def test_a_client_that_never_reads_loses_its_own_images_only(detector_name: str) -> None:
    n_images = 600
    with bench(stream_config(detector_name)) as run:
        fast, slow = run.client(), run.client(hwm=1, receive_bytes=4096)
        flood(run, range(n_images))
        assert [id_of(frames) for frames in drain(fast)] == list(range(n_images))
        assert run.stage.counters["overwritten"] == 0
        wait_until(lambda: run.stage.counters["zmq_fails"] > 0)
        assert len(run.stage.clients) == 2
        assert run.stage.state == StageState.RUNNING  # it is the client that is slow
        # It wakes up, and the account becomes exact: what it has and what it lost is everything.
        got = len(drain(slow, 1000))
        wait_until(lambda: run.stage.counters["zmq_fails"] + got == n_images)
        assert f"{n_images - got} lost" in " ".join(run.stage.clients)
        run.stage.reset()
        wait_until(lambda: run.stage.counters["images"] == 0)
        flood(run, range(1000, 1010))
        assert len(drain(slow)) == 10
        assert run.stage.counters["zmq_fails"] == 0


def test_a_dead_client_is_forgotten_and_what_it_lost_is_not(detector_name: str) -> None:
    with bench(stream_config(detector_name)) as run:
        slow = run.client(hwm=1, receive_bytes=4096)
        flood(run, range(500))
        wait_until(lambda: run.stage.counters["zmq_fails"] > 0)
        slow.close(0)
        wait_until(lambda: run.stage.counters["n_active_connections"] == 0)
        assert run.stage.counters["zmq_fails"] > 0
        assert run.stage.clients == []


def test_only_those_who_want_the_images_are_clients(detector_name: str) -> None:
    with bench(stream_config(detector_name)) as run:
        first, second = run.client(), run.client()
        second.setsockopt(zmq.SUBSCRIBE, b'{"htype"')  # again: still one client
        other = run._context.socket(zmq.XSUB)
        other.connect(run.stage.endpoint)
        for message in (b"\x01other topic", b"no subscription", b"\x02", b"", b"\x01" + b"x" * 1000):
            other.send(message)
        time.sleep(0.5)
        flood(run, range(20))
        assert len(drain(first)) == len(drain(second)) == 20
        assert run.stage.counters["n_active_connections"] == 2
        assert run.stage.counters["zmq_fails"] == 0
        second.setsockopt(zmq.UNSUBSCRIBE, b"")
        second.setsockopt(zmq.UNSUBSCRIBE, b'{"htype"')
        wait_until(lambda: run.stage.counters["n_active_connections"] == 1)
        flood(run, range(300))
        assert not second.poll(100)
        assert run.stage.counters["zmq_fails"] == 0
        other.close(0)


def test_fifty_clients_some_dead_some_asleep(detector_name: str) -> None:
    with bench(stream_config(detector_name)) as run:
        readers = [run.client() for _ in range(40)]
        sleepers = [run.client(hwm=1, receive_bytes=4096) for _ in range(10)]
        n_images, step = 160, 16
        for first in range(0, n_images, step):
            flood(run, range(first, first + step))
            for reader in readers:
                ids = [id_of(receive(reader)) for _ in range(step)]
                assert ids == list(range(first, first + step))
        got = [len(drain(sleeper, 1000)) for sleeper in sleepers]
        lost = sum(n_images - n for n in got)
        wait_until(lambda: run.stage.counters["zmq_fails"] == lost)
        wait_until(lambda: run.stage.counters["images"] == n_images)
        assert run.stage.counters["overwritten"] == 0


def test_slow_clients_cannot_take_all_memory(
    detector_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stream_config(detector_name)
    limit = 120 * config.sizes.slot_bytes
    monkeypatch.setattr(stream_socket, "STREAM_BYTES", limit)
    with bench(config) as run:
        fast = run.client()
        # Each holds other images than the one before: all of them together are more than allowed.
        stuck = []
        for part in range(3):
            stuck.append(run.client(hwm=1, receive_bytes=4096))
            flood_until_stuck(run, fast, 1000 * part)
            assert run.stage._out is not None
            assert run.stage._out._buffers.n_busy * config.sizes.slot_bytes <= limit
        assert run.stage.counters["disconnected"] >= 1
        run.source.publish(9999, picture(0, SHAPE, "uint32"))
        wait_until(lambda: id_of(receive(fast)) == 9999)


def flood_until_stuck(run: Bench, fast: "zmq.Socket[bytes]", first_id: int) -> None:
    for image_id in range(first_id, first_id + 300):
        run.source.publish(image_id, picture(0, SHAPE, "uint32"))
        time.sleep(0.002)
        while fast.poll(0):
            fast.recv_multipart()


def test_memory_of_slow_clients_is_given_back(detector_name: str) -> None:
    with bench(stream_config(detector_name)) as run:
        slow = run.client(hwm=1, receive_bytes=4096)
        flood(run, range(300))
        assert run.stage._out is not None
        buffers = run.stage._out._buffers
        assert len(buffers._arrays) > 50
        slow.close(0)
        wait_until(lambda: len(buffers._arrays) < 10)


def wait_preview(run: Bench, image_id: int) -> Callable[[], bool]:
    return lambda: run.stage.preview_id == image_id


def test_the_preview_is_bounded_in_size_and_shows_the_last_image(detector_name: str) -> None:
    config = stream_config(detector_name, image_pixel_height=1200, image_pixel_width=700)
    with bench(config) as run:
        pixels = picture(5, (1200, 700), "uint32")
        run.source.publish(5, pixels)
        wait_until(wait_preview(run, 5))
        assert max(run.stage.preview.shape) <= 512
        assert run.stage.preview[0, 0] == pixels[:3, :3].max()
