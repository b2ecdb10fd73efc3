"""The synchronizer's compiled loop between two sockets: whatever comes, the counts close."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import FRAME_HEADER, FRAME_HEADER_BYTES, HEADER_MARK
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.errors import ChannelError
from tango_stddaq.io.channels import MAX_MESSAGE_BYTES
from tango_stddaq.io.sync_loop import SyncLoop
from tango_stddaq.io.zmq_calls import handle_of
from tango_stddaq.model import Image, Status
from tango_stddaq.processing.metadata_template import MetadataTemplate
from tango_stddaq.processing.slots import (
    EMPTY_CLAIM,
    INDEX_ENTRY,
    INDEX_HEADER,
    MAX_IMAGE_ID,
    claim_slot,
    index_bytes,
)
from tango_stddaq.processing.synchronize import MAX_FRAMES, Synchronizer

from ...conftest import eiger_config

MODULES = (0, 1, 2, 3)
PACKETS_PER_FRAME = 64
N_SLOTS = 8
GUARD = 0xA5


class Bench:
    """A loop, what feeds it, and what takes its images."""

    def __init__(self, config: DaqConfig, patience_ns: int = 1) -> None:
        context = zmq.Context.instance()
        self.feed, self.source, self.target, self.images = (context.socket(zmq.PAIR) for _ in range(4))
        for handle in self.sockets:
            handle.set_hwm(0)
        for near, far, name in ((self.feed, self.source, "in"), (self.target, self.images, "out")):
            address = f"inproc://{config.detector_name}-{id(self)}-{name}"
            near.bind(address)
            far.connect(address)
        detector = detector_of(config)
        self.synchronizer = Synchronizer(MODULES, 3, PACKETS_PER_FRAME, patience_ns, 6)
        self.index = np.zeros(index_bytes(N_SLOTS, 0), np.uint8)
        header = self.index[: INDEX_HEADER.itemsize].view(INDEX_HEADER)
        header["epoch"], header["head"] = 1, EMPTY_CLAIM
        self.claims = self.index[INDEX_HEADER.itemsize :].view(INDEX_ENTRY)["claim"]
        self.claims[:] = EMPTY_CLAIM
        ring: Any = SimpleNamespace(index_address=self.index.ctypes.data, n_slots=N_SLOTS)
        template = MetadataTemplate(config.sizes, detector.metadata, detector.frame_header)
        self.loop = SyncLoop(self.synchronizer, template, ring, self.source, self.target)
        self._memory = np.full((MAX_FRAMES + 2048, FRAME_HEADER_BYTES), GUARD, np.uint8)
        self.loop._frames = self._memory[:MAX_FRAMES]

    @property
    def sockets(self) -> list["zmq.Socket[bytes]"]:
        return [self.feed, self.source, self.target, self.images]

    def send(self, data: bytes) -> None:
        """Send, and claim before what receivers of ours would have claimed."""
        if len(data) % FRAME_HEADER_BYTES == 0:
            for header in np.frombuffer(data, FRAME_HEADER):
                image_id, epoch = int(header["image_id"]), int(header["epoch"])
                if header["mark"] == HEADER_MARK and image_id <= MAX_IMAGE_ID:
                    entry = self.index.ctypes.data + INDEX_HEADER.itemsize
                    claim_slot(entry + image_id % N_SLOTS * INDEX_ENTRY.itemsize, image_id, epoch)
        self.feed.send(data)

    def turn_until_done(self, n_taken: int) -> None:
        """Turn until so many frames and malformed messages were taken."""
        for _ in range(10_000):
            special = self.loop.turn(0)
            if special is not None:
                self.loop.publish(len(special[1]))
            counts = self.loop.counts
            if counts["frames"] + counts["malformed"] >= n_taken:
                return
        raise AssertionError(f"{counts} of {n_taken}")

    def flush(self) -> list[Image]:
        """All images that were announced, those included that waited."""
        self.loop.publish(len(self.synchronizer.flush()))
        found = []
        while self.images.poll(0):
            found.append(image_metadata.decode(self.images.recv()))
        assert (self._memory[MAX_FRAMES:] == GUARD).all()
        return found

    def close(self) -> None:
        for handle in self.sockets:
            handle.close(0)


@pytest.fixture
def bench(config: DaqConfig) -> Iterator[Bench]:
    bench = Bench(config)
    yield bench
    bench.close()


def headers_of(*frames: tuple[int, int, int]) -> bytes:
    """Frames as (image id, module, epoch); epoch 0: of an existing program."""
    headers = np.zeros(len(frames), FRAME_HEADER)
    for header, (image_id, module, epoch) in zip(headers, frames, strict=True):
        header["image_id"], header["module_id"] = image_id, module
        if epoch:
            header["mark"], header["epoch"] = HEADER_MARK, epoch
    return headers.tobytes()


_frames = st.tuples(
    st.integers(0, 20) | st.sampled_from([MAX_IMAGE_ID, MAX_IMAGE_ID + 1, 2**63 - 1, 2**63, 2**64 - 1]),
    st.integers(0, 4),  # 4 is none of ours
    st.sampled_from([0, 1, 1, 1, 2, 0x7FFF, 0xFFFF]),
)
_messages = st.lists(_frames, min_size=1, max_size=6).map(lambda frames: headers_of(*frames))
_malformed = st.sampled_from([0, 1, 63, 65, MAX_MESSAGE_BYTES - 1, MAX_MESSAGE_BYTES + 64]).map(bytes)


@settings(max_examples=60)
@given(messages=st.lists(_messages | _malformed, max_size=20), in_one_go=st.booleans())
def test_every_frame_and_image_is_in_one_bin(messages: list[bytes], in_one_go: bool) -> None:
    bench = Bench(eiger_config("none"))
    try:
        n_frames = n_malformed = 0
        for data in messages:
            bench.send(data)
            is_good = 0 < len(data) <= MAX_MESSAGE_BYTES and len(data) % FRAME_HEADER_BYTES == 0
            n_frames += len(data) // FRAME_HEADER_BYTES * is_good
            n_malformed += not is_good
            if not in_one_go:
                bench.turn_until_done(n_frames + n_malformed)
        bench.turn_until_done(n_frames + n_malformed)
        images = bench.flush()
        counts, found = bench.loop.counts, bench.synchronizer
        assert (counts["frames"], counts["malformed"]) == (n_frames, n_malformed)
        n_joined = len(MODULES) * counts["images"] - counts["missing_modules"]
        assert n_joined + found.n_late + found.n_duplicate + found.n_foreign == n_frames
        n_lost = counts["images"] - counts["published"]  # of an older epoch, or a slot taken since
        assert 0 <= counts["images"] - len(images) <= n_lost
        if n_lost == 0:
            assert counts["missing_modules"] == sum(image.n_missing_modules for image in images)
            n_incomplete = sum(image.status is Status.MISSING_PACKETS for image in images)
            assert counts["incomplete"] == n_incomplete
    finally:
        bench.close()


def test_the_longest_messages_fit_and_a_longer_one_is_malformed(bench: Bench) -> None:
    n_images = MAX_MESSAGE_BYTES // FRAME_HEADER_BYTES // len(MODULES)
    for first in range(0, 8 * n_images, n_images):
        ids = range(first, first + n_images)
        data = headers_of(*((image_id, module, 1) for image_id in ids for module in MODULES))
        assert len(data) == MAX_MESSAGE_BYTES
        bench.send(data)
        bench.feed.send(data + data[:FRAME_HEADER_BYTES])
    bench.turn_until_done(8 * (n_images * len(MODULES) + 1))
    assert [image.image_id for image in bench.flush()] == list(range(8 * n_images))
    assert bench.loop.counts["malformed"] == 8
    assert bench.loop.counts["incomplete"] == 0


def test_an_image_whose_slot_is_taken_is_announced_and_not_published(bench: Bench) -> None:
    bench.claims[5] = 1 << 63 | 1 << 48 | 5 + N_SLOTS
    bench.send(headers_of(*((image_id, module, 1) for image_id in (4, 5) for module in MODULES)))
    bench.turn_until_done(2 * len(MODULES))
    assert [image.image_id for image in bench.flush()] == [4, 5]
    assert (bench.loop.counts["images"], bench.loop.counts["published"]) == (2, 1)
    assert bench.claims[5] == 1 << 63 | 1 << 48 | 5 + N_SLOTS


def test_metadata_of_the_largest_numbers_is_whole(bench: Bench) -> None:
    header = np.full(FRAME_HEADER_BYTES, 0xFF, np.uint8).view(FRAME_HEADER)
    header["image_id"], header["module_id"] = MAX_IMAGE_ID, 2
    header["mark"], header["epoch"] = HEADER_MARK, 1
    bench.feed.send(header.tobytes())
    bench.turn_until_done(1)
    (image,) = bench.flush()
    assert (image.image_id, image.n_missing_modules) == (MAX_IMAGE_ID, 3)
    assert image.n_missing_packets == 4 * PACKETS_PER_FRAME


def test_images_behind_one_that_had_its_time_go_on_though_no_frame_comes(config: DaqConfig) -> None:
    bench = Bench(config, patience_ns=20_000_000)
    try:
        bench.feed.send(headers_of((1, 0, 1), *((i, m, 1) for i in range(2, 6) for m in MODULES)))
        bench.turn_until_done(17)
        assert bench.loop.counts["images"] == 0
        deadline_s = time.monotonic() + 5
        while (special := bench.loop.turn(0.02)) is None and time.monotonic() < deadline_s:
            pass
        assert special is not None
        headers, joined = special
        assert (headers.size, joined["image_id"].tolist()) == (0, [1, 2, 3, 4, 5])
        assert joined["n_missing_modules"].tolist() == [3, 0, 0, 0, 0]
    finally:
        bench.close()


def test_a_flood_of_what_is_no_header_ends_a_turn_in_time(bench: Bench) -> None:
    for _ in range(20_000):
        bench.feed.send(b"not a header")
    n_turns = 0
    while bench.loop.counts["malformed"] < 20_000:
        bench.loop.turn(0)
        n_turns += 1
        assert n_turns < 10_000
    assert n_turns > 20  # each took so many as fit a turn, and came back


def test_a_socket_that_fails_is_an_error(bench: Bench) -> None:
    with zmq.Context.instance().socket(zmq.PUSH) as no_source:
        bench.loop._source = handle_of(no_source)
        with pytest.raises(ChannelError, match="ZeroMQ: "):
            bench.loop.turn(0)
