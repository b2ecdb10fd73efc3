"""The whole chain for a while, with every fault of the network: nothing grows, every ledger closes.

`STDDAQ_SOAK_S=180 python -m pytest tests/system/test_soak.py --log-cli-level=INFO` makes it a long one,
and says what grew by how much.

All stages and the simulator run in this process, so that the interpreter's own count of memory blocks
covers them. It decides, as it is exact: an object kept for each image, be it an integer, adds a block an
image (what is kept in a list of integers below 257 does not, but who keeps image ids does), and a run
has thousands. The bound is one block for ten images. Memory that is not Python's (ZeroMQ, HDF5, numpy's
pixels) shows in the private memory of the process; an allocator gives some of it back late, so the
bound is 16 MiB and 1 KiB an image: a kept image has 120 KiB.
"""

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.io.preflight import Request
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tango_stddaq.stages.base import Stage
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.live_stream import LiveStream
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import UdpReceiver
from tango_stddaq.stages.writer_driver import WriterDriver
from tests.system.programs import wait_until
from tests.system.test_detectors import config_of

_log = logging.getLogger(__name__)
SECONDS = float(os.environ.get("STDDAQ_SOAK_S", "15"))

pytestmark = [pytest.mark.system, pytest.mark.timeout(120 + 3 * SECONDS)]

N_IMAGES = 1500
"""Of one acquisition."""
RATE_HZ = 1000.0
WARM_ROUNDS = 2
"""Acquisitions before the first look: caches fill, code is loaded, the ring's pages are touched."""
FAULTS = {"drop": 0.01, "duplicate": 0.02, "reorder": 0.1, "corrupt": 0.005, "truncate": 0.005}


@dataclass(frozen=True)
class Held:
    """What this process holds."""

    n_files: int
    n_threads: int
    n_segments: int
    n_blocks: int
    private_bytes: int

    @classmethod
    def now(cls, detector_name: str) -> "Held":
        gc.collect()
        status = Path("/proc/self/status").read_text()
        private = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
        return cls(
            len(list(Path("/proc/self/fd").iterdir())),
            len(list(Path("/proc/self/task").iterdir())),
            len(list(Path("/dev/shm").glob(f"{detector_name}*"))),
            sys.getallocatedblocks(),
            int(private.split()[1]) * 1024,
        )

    def check_growth_since(self, before: "Held", n_images: int) -> None:
        kept = (self.n_files, self.n_threads, self.n_segments)
        # Fewer is well: what tests before this one have left may be collected meanwhile.
        pairs = zip(kept, (before.n_files, before.n_threads, before.n_segments), strict=True)
        assert all(now <= then for now, then in pairs), kept
        n_blocks = self.n_blocks - before.n_blocks
        n_bytes = self.private_bytes - before.private_bytes
        _log.info("%d images: %+d blocks, %+d bytes private memory", n_images, n_blocks, n_bytes)
        assert n_blocks < n_images / 10
        assert n_bytes < 16 * 2**20 + 1024 * n_images


class Viewer:
    """A client of the live stream in a thread."""

    def __init__(self, endpoint: str) -> None:
        self.n_images = 0
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(50):
                self._socket.recv_multipart(copy=False)
                self.n_images += 1

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()


class Chain:
    """All stages, a viewer and the detector in front of them."""

    def __init__(self, config: DaqConfig, stack: ExitStack) -> None:
        self.config = config
        self.detector = SimulatedDetector(config, cycle=4)
        self.sync, self.receiver = ModuleSync(config), UdpReceiver(config)
        self.stream, self.driver = LiveStream(config, "tcp://127.0.0.1:0"), WriterDriver(config)
        writers = [FileWriter(config, i) for i in range(config.number_of_writers)]
        self.stages: list[Stage] = [self.sync, self.stream, *writers, self.driver, self.receiver]
        for stage in self.stages:
            stage.start()
            stack.callback(stage.stop)
        self.viewer = stack.enter_context(closing(Viewer(self.stream.endpoint)))
        self.next_id = 1

    def acquire(self, directory: Path, number: int) -> None:
        """Take images with all faults; every bin of the ledger is what the detector did."""
        first, faults = self.next_id, Faults(seed=number, **FAULTS)
        self.next_id += N_IMAGES
        delays, failed = self.delays(), self.driver.counters["failed_acquisitions"]
        self.driver.begin(Request(str(directory), f"run{number}_", N_IMAGES), wait_s=30)
        self.detector.run(N_IMAGES, RATE_HZ, first_id=first, faults=faults)
        assert self.driver.wait_until_idle(60), self.driver.status
        ledger = self.driver.ledger
        assert self.driver.counters["failed_acquisitions"] == failed, self.driver.status
        assert ledger.expected == N_IMAGES == ledger.complete + ledger.incomplete + ledger.lost
        damaged = {image_id for image_id, _, _ in faults.dropped}
        assert damaged  # the test would prove little
        gone = {image_id for ids in ledger.lost_ids.values() for image_id in ids}
        assert damaged <= set(ledger.incomplete_ids) | gone
        if self.delays() == delays:  # else the machine stood still, and that made faults as well
            assert set(ledger.incomplete_ids) | gone == damaged | gone
        with h5py.File(self.driver.last_master) as file:
            ids = file["entry/data/image_id"][()]
            stored = np.setdiff1d(np.arange(first, first + N_IMAGES), ids).size
            assert (ids.size, stored) == (N_IMAGES - ledger.lost, ledger.lost)
        for path in directory.iterdir():
            path.unlink()

    def delays(self) -> int:
        """Packets and frames that were dropped or too late, though the detector sent them well."""
        self.receiver._tick()
        received = self.receiver.counters
        return received["kernel_drops"] + received["late"] + self.sync.counters["late"]

    def check_accounts(self) -> None:
        """Every stage says where each image, frame and packet went."""
        sync, stream = self.sync.counters, self.stream.counters
        assert sync["images"] == sync["complete"] + sync["incomplete"]
        assert sync["images"] + sync["skipped_ids"] + sync["overwritten"] == self.next_id - 1

        def seen() -> int:
            return stream["images"] + stream["overwritten"] + stream["no_buffer"]

        wait_until(lambda: seen() == sync["images"], "the live stream saw every image")
        lost = sum(self.receiver.counters[name] for name in ("bad_size", "bad_header", "duplicate"))
        assert lost > 0
        assert not any(stage.error for stage in self.stages)


@contextmanager
def chain(config: DaqConfig) -> Iterator[Chain]:
    with ExitStack() as stack:
        yield Chain(config, stack)


def test_nothing_grows_and_every_ledger_closes(
    detector_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tango_stddaq")  # pytest keeps every message
    config = config_of(
        detector_name, "gigafrost", 128, 480, 8, ring_slots=1000, number_of_writers=2,
        stats_collection_period=3600,
    )  # fmt: skip
    with chain(config) as first:  # libraries open what they keep: threads, descriptors
        first.acquire(tmp_path, 0)
    outside = Held.now(detector_name)
    with chain(config) as daq:
        for number in range(1, WARM_ROUNDS + 1):
            daq.acquire(tmp_path, number)
        warm, n_warm = Held.now(detector_name), daq.next_id
        number, end = WARM_ROUNDS, time.monotonic() + SECONDS
        while time.monotonic() < end:
            number += 1
            daq.acquire(tmp_path, number)
        daq.check_accounts()
        Held.now(detector_name).check_growth_since(warm, daq.next_id - n_warm)
        viewed = daq.viewer.n_images
    assert viewed > 0
    after = Held.now(detector_name)
    assert after.n_files <= outside.n_files
    assert after.n_threads <= outside.n_threads
    assert after.n_segments == 0
