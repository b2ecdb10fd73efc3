"""Images from one server to another: parts and whole images, with real sockets and rings."""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from tango_stddaq.closing import Closing
from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import Image, Status
from tango_stddaq.stages.base import Stage, StageState
from tango_stddaq.stages.metadata_stream import MetadataStream
from tango_stddaq.stages.stream_receive import StreamReceive
from tango_stddaq.stages.stream_send import StreamSend
from tango_stddaq.stages.stream_sync import ForwardSync, MetadataSync, StreamSync

from ..conftest import free_tcp_port
from .programs import refused, running, save, stddaq, wait_until
from .rig import incomplete, pixels_of, rig_config

pytestmark = pytest.mark.system


SMALL_EIGER = {"detector_type": "eiger", "use_all_forwarders": False}
"""Images that fit the first part."""


class Source(Closing):
    """A first server: its ring and its metadata stream."""

    def __init__(self, config: DaqConfig) -> None:
        self.config = config
        self.ring = RingOwner(config.segment("image"), config.sizes.n_slots, config.sizes.slot_bytes)
        self.out = channels.bind(zmq.PUB, channels.ipc_address(config.detector_name, "image"))

    def image(self, image_id: int) -> Image:
        sizes = self.config.sizes
        return Image(image_id, *sizes.shape, sizes.slot_bytes, sizes.dtype)

    def store(self, image_id: int) -> Image:
        slot = self.ring.begin(image_id)
        slot[:] = pixels_of(self.config, image_id).reshape(-1).view(np.uint8)
        self.ring.publish(image_id)
        return self.image(image_id)

    def send(self, *image_ids: int, change: Callable[[Image], Image] = lambda image: image) -> None:
        for image_id in image_ids:
            self.out.send(image_metadata.encode(change(self.store(image_id))))

    def close(self) -> None:
        channels.close(self.out)
        self.ring.close()


class Target(Closing):
    """A consumer on the second server: every image is looked at when it is announced."""

    def __init__(self, config: DaqConfig) -> None:
        self.config = config
        self.metadata = MetadataSource(config)
        self.pixels = PixelSource(config)
        self.images: list[tuple[Image, np.ndarray | None]] = []

    @property
    def ids(self) -> list[int]:
        for image in self.metadata.receive(20):
            buffer = np.empty(image.size, np.uint8)
            there = self.pixels.copy(image, buffer)
            array = buffer.view(image.dtype.numpy).reshape(image.shape) if there else None
            self.images.append((image, array))
        return [image.image_id for image, _ in self.images]

    def expect(self, *ids: int) -> None:
        """These images come, in this order, and all that are good are so pixel by pixel."""
        wait_until(lambda: len(self.ids) >= len(ids), f"images {ids}; came {self.ids}", 20)
        assert self.ids == list(ids)
        for image, array in self.images:
            if image.status is Status.GOOD_IMAGE:
                np.testing.assert_array_equal(array, pixels_of(self.config, image.image_id))
        self.seen, self.images = self.images, []

    def close(self) -> None:
        self.metadata.close()
        self.pixels.close()


class Link(Closing):
    """Both servers in this process, under two names."""

    def __init__(
        self, name: str, n: int = 3, senders: bool = True, sync: bool = True, **changes: Any
    ) -> None:
        more = {"max_number_of_forwarders_spawned": n, "use_all_forwarders": True, **changes}
        self.first, self.second = rig_config(name, **more), rig_config(f"{name}-2", **more)
        self.whole = self.first.sender_sends_full_images
        self.addresses = [f"tcp://127.0.0.1:{free_tcp_port()}" for _ in range(n + 1)]
        self._stack = ExitStack()
        try:
            self.source = self._stack.enter_context(Source(self.first))
            self.sync: ForwardSync = (
                MetadataSync(self.second, self.addresses[n]) if self.whole else StreamSync(self.second)
            )
            if sync:
                self.run(self.sync)
            self.receivers = [StreamReceive(self.second, self.addresses[i], i) for i in range(n)]
            self.target = self._stack.enter_context(Target(self.second))
            for receiver in self.receivers:
                self.run(receiver)
            self.senders = [StreamSend(self.first, self.addresses[i], i) for i in range(n)]
            self.order = MetadataStream(self.first, self.addresses[n])
            if senders:
                for sender in [*self.senders, *([self.order] if self.whole else [])]:
                    self.run(sender)
                self.wait_connected()
        except BaseException:
            self._stack.close()
            raise

    def run(self, stage: Stage) -> None:
        stage.start()
        self._stack.callback(stage.stop)

    def wait_connected(self) -> None:
        wait_until(
            lambda: all(s.counters["n_active_connections"] for s in self.senders if s.running),
            "receivers subscribe",
        )
        if self.whole:
            wait_until(lambda: self.order.counters["n_active_connections"], "the order is heard")
        time.sleep(0.3)  # the other hops have no account of their subscribers

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def link(detector_name: str) -> Iterator[Link]:
    with Link(detector_name) as made:
        yield made


@pytest.mark.parametrize("whole", [False, True], ids=["parts", "whole images"])
@pytest.mark.parametrize("n", [1, 3])
def test_images_arrive_in_order_and_pixel_by_pixel(detector_name: str, whole: bool, n: int) -> None:
    with Link(detector_name, n, sender_sends_full_images=whole) as link:
        link.source.send(*range(1, 31))
        link.target.expect(*range(1, 31))
        assert all(image.status is Status.GOOD_IMAGE for image, _ in link.target.seen)
        wait_until(lambda: link.sync.counters["queue"] == 0, "nothing waits")
        assert (link.sync.counters["complete"], link.sync.counters["incomplete"]) == (30, 0)
        assert link.sync.state is StageState.RUNNING
        assert sum(r.counters["bytes"] for r in link.receivers) == 30 * link.first.sizes.slot_bytes
        sent = [s.counters["images"] for s in link.senders]
        assert sum(sent) == (30 if whole else 30 * n)
        assert [s.counters["others"] for s in link.senders] == [30 - k if whole else 0 for k in sent]


def test_metadata_pass_with_fields_of_tomorrow_and_an_incomplete_image_stays_so(link: Link) -> None:
    link.source.store(7)
    message = image_metadata.to_message(incomplete(link.source.image(7)))
    message.pco.bsread_name = "camera:image"
    link.source.out.send(message.SerializeToString() + b"\xa0\x3f\x05")  # field 1012, a varint
    raw = link.target.metadata
    got: list[bytes] = []
    wait_until(lambda: got.extend(raw.receive_messages(20)) or got, "the image", 20)
    assert got == [message.SerializeToString() + b"\xa0\x3f\x05"]
    wait_until(lambda: link.sync.counters["incomplete"] == 1, "it is counted")


def test_ids_that_start_again_are_followed(link: Link) -> None:
    link.source.send(*range(1, 11))
    link.target.expect(*range(1, 11))
    link.source.send(*range(1, 11))
    link.target.expect(*range(1, 11))
    wait_until(lambda: link.sync.counters["restarts"] == 1, "the restart is counted")
    assert link.sync.counters["complete"] == 20


def test_an_image_without_a_part_is_incomplete_and_zero_there(link: Link) -> None:
    for first in (1, 24, 47):  # every slot has held an image
        link.source.send(*range(first, first + 23))
        link.target.expect(*range(first, first + 23))
    link.senders[1].stop()
    link.source.send(70, 71)
    link.target.expect(70, 71)
    part = link.senders[1].part
    assert part is not None
    for image, array in link.target.seen:
        assert (image.status, image.n_missing_packets) == (Status.MISSING_PACKETS, 1)
        assert array is not None
        expected = pixels_of(link.first, image.image_id).reshape(-1).view(np.uint8).copy()
        expected[part.offset : part.end] = 0
        np.testing.assert_array_equal(array.reshape(-1).view(np.uint8), expected)
    wait_until(lambda: link.sync.state is StageState.ALARM, "the loss is told")
    assert (link.sync.counters["incomplete"], link.sync.counters["missing_parts"]) == (2, 2)
    link.senders[1].start()
    link.wait_connected()
    link.source.send(72, 73)
    link.target.expect(72, 73)
    assert all(image.status is Status.GOOD_IMAGE for image, _ in link.target.seen)


def test_a_receiver_that_restarts_joins_again(link: Link) -> None:
    link.source.send(1, 2)
    link.target.expect(1, 2)
    link.receivers[0].stop()
    link.receivers[0].start()
    link.wait_connected()
    time.sleep(0.5)
    link.source.send(3, 4)
    link.target.expect(3, 4)
    assert all(image.status is Status.GOOD_IMAGE for image, _ in link.target.seen)


def test_a_synchronizer_that_restarts_gets_a_new_ring_and_goes_on(link: Link) -> None:
    link.source.send(1, 2)
    link.target.expect(1, 2)
    link.sync.stop()
    link.sync.start()
    time.sleep(0.7)  # PUSH and SUB find it again
    link.source.send(3, 4)
    link.target.expect(3, 4)
    assert all(image.status is Status.GOOD_IMAGE for image, _ in link.target.seen)


def test_a_synchronizer_that_comes_last_gets_no_image_without_its_pixels(detector_name: str) -> None:
    """It clears the ring: what was announced before would go on with zeros. Nothing is left behind."""
    with Link(detector_name, 2, sync=False) as link:
        link.source.send(1, 2)
        wait_until(lambda: all(r.counters["unannounced"] == 2 for r in link.receivers), "they are lost")
        wait_until(lambda: all(r.state is StageState.ALARM for r in link.receivers), "it is told")
        link.run(link.sync)
        time.sleep(1.0)
        link.source.send(3, 4)
        link.target.expect(3, 4)
        link.sync.stop()
        for image_id in range(5, 25):  # they go on: no ring for nobody
            link.source.send(image_id)
            time.sleep(0.01)
        wait_until(lambda: all(r.counters["unannounced"] >= 10 for r in link.receivers), "all are lost")


def test_an_image_that_the_source_ring_does_not_hold_any_more_is_counted(link: Link) -> None:
    old = link.source.store(1)
    link.source.store(1 + link.first.sizes.n_slots)
    link.source.out.send(image_metadata.encode(old))
    wait_until(lambda: all(s.counters["overwritten"] == 1 for s in link.senders), "it is counted")
    link.source.send(100)
    link.target.expect(100)


def test_whole_images_that_do_not_come_are_lost_and_those_without_order_are_not(
    detector_name: str,
) -> None:
    with Link(detector_name, 2, sender_sends_full_images=True) as link:
        link.source.send(1, 2)
        link.target.expect(1, 2)
        link.senders[1].stop()  # it has the odd ones
        link.source.send(*range(3, 9))
        link.target.expect(4, 6, 8)
        wait_until(lambda: link.sync.counters["lost"] == 3, "the odd ones are lost")
        link.senders[1].start()
        link.wait_connected()
        link.order.stop()
        link.source.send(9, 10, 11)
        link.target.expect(9, 10, 11)
        assert link.sync.counters["unordered"] == 3
        assert link.sync.counters["skipped_ids"] == 0


# -- programs of the existing system, played by code that knows the contract only ----------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def foreign_metadata(image_id: int, status: int = 1) -> bytes:
    """`ImageMetadata` of 6 x 8 pixels of 16 bits, byte by byte."""
    fields = ((1, image_id), (2, 6), (3, 8), (4, 96), (5, 2), (6, status))
    return b"".join(bytes([number << 3]) + varint(value) for number, value in fields)


def foreign_pixels(image_id: int) -> bytes:
    return struct.pack("<48H", *((k + 7 * image_id) % 65536 for k in range(48)))


@contextmanager
def sockets(*kinds: int) -> Iterator[list["zmq.Socket[bytes]"]]:
    with zmq.Context() as context, ExitStack() as stack:
        handles = [stack.enter_context(context.socket(kind)) for kind in kinds]
        for handle in handles:
            handle.setsockopt(zmq.LINGER, 0)
            handle.setsockopt(zmq.RCVTIMEO, 10_000)
            if handle.type == zmq.SUB:
                handle.setsockopt(zmq.SUBSCRIBE, b"")
        yield handles


def test_existing_senders_feed_our_receivers_and_any_reader_reads_the_result(detector_name: str) -> None:
    """Two parts of 48 bytes; the result is read from /dev/shm and the ipc socket by hand."""
    with Link(detector_name, 2, senders=False) as link, sockets(zmq.PUB, zmq.PUB, zmq.SUB) as handles:
        *senders, reader = handles
        reader.connect(f"ipc:///tmp/{detector_name}-2-image")
        for handle, address in zip(senders, link.addresses, strict=False):
            handle.bind(address)
        wait_until(lambda: all(r.counters["connections"] for r in link.receivers), "they connect")
        time.sleep(0.5)
        for image_id in range(1, 6):
            for i, handle in enumerate(senders):
                handle.send_multipart(
                    [foreign_metadata(image_id), foreign_pixels(image_id)[48 * i : 48 * (i + 1)]]
                )
        for image_id in range(1, 6):
            assert reader.recv() == foreign_metadata(image_id)
            with Path(f"/dev/shm/{detector_name}-2-image").open("rb") as ring:
                ring.seek(image_id % 64 * 96)
                assert ring.read(96) == foreign_pixels(image_id)


def test_our_senders_feed_existing_receivers(detector_name: str) -> None:
    with Link(detector_name, 2, sync=False) as link, sockets(zmq.SUB, zmq.SUB) as readers:
        for reader, address in zip(readers, link.addresses, strict=False):
            reader.connect(address)
        wait_until(
            lambda: all(s.counters["n_active_connections"] == 2 for s in link.senders), "they subscribe"
        )
        link.source.send(300)
        for i, reader in enumerate(readers):
            metadata, data = reader.recv_multipart()
            assert metadata == foreign_metadata(300)
            assert data == pixels_of(link.first, 300).tobytes()[48 * i : 48 * (i + 1)]


def test_existing_receivers_feed_our_synchronizer(detector_name: str) -> None:
    """They write into a bare segment and announce without saying which part it was."""
    with Link(detector_name, 2, senders=False) as link, sockets(zmq.PUSH) as (push,):
        push.connect(f"ipc:///tmp/{detector_name}-2-sync")
        ring = Path(f"/dev/shm/{detector_name}-2-image")
        time.sleep(0.3)
        for image_id in (1, 2, 3):
            with ring.open("r+b") as file:
                file.seek(image_id % 64 * 96)
                file.write(foreign_pixels(image_id))
            for _ in range(1 if image_id == 2 else 2):
                push.send(foreign_metadata(image_id))
        link.target.expect(1, 3)
        wait_until(lambda: link.sync.counters["lost"] == 1, "the half one is lost: nobody knows which")
    assert ring.exists()
    ring.unlink()  # that of an existing program stays


def test_our_receiver_feeds_an_existing_synchronizer(detector_name: str) -> None:
    """It binds PULL, counts the parts, and may come later than the receiver."""
    with Link(detector_name, 2, sync=False) as link, sockets(zmq.PULL) as (pull,):
        link.source.send(4)
        wait_until(lambda: all(r.counters["unannounced"] for r in link.receivers), "nobody hears of it")
        ring = Path(f"/dev/shm/{detector_name}-2-image")
        assert not ring.exists()
        pull.bind(f"ipc:///tmp/{detector_name}-2-sync")
        time.sleep(1.0)
        link.source.send(5)
        got = sorted(pull.recv() for _ in range(2))
        assert [message[:12] for message in got] == [foreign_metadata(5)] * 2  # field 110 stands behind
        assert [pb.ImageMetadata.FromString(m).forwarded_part for m in got] == [1, 2]
        assert ring.read_bytes()[5 * 96 : 6 * 96] == foreign_pixels(5)
        assert not ring.with_name(f"{ring.name}.index").exists()
    ring.unlink()
    Path(f"/tmp/{detector_name}-2-sync").unlink(missing_ok=True)


def test_nonsense_is_counted_and_does_no_harm(detector_name: str) -> None:
    with Link(detector_name, 1, senders=False) as link, sockets(zmq.PUB, zmq.PUSH) as (pub, push):
        pub.bind(link.addresses[0])
        push.connect(f"ipc:///tmp/{detector_name}-2-sync")
        receiver = link.receivers[0]
        wait_until(lambda: receiver.counters["connections"] == 1, "it connects")
        time.sleep(0.5)
        good, pixels = foreign_metadata(9), foreign_pixels(9)
        for frames in (
            [good],
            [good, pixels, b""],
            [b"\xff" * 40, pixels],
            [b"x" * 600, pixels],
            [b"", b""],
        ):
            pub.send_multipart(frames)
        for data in (pixels[:95], pixels + b"x", b""):
            pub.send_multipart([good, data])
        pub.send_multipart([foreign_metadata(2**63), pixels])
        for data in (b"\xff" * 40, b"", b"x" * 600, foreign_metadata(9) + b"\xf0\x06\x09"):  # part 8
            push.send(data)
        pub.send_multipart([good, pixels])
        link.target.expect(9)
        assert (receiver.counters["malformed"], receiver.counters["refused_size"]) == (6, 3)
        assert link.sync.counters["malformed"] == 4
        assert "image" in receiver.last_fault
        pub.send_multipart([good, bytes(10**6)])  # ZeroMQ itself ends this connection
        wait_until(lambda: receiver.counters["disconnections"] >= 1, "it is cut off")
        wait_until(lambda: receiver.counters["connections"] >= 2, "it connects again")
        time.sleep(0.5)
        pub.send_multipart([foreign_metadata(10), foreign_pixels(10)])
        link.target.expect(10)


def test_a_port_that_speaks_no_zeromq_is_survived(detector_name: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        config = rig_config(detector_name, use_all_forwarders=True)
        receiver = StreamReceive(config, f"tcp://127.0.0.1:{server.getsockname()[1]}", 0)
        receiver.start()
        try:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n" * 50)
            assert receiver.running
            assert receiver.counters["images"] == 0
        finally:
            receiver.stop()


# -- the commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["stream-send", "CONFIG", "tcp://127.0.0.1:*", 8], {}),
        (["stream-receive", "CONFIG", "tcp://127.0.0.1:9", 8], {}),
        (["stream-send", "CONFIG", "tcp://127.0.0.1:*", 1], SMALL_EIGER),
        (["sync-stream", "CONFIG"], {"sender_sends_full_images": True}),
        (["sync-metadata", "CONFIG", "tcp://127.0.0.1:9"], {}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_stage_with_nothing_to_do_ends_at_once_and_in_silence(
    detector_name: str, tmp_path: Path, arguments: list[Any], changes: dict[str, Any]
) -> None:
    config = rig_config(detector_name, **{"use_all_forwarders": True, **changes})
    path = save(config, tmp_path / "config.json")
    result = stddaq("stage", *[path if a == "CONFIG" else a for a in arguments])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_camera_without_all_forwarders_is_told_what_to_do(detector_name: str, tmp_path: Path) -> None:
    path = save(rig_config(detector_name), tmp_path / "config.json")
    words = ("use_all_forwarders", "pco", "true")
    refused("stage", "stream-send", path, "tcp://127.0.0.1:*", 0, words=words)
    refused("stage", "stream-send", path, "tcp://127.0.0.1:*", words=("Usage:",))
    with pytest.raises(ConfigError, match="here"):
        StreamReceive(rig_config(detector_name, use_all_forwarders=True), "here", 0)


def test_the_programs_forward_images_and_end_in_time(detector_name: str, tmp_path: Path) -> None:
    first = rig_config(detector_name, use_all_forwarders=True, max_number_of_forwarders_spawned=1)
    second = first.model_copy(update={"detector_name": f"{detector_name}-2"})
    a, b = save(first, tmp_path / "a.json"), save(second, tmp_path / "b.json")
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    calls = [
        ("stream-receive", b, address, 0), ("sync-stream", b), ("stream-send", a, address, 0)
    ]  # fmt: skip
    with Source(first) as source, Target(second) as target, ExitStack() as stack:
        programs = [stack.enter_context(running(tmp_path / call[0], "stage", *call)) for call in calls]
        for program in programs:
            program.wait_for("[event] started")
        time.sleep(1.0)
        source.send(*range(1, 11))
        target.expect(*range(1, 11))
        for program in programs:
            code, seconds = program.end()
            assert code == 0, program.output
            assert seconds < 10, program.output
            assert ",detector=" in program.output
