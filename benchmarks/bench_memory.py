"""What servers take of memory, what the first round through a ring costs, and whether anything grows.

*start-up* is the resident memory of each device server of a running system, beside a bare Python that
has loaded tango, numpy and zmq. *first round* copies 1 GiB into a new ring, slot by slot, beside the
same copy into the same slots once their pages are there; each variant in a process of its own. *growth*
is that of the private memory of each stage while the detector sends as fast as it can, more than the
stages can take, and one acquisition follows the other.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks.bench_receive import CASES, Send, configuration, make_sender
from benchmarks.processes import Child, stages
from benchmarks.result import Result, seconds
from tango_stddaq import config as config_module
from tango_stddaq.config_entries import RingMemoryConfig
from tango_stddaq.control.plan import plan
from tango_stddaq.devices.system import System
from tango_stddaq.io.preflight import Request
from tango_stddaq.io.ring import RingOwner, RingWriter
from tango_stddaq.io.ring_memory import why_no_huge_pages
from tango_stddaq.processing.acquisition import DEFAULT_N_IMAGES
from tango_stddaq.sim.demo_config import build, free_tcp_port
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.live_stream import LiveStream
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import UdpReceiver
from tango_stddaq.stages.writer_driver import WriterDriver

_MIB = 2**20
_SLOTS, _SLOT_BYTES = 1024, _MIB
_BARE = "import tango, numpy, zmq; print(flush=True); input()"
_BATCH = 3000
GROWTH_S = "STDDAQ_BENCH_GROWTH_S"
"""Environment variable with the seconds that growth is looked for."""
VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {},
    "prefault": {"prefault": True},
    "huge pages": {"huge_pages": True},
    "huge pages, prefault": {"huge_pages": True, "prefault": True},
}


def run(quick: bool) -> list[Result]:
    """Measure all three."""
    growth_s = float(os.environ.get(GROWTH_S) or (5 if quick else 30))
    return [*_start_up(), *_first_rounds(1 if quick else 5), *_growth(growth_s)]


def resident(pid: int | str, key: str = "VmRSS") -> float:
    """Return resident MB of a process; `RssAnon`: what is its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024 / 1e6


# -- device servers as they start ------------------------------------------------------------------


def _start_up() -> list[Result]:
    with tempfile.TemporaryDirectory() as name, _tango_host_kept():
        data = build("eiger", f"BENCH-{os.getpid()}", 16, 1, "blosc2")
        config = config_module.from_dict(data)
        path = Path(name) / "config.json"
        path.write_text(config.model_dump_json(exclude_unset=True))
        with System(config, plan(config, path, (name,), simulate=True), Path(name)) as system:
            time.sleep(1)
            bare = _bare()
            found = {server.split("/")[0]: pid for server, pid in system.pids().items()}
            sizes = {server: (resident(pid), resident(pid, "RssAnon")) for server, pid in found.items()}
    what = "Python with tango, numpy and zmq"
    return [
        Result(f"memory/start-up, {server}", rss, "MB", bare, what, f"{own:.0f} MB of it its own")
        for server, (rss, own) in sizes.items()
    ]


def _bare() -> float:
    with subprocess.Popen(
        [sys.executable, "-c", _BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        if process.stdout is not None:
            process.stdout.readline()  # it is there
        found = resident(process.pid)
        process.kill()
    return found


@contextmanager
def _tango_host_kept() -> Iterator[None]:
    before = os.environ.get("TANGO_HOST")
    try:
        yield
    finally:
        os.environ.pop("TANGO_HOST", None)
        if before is not None:
            os.environ["TANGO_HOST"] = before


# -- the first round through a ring ----------------------------------------------------------------


class Ring:
    """A new ring of 1 GiB, mapped by its owner and by a receiver, and what it cost to get it."""

    def __init__(self, memory: dict[str, bool]) -> None:
        options = RingMemoryConfig(**memory)
        name = f"BENCH-{os.getpid()}-memory"
        start = time.perf_counter()
        self.owner = RingOwner(name, _SLOTS, _SLOT_BYTES, memory=options)
        owned = time.perf_counter()
        self.writer = RingWriter.attach(name, _SLOTS, _SLOT_BYTES, options)
        self.set_up_s = owned - start, time.perf_counter() - owned
        self.pixels = np.ones(_SLOT_BYTES, np.uint8)

    def round(self) -> None:
        """Copy an image to every slot, as a receiver does."""
        for slot in range(_SLOTS):
            self.writer.slot(slot)[:] = self.pixels


def first_round(ring: Ring) -> dict[str, float]:
    """Go round; return what it took, what the next round took, and what the set-up had taken."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first = seconds(ring.round)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    second = min(seconds(ring.round) for _ in range(3))
    owner, writer = ring.set_up_s
    ring.writer.close()
    ring.owner.close()
    return {"first": first, "second": second, "faults": faults, "owner": owner, "writer": writer}


def _first_rounds(rounds: int) -> list[Result]:
    variants = {
        name: memory
        for name, memory in VARIANTS.items()
        if not memory.get("huge_pages") or why_no_huge_pages() is None
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, memory in variants.items():
            with closing(Child(name, Ring, memory)) as child:
                measured[name].append(child.ask(first_round))
    return [result for name, found in measured.items() for result in _round_results(name, found)]


def _round_results(name: str, found: list[dict[str, float]]) -> list[Result]:
    middle = {key: statistics.median(entry[key] for entry in found) for key in found[0]}
    gb = _SLOTS * _SLOT_BYTES / 1e9
    note = f"set-up: owner {middle['owner']:.2f} s, receiver {middle['writer']:.2f} s"
    first, second = gb / middle["first"], gb / middle["second"]
    what = "next round, pages there"
    return [
        Result(f"memory/first round, {name}", first, "GB/s", second, what, note),
        Result(f"memory/first round, {name}, page faults", middle["faults"], "faults"),
    ]


# -- growth ----------------------------------------------------------------------------------------


class Begin:
    """A question to the driver: begin an acquisition of any number of images."""

    def __init__(self, path: str, number: int) -> None:
        self.path, self.number = path, number

    def __call__(self, driver: WriterDriver) -> None:
        """Begin."""
        driver.begin(Request(self.path, f"run{self.number}_", DEFAULT_N_IMAGES), wait_s=30)


def finish(driver: WriterDriver) -> int:
    """End the acquisition; return how many images are in its files."""
    driver.finish()
    if not driver.wait_until_idle(60):
        raise RuntimeError(driver.status)
    return driver.ledger.complete + driver.ledger.incomplete


def private_memory(_stage: object) -> float:
    """Return MB of this process that are its own."""
    return resident("self", "RssAnon")


class View:
    """A client of the live stream."""

    def __init__(self, address: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.socket.connect(address)


def view(client: View) -> int:
    """Take images until none came for a second; return how many."""
    n_images = 0
    while client.socket.poll(1000):
        client.socket.recv_multipart(copy=False)
        n_images += 1
    return n_images


def _growth(duration_s: float) -> list[Result]:
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    config = configuration(
        {
            **CASES["gigafrost 480x128"],
            "detector_name": f"BENCH-{os.getpid()}",
            "number_of_writers": 1,
            "live_stream_configs": {address: {"type": "forward"}},
        }
    )
    kinds: list[tuple[type[Any], dict[str, Any]]] = [
        (ModuleSync, {}),
        (FileWriter, {"writer_id": 0}),
        (WriterDriver, {}),
        (LiveStream, {"address": address}),
        (UdpReceiver, {}),
    ]
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as path,
        closing(Child("sender", make_sender, config.model_dump(mode="json"))) as sender,
        stages(config, *kinds) as children,
        closing(Child("viewer", View, address)) as viewer,
    ):
        number, n_stored, n_seen = 0, 0, 0

        def acquire() -> None:
            nonlocal number, n_stored, n_seen
            number += 1
            children[2].ask(Begin(path, number))
            viewer.begin(view)
            sender.ask(Send(_BATCH, 0))
            n_stored += children[2].ask(finish)
            n_seen += viewer.end()
            for file in Path(path).iterdir():
                file.unlink()

        for _ in range(2 + config.sizes.n_slots // _BATCH):  # the pages of the ring are touched
            acquire()
        before, n_warm, n_stored, n_seen = [c.ask(private_memory) for c in children], number, 0, 0
        end = time.monotonic() + duration_s
        while time.monotonic() < end:
            acquire()
        after = [child.ask(private_memory) for child in children]
    n_sent = (number - n_warm) * _BATCH
    note = f"{n_sent} images sent, {n_stored} in files, {n_seen} viewed"
    return [
        Result(f"memory/growth in {duration_s:.0f} s, {child.name}", now - then, "MB", note=note)
        for child, then, now in zip(children, before, after, strict=True)
    ]
