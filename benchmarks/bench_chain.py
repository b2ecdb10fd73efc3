"""The whole chain, simulator to file, and how long an image is under way.

Every stage is a process of its own. The files lie on tmpfs: what is measured is the chain, not a disk.
*rate* is the highest of a few rates at which every image was stored complete, beside what the sender
reaches with nobody listening. *latency* is from the last packet sent to the metadata, and to the pixels
in a client of the live stream, beside a bare ZeroMQ hop of an empty message.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks.bench_receive import CASES, Send, configuration, image_bytes_of, make_sender
from benchmarks.processes import Child, cpu_s, stages
from benchmarks.result import Result
from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource
from tango_stddaq.io.preflight import Request
from tango_stddaq.sim.demo_config import free_tcp_port
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.live_stream import LiveStream
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import UdpReceiver
from tango_stddaq.stages.writer_driver import WriterDriver

_DIRECTORY = Path("/dev/shm/stddaq-bench-files")
_MAX_FILE_BYTES = 2 * 2**30
_STEPS = 5


def run(quick: bool) -> list[Result]:
    """Measure the chain of three detectors, and the latency of two."""
    results = []
    for name in ("jungfrau raw", "eiger 16 bit", "gigafrost 480x128"):
        results += _chain(name, quick)
    for name in ("eiger 16 bit", "jungfrau raw"):
        results += _latency(name, quick)
    return results


def _chain(name: str, quick: bool) -> list[Result]:
    config = _with_writers(configuration(CASES[name]), 2)
    sender = Child("sender", make_sender, config.model_dump(mode="json"))
    _DIRECTORY.mkdir(exist_ok=True)
    try:
        image_bytes = sender.ask(image_bytes_of)
        free_hz = sender.ask(Send(2000, 0))
        kinds = [(ModuleSync, {}), (WriterDriver, {}), (FileWriter, {"writer_id": 0}),
                 (FileWriter, {"writer_id": 1}), (UdpReceiver, {})]  # fmt: skip
        with stages(config, *kinds) as children:
            sender.ask(Send(config.sizes.n_slots + 64, free_hz / 8))  # once round the ring
            time.sleep(1)
            rate, cpu = _highest(sender, children, free_hz, config, 0.5 if quick else 2.0)
    finally:
        sender.close()
        shutil.rmtree(_DIRECTORY, ignore_errors=True)
    gb = image_bytes / 1e9
    note = f"{rate:,.0f} images/s"
    return [
        Result(f"chain/{name}, rate", rate * gb, "GB/s", free_hz * gb, "sender, nobody listens", note),
        *(Result(f"chain/{name}, CPU of {stage}", us, "us an image") for stage, us in cpu.items()),
    ]


def _with_writers(config: DaqConfig, n_writers: int) -> DaqConfig:
    return config_module.from_dict({**config.model_dump(mode="json"), "number_of_writers": n_writers})


def _highest(
    sender: Child, children: list[Child], free_hz: float, config: DaqConfig, seconds: float
) -> tuple[float, dict[str, float]]:
    """Return the highest rate without a loss, and the microseconds a stage spent on an image then."""
    low, high = 0.0, free_hz
    spent: dict[str, float] = {}
    for _ in range(_STEPS):
        middle = (low + high) / 2
        n_images = int(min(middle * seconds, _MAX_FILE_BYTES / config.sizes.slot_bytes))
        complete, sent_hz, cpu = _acquire(sender, children, n_images, middle)
        if complete == n_images:
            low = min(middle, sent_hz)
            spent = {}
            for child, seconds_of_it in zip(children, cpu, strict=True):
                spent[child.name] = spent.get(child.name, 0.0) + seconds_of_it / n_images * 1e6
        else:
            high = middle
    return low, spent


def cpu_of(_: object) -> float:
    """Return the CPU seconds of the process that is asked."""
    return cpu_s()


def _acquire(
    sender: Child, children: list[Child], n_images: int, rate_hz: float
) -> tuple[int, float, list[float]]:
    """Return the complete images, the rate sent, and the CPU seconds of each stage.

    These are those of the images: to make, check and join files is the same work for one and a million.
    """
    driver = children[1]
    first_id = sender.ask(next_id)
    driver.ask(Begin(f"run{first_id}_", n_images + 1, first_id))
    before = [child.ask(cpu_of) for child in children]
    sent_hz = sender.ask(Send(n_images, rate_hz))
    driver.ask(wait_for_images)
    cpu = [child.ask(cpu_of) - start for child, start in zip(children, before, strict=True)]
    complete = driver.ask(end)
    for path in _DIRECTORY.glob("*.h5"):
        path.unlink()
    return complete, sent_hz, cpu


def next_id(sender: dict[str, Any]) -> int:
    """Return the id of the image that the sender sends next."""
    return int(sender["next"])


class Begin:
    """A question to the driver: begin an acquisition."""

    def __init__(self, prefix: str, n_images: int, start_id: int) -> None:
        self.request = Request(str(_DIRECTORY), prefix, n_images, start_id)

    def __call__(self, driver: WriterDriver) -> None:
        """Begin; the files exist when this returns."""
        driver.begin(self.request)


def wait_for_images(driver: WriterDriver) -> None:
    """Wait until nothing more comes."""
    while driver.busy and driver.n_dispatched == 0:
        time.sleep(0.1)
    n = -1
    while driver.busy and driver.n_dispatched != n:
        n = driver.n_dispatched
        driver.wait_until_idle(1.0)


def end(driver: WriterDriver) -> int:
    """End the acquisition; return the complete images."""
    driver.finish()
    driver.wait_until_idle(30)
    return driver.ledger.complete


def _latency(name: str, quick: bool) -> list[Result]:
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    config = configuration(CASES[name])
    n_images = 100 if quick else 1000
    kinds = [(ModuleSync, {}), (LiveStream, {"address": address}), (UdpReceiver, {})]
    with stages(config, *kinds):
        metadata = MetadataSource(config)
        client = channels.connect(zmq.SUB, address)
        simulated = SimulatedDetector(config, cycle=8)
        announced, received = [], []
        with simulated.transmission() as transmission:
            faults = _no_faults()
            for image_id in range(1, n_images + 1 + 100):
                transmission.send(image_id, 1, faults)
                start = time.perf_counter()
                if metadata.receive(1000):
                    announced.append(time.perf_counter() - start)
                if client.poll(1000):
                    client.recv_multipart()
                    received.append(time.perf_counter() - start)
                time.sleep(0.005)
        metadata.close()
        channels.close(client)
    hop = _hop(n_images)
    results = []
    for what, times in (("metadata", announced), ("pixels in a client", received)):
        for share in (50, 99):
            value = np.percentile(times[100:], share) * 1e3
            limit = np.percentile(hop, share) * 1e3
            results.append(
                Result(f"latency/{name}, {what}, p{share}", value, "ms", limit, "one ZeroMQ hop")
            )
    return results


def _no_faults() -> Any:
    from tango_stddaq.sim.faults import Faults  # noqa: PLC0415

    return Faults()


def _hop(n: int) -> list[float]:
    """Return the seconds of messages from one socket to another over ipc."""
    address = "ipc:///tmp/stddaq-bench-hop"
    out, there = channels.bind(zmq.PUSH, address), channels.connect(zmq.PULL, address)
    times = []
    for _ in range(n):
        start = time.perf_counter()
        out.send(b"")
        there.recv()
        times.append(time.perf_counter() - start)
        time.sleep(0.002)
    channels.close(out)
    channels.close(there)
    return times
