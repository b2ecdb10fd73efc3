"""A receiver whose synchronizer is away, and a synchronizer that is fed what no receiver would send."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import FRAME_HEADER, FRAME_HEADER_BYTES, HEADER_MARK
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner, RingReader, RingWriter
from tango_stddaq.io.segment import SHM_DIR
from tango_stddaq.model import Image, Status
from tango_stddaq.processing.slots import (
    EPOCH_MASK,
    INDEX_ENTRY,
    INDEX_HEADER,
    MAX_IMAGE_ID,
    claim_slot,
    holds_slot,
)
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import UdpReceiver
from tests.conftest import eiger_config

from .programs import running as program
from .programs import save, wait_until
from .stages import running

pytestmark = pytest.mark.system

N_MODULES = 4


def headers_of(image_id: int, *modules: int, epoch: int = 1) -> bytes:
    """Frame headers; epoch 0: of an existing program."""
    headers = np.zeros(len(modules), FRAME_HEADER)
    headers["image_id"], headers["module_id"] = image_id, modules
    if epoch:
        headers["mark"], headers["epoch"] = HEADER_MARK, epoch
    return headers.tobytes()


def counted(sync: ModuleSync, n_images: int) -> dict[str, int]:
    """Return the counters once so many images are counted: that is done after they were announced."""
    wait_until(lambda: sync.counters["images"] == n_images, f"{n_images} images are counted", 5)
    sync._tick()
    return sync.counters


def test_frames_that_no_synchronizer_takes_are_counted(
    config: DaqConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = channels.connect_watched

    def connect_narrow(kind: int, address: str) -> Any:
        return connect(kind, address, 2)

    monkeypatch.setattr(channels, "connect_watched", connect_narrow)
    receiver = UdpReceiver(config)
    owner = RingOwner.of_images(config, "image", N_MODULES * receiver.detector.layout.mask_words)
    sync: zmq.Socket[bytes] | None = None
    found: list[np.ndarray] = []

    def n_done() -> int:
        receiver._tick()
        return receiver.counters["frames"]

    try:
        with running(receiver):
            simulator = SimulatedDetector(config)
            faults = Faults(drop=0.01)
            sent = 0
            for n_images in (40, 5):  # the socket keeps few of the first; those that follow are taken
                simulator.run(n_images, 500, first_id=sent + 1, faults=faults)
                sent += n_images
                wait_until(lambda: n_done() == N_MODULES * sent, "all frames are finished")  # noqa: B023
                if sync is None:
                    sync = channels.bind(zmq.PULL, channels.ipc_address(config.detector_name, "sync"), 2)
                    assert sync.poll(5000)
                while sync.poll(200):
                    found.append(np.frombuffer(sync.recv(), FRAME_HEADER))
            receiver._tick()
            counters = dict(receiver.counters)
            missing = int(receiver.missing_per_module.sum())
    finally:
        if sync is not None:
            channels.close(sync)
        owner.close()
    headers = np.concatenate(found)
    assert counters["unannounced_frames"] > 0
    assert headers.size + counters["unannounced_frames"] == counters["frames"] == N_MODULES * sent
    assert counters["missing_packets"] == missing == len(faults.dropped)
    assert len({(int(h["image_id"]), int(h["module_id"])) for h in headers}) == headers.size
    assert {int(h["image_id"]) for h in headers[-2 * N_MODULES :]} <= set(range(sent - 4, sent + 1))


@pytest.mark.parametrize("comes_back", [False, True])
def test_frames_announced_to_a_killed_synchronizer_are_counted_by_one_side(
    config: DaqConfig, tmp_path: Path, comes_back: bool
) -> None:
    path = save(config, tmp_path / "config.json")
    simulator, receiver, other = SimulatedDetector(config), UdpReceiver(config), ModuleSync(config)

    def simulate(n_images: int, first_id: int) -> None:
        simulator.run(n_images, 100, first_id=first_id)
        n_frames = N_MODULES * (first_id + n_images - 1)
        wait_until(lambda: receiver.counters["frames"] == n_frames, "all frames are finished")

    with ExitStack() as stack:
        stack.callback(other.stop)
        sync = stack.enter_context(program(tmp_path / "sync.log", "stage", "module-sync", path))
        sync.wait_for("[event] started")
        with running(receiver):
            wait_until(
                lambda: receiver._sync is not None and receiver._sync.is_heard,
                "they have found each other",
            )
            simulate(5, first_id=1)
            time.sleep(0.2)
            sync.process.kill()
            wait_until(lambda: not receiver._sync.is_heard, "it sees that it is alone")
            simulate(10, first_id=6)
            if comes_back:
                other.start()
                wait_until(lambda: other.counters["overwritten"] == 10, "it got what had waited")
                simulate(3, first_id=16)
                wait_until(lambda: other.counters["complete"] == 3, "and what came since")
        n_unread = 0 if comes_back else 10 * N_MODULES
        assert receiver.counters["unread_frames"] == n_unread
        text = f"{n_unread} frames were announced since the synchronizer went"
        assert any(text in line for line in receiver.log_lines) is not comes_back
        if not comes_back:
            other.start()  # it removes what the killed one left
            time.sleep(0.2)
            assert other.counters["frames"] == 0


class Listener:
    """Takes what a synchronizer announces."""

    def __init__(self, config: DaqConfig) -> None:
        self._socket = channels.connect(zmq.SUB, channels.ipc_address(config.detector_name, "image"))
        self.images: list[Image] = []

    def ids(self, sync: ModuleSync, n_images: int) -> list[int]:
        """Wait for so many, in the order in which they came."""
        deadline_s = time.monotonic() + 10
        while len(self.images) < n_images and time.monotonic() < deadline_s:
            while self._socket.poll(20):
                self.images.append(image_metadata.decode(self._socket.recv()))
        return [image.image_id for image in self.images]

    def close(self) -> None:
        channels.close(self._socket)


class Feed:
    """What receivers do: claim slots, write into them, and announce."""

    def __init__(self, config: DaqConfig) -> None:
        self._socket = channels.connect(zmq.PUSH, channels.ipc_address(config.detector_name, "sync"))
        assert self._socket.poll(5000, zmq.POLLOUT)
        sizes = config.sizes
        self.ring = RingWriter.attach(config.segment("image"), sizes.n_slots, sizes.slot_bytes)

    def _entry(self, image_id: int) -> int:
        slot = image_id % self.ring.n_slots
        return self.ring.index_address + INDEX_HEADER.itemsize + slot * INDEX_ENTRY.itemsize

    def write(self, image_id: int, epoch: int, value: int) -> None:
        assert claim_slot(self._entry(image_id), image_id, epoch)
        self.ring.slot(image_id)[:] = value

    def is_held(self, image_id: int, epoch: int) -> bool:
        return holds_slot(self._entry(image_id), image_id, epoch)

    def announce(self, data: bytes) -> None:
        """Send what was written before."""
        self._socket.send(data)

    def send(self, data: bytes) -> None:
        """Claim what is of ours, and send."""
        for header in np.frombuffer(data, FRAME_HEADER):
            image_id = int(header["image_id"])
            if header["mark"] == HEADER_MARK and image_id <= MAX_IMAGE_ID:
                claim_slot(self._entry(image_id), image_id, int(header["epoch"]))
        self._socket.send(data)

    def close(self) -> None:
        channels.close(self._socket)
        self.ring.close()


@contextmanager
def fed(config: DaqConfig, idle_timeout_s: float = 1.0) -> Iterator[tuple[ModuleSync, Feed, Listener]]:
    """A synchronizer, what feeds it, and what listens to it since before the first image."""
    sync, listener, feed = ModuleSync(config, idle_timeout_s), Listener(config), None
    try:
        with running(sync):
            feed = Feed(config)
            for image_id in range(500):  # of an epoch before that of the tests
                feed.send(headers_of(image_id, *range(N_MODULES), epoch=EPOCH_MASK))
                if listener._socket.poll(20):
                    break
            sync.reset()
            wait_until(lambda: not sync._reset_requested.is_set(), "the reset is done")
            time.sleep(0.05)
            while listener._socket.poll(20):
                listener._socket.recv()
            yield sync, feed, listener
    finally:
        if feed is not None:
            feed.close()
        listener.close()


def test_frames_of_both_kinds_and_missing_modules_in_one_batch(config: DaqConfig) -> None:
    with fed(config) as (sync, feed, listener):
        batch = b"".join(
            headers_of(image_id, *modules, epoch=epoch)
            for image_id in range(1, 40)
            for epoch, modules in ((1, (0, 1)), (0, (2, 3) if image_id % 3 else (3,)))
        )
        feed.send(batch + headers_of(2**48, 0))
        ids = listener.ids(sync, 39)
        counters = counted(sync, 39)
        assert ids == list(range(1, 40))
        n_frames = len(batch) // FRAME_HEADER_BYTES
        assert counters["frames"] == n_frames + 1
        assert counters["foreign"] == 1
        assert (counters["images"], counters["complete"], counters["incomplete"]) == (39, 26, 13)
        assert counters["missing_modules"] == 13
        status = [image.status is Status.GOOD_IMAGE for image in listener.images]
        assert status == [image_id % 3 != 0 for image_id in range(1, 40)]
    (SHM_DIR / config.segment("image")).unlink()  # stays for an existing program


@pytest.mark.parametrize("dropped", ["late", "foreign", "duplicate"])
def test_a_dropped_frame_of_an_existing_program_leaves_the_masks_alone(
    config: DaqConfig, dropped: str
) -> None:
    n_slots, image_id = config.sizes.n_slots, config.sizes.n_slots + 3
    with fed(config, idle_timeout_s=60) as (sync, feed, listener):
        feed.send(headers_of(1, *range(N_MODULES)) + headers_of(3, *range(N_MODULES), epoch=0))
        assert listener.ids(sync, 2) == [1, 3]
        feed.write(image_id, 1, 44)
        mask = np.array([0b1010], np.uint64)
        feed.ring.note_missing(image_id, 0, mask)
        first = np.frombuffer(headers_of(image_id, 0), FRAME_HEADER).copy()
        first["n_missing_packets"] = 2
        of_slot = {"late": 3, "foreign": 2**48 + (3 - 2**48) % n_slots, "duplicate": image_id}[dropped]
        joined = headers_of(image_id, 1, epoch=0)
        feed.announce(first.tobytes() + headers_of(of_slot, 0, epoch=0) + joined)
        feed.announce(headers_of(image_id, *range(2, N_MODULES)))
        assert listener.ids(sync, 3) == [1, 3, image_id]
        assert feed.ring.missing_packets(image_id)[: mask.size].tolist() == mask.tolist()
        wait_until(lambda: sync.last_incomplete_id == image_id, "it is counted")
        assert np.flatnonzero(sync.last_missing_packets[0]).tolist() == [1, 3]
        sync._tick()
        assert sync.counters[dropped] == 1
    (SHM_DIR / config.segment("image")).unlink()  # stays for an existing program


def test_a_flood_keeps_it_neither_from_its_work_nor_from_stopping(config: DaqConfig) -> None:
    stop = threading.Event()

    def flood() -> None:
        other = channels.connect(zmq.PUSH, channels.ipc_address(config.detector_name, "sync"))
        while not stop.is_set():
            for _ in range(100):
                try:
                    other.send(b"no header", zmq.DONTWAIT)
                except zmq.Again:
                    break
        channels.close(other)

    with fed(config) as (sync, feed, listener):
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            wait_until(lambda: sync.counters["malformed"] > 1000, "the flood has come")
            for image_id in range(1, 11):
                feed.send(headers_of(image_id, *range(N_MODULES)))
            assert listener.ids(sync, 10) == list(range(1, 11))
            started = time.monotonic()
            sync.stop()
            assert time.monotonic() - started < 2
        finally:
            stop.set()
            thread.join()


def test_reset_while_images_wait_announces_them_and_counts_anew(config: DaqConfig) -> None:
    with fed(config) as (sync, feed, listener):
        for image_id in range(1, 6):
            feed.send(headers_of(image_id, 0, 1, 2))
        wait_until(lambda: sync.counters["frames"] == 15, "the frames were taken")
        sync.reset()
        assert listener.ids(sync, 5) == [1, 2, 3, 4, 5]
        for image_id in range(1, 6):
            feed.send(headers_of(image_id, 3))
        feed.send(headers_of(6, *range(N_MODULES)))
        assert listener.ids(sync, 6)[-1] == 6
        counters = counted(sync, 1)
        assert (counters["images"], counters["complete"], counters["late"]) == (1, 1, 5)


@pytest.mark.parametrize("n_slots", [4, 8])
def test_one_frame_that_never_comes_costs_no_other_image_in_a_small_ring(
    detector_name: str, n_slots: int
) -> None:
    """The queue of 50 images is longer than the ring: nothing may wait until it is overwritten."""
    config = eiger_config(detector_name, ring_slots=n_slots)
    with fed(config, idle_timeout_s=60) as (sync, feed, listener):
        for image_id in range(1, 61):
            epoch = feed.ring.claim(image_id)
            assert epoch
            modules = range(1, N_MODULES) if image_id == 10 else range(N_MODULES)
            feed.announce(headers_of(image_id, *modules, epoch=epoch))
            n_images = image_id - n_slots // 2
            wait_until(lambda: sync.counters["images"] >= n_images, "it goes on", 5)  # noqa: B023
        assert listener.ids(sync, 60) == list(range(1, 61))
        counters = counted(sync, 60)
        assert (counters["overwritten"], counters["incomplete"], counters["complete"]) == (0, 1, 59)


def pixels_of(config: DaqConfig, image_id: int) -> set[int] | None:
    """The values in an image's slot as a consumer gets them; None if it is not there."""
    sizes = config.sizes
    out = np.zeros(sizes.slot_bytes, np.uint8)
    with RingReader.attach(config.segment("image"), sizes.n_slots, sizes.slot_bytes) as reader:
        return set(np.unique(out).tolist()) if reader.copy(image_id, out) else None


@pytest.mark.parametrize("n_old", [N_MODULES, N_MODULES - 1])
@pytest.mark.parametrize("in_one_message", [True, False])
def test_an_image_overwritten_by_the_one_of_its_id_since_ids_started_again_is_lost(
    config: DaqConfig, n_old: int, in_one_message: bool
) -> None:
    """Of the older one a module may be missing: its pixels are cleared, those of the newer one not."""
    with fed(config) as (sync, feed, listener):
        feed.write(5, 1, 11)
        feed.write(5, 2, 22)
        feed.write(6, 2, 33)
        old = headers_of(5, *range(n_old), epoch=1)
        new = headers_of(5, *range(N_MODULES), epoch=2) + headers_of(6, *range(N_MODULES), epoch=2)
        if in_one_message:
            feed.announce(old + new)
        else:
            feed.announce(old)
            if n_old == N_MODULES:
                wait_until(lambda: sync.counters["overwritten"] == 1, "it is counted")
                assert feed.is_held(5, 2)  # it may still be written
            feed.announce(new)
        wait_until(lambda: sync.counters["images"] == 3, "all went on")
        assert listener.ids(sync, 2) == [5, 6]
        assert {image.status for image in listener.images} == {Status.GOOD_IMAGE}
        assert (pixels_of(config, 5), pixels_of(config, 6)) == ({22}, {33})
        counters = sync.counters
        assert (counters["complete"], counters["incomplete"], counters["overwritten"]) == (2, 0, 1)


def test_an_image_written_before_the_ring_was_cleared_is_lost(config: DaqConfig) -> None:
    """As a receiver announced it to a synchronizer that was killed."""
    with fed(config) as (sync, feed, listener):
        feed.announce(headers_of(7, *range(N_MODULES), epoch=1))
        feed.send(headers_of(8, *range(N_MODULES), epoch=1))
        assert listener.ids(sync, 2) == [7, 8]  # a consumer counts it as lost
        assert (pixels_of(config, 7), pixels_of(config, 8)) == (None, {0})
        wait_until(lambda: sync.counters["images"] == 2, "both went on")
        assert (sync.counters["complete"], sync.counters["overwritten"]) == (1, 1)
