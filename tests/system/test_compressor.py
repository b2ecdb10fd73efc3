"""The compressor between real rings and sockets: what comes out, in which order, and the account."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import bitshuffle
import blosc2
import numpy as np
import pytest
import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ChannelError, ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner, RingWriter
from tango_stddaq.model import Compression, Dtype, EigerMetadata, Image, Status
from tango_stddaq.stages.base import StageState
from tango_stddaq.stages.compressor import ImageCompressor

from ..conftest import eiger_config
from .programs import running, save, wait_until

pytestmark = pytest.mark.system

BLOSC2, BITSHUFFLE = Compression.BLOSC2, Compression.H5BITSHUFFLE_LZ4
SUFFIX = {BLOSC2: "blosc2", BITSHUFFLE: "h5bitshuffle-lz4"}
SHAPE = (257, 515)  # no multiple of anything
N_SLOTS = 16
BINS = ("images", "overwritten", "refused")


@pytest.fixture
def config(detector_name: str) -> DaqConfig:
    return eiger_config(
        detector_name,
        image_pixel_height=SHAPE[0],
        image_pixel_width=SHAPE[1],
        n_modules=1,
        module_positions={},
        ring_slots=N_SLOTS,
        stats_collection_period=0.3,
    )


@pytest.fixture(params=[BITSHUFFLE, BLOSC2], ids=lambda method: method.name.lower())
def method(request: pytest.FixtureRequest) -> Compression:
    return request.param


def pixels_of(image_id: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Poisson, but every seventh image is noise that does not become smaller."""
    rng = np.random.default_rng(image_id)
    if image_id % 7 == 3:
        return np.frombuffer(rng.bytes(2 * shape[0] * shape[1]), np.uint16).reshape(shape)
    return rng.poisson(3.0, shape).astype(np.uint16)


def image_of(image_id: int, shape: tuple[int, int] = SHAPE, **changes: object) -> Image:
    image = Image(
        image_id, *shape, 2 * shape[0] * shape[1], Dtype.UINT16, detector=EigerMetadata(image_id)
    )
    return replace(image, **changes)  # type: ignore[arg-type]


class Chain:
    """A source in front of a compressor and a consumer behind it that knows nothing of our readers."""

    def __init__(self, config: DaqConfig, method: Compression) -> None:
        self.config, self.suffix = config, SUFFIX[method]
        self.ring: RingOwner | RingWriter = self.new_ring()
        self.out = channels.bind(zmq.XPUB, channels.ipc_address(config.detector_name, "image"))
        self.results = zmq.Context.instance().socket(zmq.SUB)
        self.results.setsockopt(zmq.LINGER, 0)
        self.results.setsockopt(zmq.SUBSCRIBE, b"")
        self.results.connect(f"ipc:///tmp/{config.detector_name}-{self.suffix}")
        self.n_sent = 0
        self.next_id = 1

    def new_ring(self) -> RingOwner:
        sizes = self.config.sizes
        return RingOwner(self.config.segment("image"), sizes.n_slots, sizes.slot_bytes)

    def store(self, image: Image, pixels: np.ndarray) -> None:
        data = pixels.reshape(-1).view(np.uint8)
        if isinstance(self.ring, RingOwner):
            self.ring.begin(image.image_id)[: data.size] = data
            self.ring.publish(image.image_id)
        else:
            self.ring.slot(image.image_id)[: data.size] = data

    def announce(self, *images: Image) -> None:
        for image in images:
            self.out.send(image_metadata.encode(image))
            self.n_sent += 1

    def send(self, image: Image) -> None:
        self.store(image, pixels_of(image.image_id, image.shape))
        self.announce(image)

    def connect(self) -> None:
        """Send images until one comes out: a subscriber misses what comes before it is known."""

        def comes() -> bool:
            self.send(image_of(self.next_id))
            self.next_id += 1
            return bool(self.results.poll(200))

        wait_until(comes, "an image through the compressor")
        last = -1
        while last < self.next_id - 1:
            last = self.receive().image_id

    def receive(self) -> pb.ImageMetadata:
        assert self.results.poll(20_000), "nothing comes out"
        return pb.ImageMetadata.FromString(self.results.recv())

    def pixels(self, message: pb.ImageMetadata) -> np.ndarray:
        """Read and decode an image with numpy and the libraries alone."""
        path = f"/dev/shm/{self.config.detector_name}-{self.suffix}"
        slot_bytes = 2 * SHAPE[0] * SHAPE[1]
        ring = np.memmap(path, np.uint8, "r")
        start = message.image_id % N_SLOTS * slot_bytes
        data = ring[start : start + message.size]
        shape = (message.height, message.width)
        if message.compression == pb.none:
            return data.view(np.uint16).reshape(shape).copy()
        if message.compression == pb.blosc2:
            return np.frombuffer(blosc2.decompress2(data.tobytes()), np.uint16).reshape(shape)
        n_bytes, block = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:12], "big")
        assert n_bytes == 2 * shape[0] * shape[1]
        return bitshuffle.decompress_lz4(data[12:].copy(), shape, np.dtype(np.uint16), block // 2)

    def expect(self, image: Image, method: Compression) -> None:
        """Receive this image: everything as it was but size and compression."""
        message = self.receive()
        found = image_metadata.from_message(message)
        kept = replace(found, size=image.size, compression=Compression.NONE)
        assert kept == image
        small = image.image_id % 7 != 3
        assert found.compression == (method if small else Compression.NONE)
        assert (found.size < image.size) == small
        assert np.array_equal(self.pixels(message), pixels_of(image.image_id, image.shape))

    def close(self) -> None:
        self.results.close(0)
        channels.close(self.out)
        self.ring.close()


@pytest.fixture
def chain(config: DaqConfig, method: Compression) -> Iterator[Chain]:
    with closing(Chain(config, method)) as made:
        yield made


@contextmanager
def started(stage: ImageCompressor) -> Iterator[ImageCompressor]:
    stage.start()
    try:
        yield stage
    finally:
        stage.stop()


def accounted(stage: ImageCompressor) -> int:
    return sum(stage.counters[name] for name in BINS)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_image_comes_out_in_order(
    chain: Chain, config: DaqConfig, method: Compression, threads: int
) -> None:
    with started(ImageCompressor(config, method, threads)) as stage:
        chain.connect()
        for first in range(chain.next_id, chain.next_id + 100, N_SLOTS // 2):
            images = [image_of(first + k) for k in range(N_SLOTS // 2)]
            # Incomplete images, images of unknown status and a smaller one go on as all others.
            images[1] = replace(images[1], status=Status.MISSING_PACKETS, n_missing_packets=3)
            images[2] = replace(images[2], status=Status.UNDEFINED)
            images[3] = image_of(first + 3, (100, 51))
            for image in images:
                chain.send(image)
            for image in images:
                chain.expect(image, method)
        wait_until(lambda: accounted(stage) == chain.n_sent, "all images counted")
        counters = stage.counters
        assert counters["images"] == counters["compressed_images"] + counters["passed_on"]
        assert counters["passed_on"] > 10
        assert counters["compressed_bytes"] < counters["bytes"]
        wait_until(lambda: stage.ratio > 1, "the ratio")
        assert stage.state is StageState.RUNNING
        assert "ratio" in stage.status


def test_overwritten_images_are_counted_not_delivered(
    chain: Chain, config: DaqConfig, method: Compression
) -> None:
    with started(ImageCompressor(config, method, 2)) as stage:
        chain.connect()
        first = chain.next_id
        old, new = image_of(first), image_of(first + N_SLOTS)
        chain.store(old, pixels_of(first))
        chain.store(new, pixels_of(new.image_id))
        chain.announce(old, new)
        chain.expect(new, method)
        wait_until(lambda: accounted(stage) == chain.n_sent, "all images counted")
        assert stage.counters["overwritten"] == 1
        wait_until(lambda: stage.state is StageState.ALARM, "the alarm")
        assert "overwritten 1" in stage.status


def test_what_no_compressor_can_take_is_refused(
    chain: Chain, config: DaqConfig, method: Compression
) -> None:
    with started(ImageCompressor(config, method)) as stage:
        chain.connect()
        n = chain.next_id
        chain.announce(
            image_of(n, compression=Compression.BLOSC2),
            image_of(n, size=2 * config.sizes.slot_bytes),
            image_of(n, (2 * SHAPE[0], SHAPE[1])),
            image_of(n, size=10),
            image_of(n, size=0, dtype=Dtype.UNKNOWN),
        )
        chain.out.send(b"\xff not a message")
        chain.send(image_of(n))
        chain.expect(image_of(n), method)
        wait_until(lambda: stage.counters["malformed"] == 1, "the malformed message")
        assert stage.counters["refused"] == 5
        assert accounted(stage) == chain.n_sent


def test_ids_that_share_a_slot_do_not_mix(chain: Chain, config: DaqConfig, method: Compression) -> None:
    """A source that announces every n-th image only: all of them lie in one slot."""
    sizes = config.sizes
    chain.ring.close()
    # The pixels of all these images are the same: the source's slot may be shared, ours may not be torn.
    with closing(RingWriter.attach_or_create(config.segment("image"), sizes.n_slots, sizes.slot_bytes)):
        chain.ring = RingWriter.attach_or_create(
            config.segment("image"), sizes.n_slots, sizes.slot_bytes
        )
        try:
            with started(ImageCompressor(config, method, 4)) as stage:
                chain.connect()
                first = chain.next_id + -chain.next_id % 7  # compressible
                chain.store(image_of(first), pixels_of(first))
                images = [image_of(first + k * N_SLOTS) for k in range(60)]
                chain.announce(*images)
                messages = [chain.receive() for _ in images]
                assert [m.image_id for m in messages] == [image.image_id for image in images]
                assert np.array_equal(chain.pixels(messages[-1]), pixels_of(first))
                assert len({message.size for message in messages}) == 1
                assert accounted(stage) == chain.n_sent
        finally:
            chain.ring.close()
            Path(f"/dev/shm/{config.segment('image')}").unlink()


def test_threads_and_level_change_while_it_runs(config: DaqConfig) -> None:
    with (
        closing(Chain(config, BLOSC2)) as chain,
        started(ImageCompressor(config, BLOSC2, 1, level=1)) as stage,
    ):
        chain.connect()
        sizes = []
        for threads, level in [(1, 1), (4, 9), (2, 1), (1, 9)]:
            stage.threads, stage.level = threads, level
            wait_until(lambda: len(stage._workers) == stage.threads, "as many threads")
            for k in range(4):  # pixels of 7 k + 1 are of the same kind
                image = image_of(chain.next_id + -chain.next_id % 7 + 7 * k + 1)
                chain.send(image)
                chain.expect(image, BLOSC2)
            chain.next_id = image.image_id + 1
            same = image_of(chain.next_id)
            chain.store(same, pixels_of(8))
            chain.announce(same)
            sizes.append(chain.receive().size)
            chain.next_id += 1
        assert sizes[0] == sizes[2] != sizes[1] == sizes[3]
        assert accounted(stage) == chain.n_sent
        for wrong in (0, 65):
            with pytest.raises(ConfigError, match="allowed are 1 to 64"):
                stage.threads = wrong
        with pytest.raises(ConfigError, match="allowed are 1 to 9"):
            stage.level = 10


def test_follows_a_source_that_was_restarted(
    chain: Chain, config: DaqConfig, method: Compression
) -> None:
    with started(ImageCompressor(config, method, 2)) as stage:
        chain.connect()
        chain.ring.close()
        chain.announce(image_of(chain.next_id))  # of a ring that is gone
        wait_until(lambda: accounted(stage) == chain.n_sent, "the lost image counted")
        chain.ring = chain.new_ring()
        for image in (image_of(1), image_of(2)):  # its ids start again
            chain.send(image)
            chain.expect(image, method)
        assert stage.counters["overwritten"] == 1


def test_stop_finishes_what_was_accepted_and_start_goes_on(
    chain: Chain, config: DaqConfig, method: Compression
) -> None:
    stage = ImageCompressor(config, method, 2)
    with started(stage):
        chain.connect()
    assert stage.state is StageState.STANDBY
    n_before = accounted(stage)
    assert n_before == chain.n_sent
    with started(stage):
        chain.connect()
        assert accounted(stage) > n_before
        stage.reset()
        wait_until(lambda: accounted(stage) == 0, "the reset")


@pytest.mark.expects_errors
def test_two_of_a_kind_are_refused(chain: Chain, config: DaqConfig, method: Compression) -> None:
    with (
        started(ImageCompressor(config, method)),
        pytest.raises(ChannelError, match="in use by another process"),
    ):
        ImageCompressor(config, method).start()


@pytest.mark.expects_errors
def test_a_source_of_another_shape_is_a_fault_that_a_start_leaves(
    chain: Chain, config: DaqConfig, method: Compression
) -> None:
    stage = ImageCompressor(config, method, 2)
    with started(stage):
        chain.connect()
        chain.ring.close()
        chain.ring = RingOwner(config.segment("image"), N_SLOTS, 2 * config.sizes.slot_bytes)
        chain.announce(image_of(chain.next_id))
        wait_until(lambda: stage.state is StageState.FAULT, "the fault")
        assert "do all services use the same file?" in stage.status
    chain.ring.close()
    chain.ring = chain.new_ring()
    with started(stage):
        chain.connect()
        assert stage.state is not StageState.FAULT


def test_wrong_settings_are_named(config: DaqConfig) -> None:
    with pytest.raises(ConfigError, match="cannot read its own images"):
        ImageCompressor(config, BLOSC2, suffix="blosc2")
    with pytest.raises(ConfigError, match="multiples of 16 bytes"):
        ImageCompressor(config, BITSHUFFLE, block_bytes=8)


def test_pixels_of_filters_lie_in_the_image_ring(config: DaqConfig) -> None:
    assert ImageCompressor(config, BLOSC2, suffix="delay-filter")._suffixes == ("delay-filter", "image")
    assert ImageCompressor(config, BLOSC2, suffix="other")._suffixes == ("other", "other")
    assert ImageCompressor(config, BLOSC2, suffix="a", image_suffix="b")._suffixes == ("a", "b")


@pytest.mark.parametrize("option", [(), ("-t", 1, "-b", 4096), ("-t", 2, "-l", 9)])
def test_the_program_between_foreign_neighbours(
    tmp_path: Path, config: DaqConfig, option: tuple[object, ...]
) -> None:
    """A ring without an index and hand-made messages in, numpy and the libraries out."""
    method = BLOSC2 if "-l" in option else BITSHUFFLE
    name = f"compress-{method.name.lower().replace('_', '-')}"
    arguments = ["stage", name, save(config, tmp_path / "config.json"), *(option or ("--threads", 2))]
    path = Path(f"/dev/shm/{config.detector_name}-image")
    chain = Chain(config, method)
    chain.ring.close()
    with closing(chain), path.open("wb") as file:
        file.truncate(config.sizes.segment_bytes)
        chain.ring = RingWriter.attach_or_create(
            config.segment("image"), config.sizes.n_slots, config.sizes.slot_bytes
        )
        assert not chain.ring.has_index
        try:
            with running(tmp_path / "log", *arguments) as program:
                chain.connect()
                for image in map(image_of, range(chain.next_id, chain.next_id + 8)):
                    chain.send(image)
                    chain.expect(image, method)
                program.wait_for("compressed_images=")
                program.wait_for("ratio=")
                assert program.end()[0] == 0
        finally:
            path.unlink()


def test_no_thread_is_left(chain: Chain, config: DaqConfig, method: Compression) -> None:
    def n_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = n_threads()
    for _ in range(3):
        with started(ImageCompressor(config, method, 4)):
            chain.connect()
    deadline = time.monotonic() + 5
    while n_threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert n_threads() <= before
