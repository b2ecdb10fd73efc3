"""Synchronizer and writer driver at the image rates of small frames, with no pixels moved.

One process sends the frame headers of eight modules as four receivers do: each a message a millisecond.
Another plays two writers. In between synchronizer and driver run as they are. Nothing may get lost, and
what an image costs tells how many of them one core carries: these two stages cannot be cut.
"""

import time
from typing import Any

import numpy as np
import zmq
from numba import njit, uint64

from benchmarks.bench_receive import CASES, configuration
from benchmarks.processes import Child, counters_of, stages
from benchmarks.result import Result
from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import FRAME_HEADER, HEADER_MARK
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.io import channels
from tango_stddaq.io.preflight import Request
from tango_stddaq.io.ring import RingWriter
from tango_stddaq.io.zmq_calls import handle_of, receive_rows
from tango_stddaq.processing.acquisition import Account, DriverStatus
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.writer_driver import WriterDriver

RATES_HZ = (5_000, 10_000, 20_000, 40_000)
N_RECEIVERS = 4
N_WRITERS = 2
_PERIOD_S = 0.001


def run(quick: bool) -> list[Result]:
    """Measure both at each rate."""
    data = configuration(CASES["gigafrost 480x128"]).model_dump(mode="json")
    config = config_module.from_dict({**data, "number_of_writers": N_WRITERS})
    children: list[Child] = []
    try:
        with stages(config, (ModuleSync, {}), (WriterDriver, {})) as (sync, driver):
            data = config.model_dump(mode="json")
            receivers, writers = Child("receivers", Headers, data), Child("writers", Takers, data)
            children += [receivers, writers]
            driver.ask(record)
            _at(2_000, 0.5, receivers, sync, driver, writers)  # warm
            results = []
            for rate_hz in RATES_HZ:
                results += _at(rate_hz, 1.0 if quick else 5.0, receivers, sync, driver, writers)
            driver.ask(forget)
            return results
    finally:
        for child in children:
            child.close()


def _at(
    rate_hz: int, seconds: float, receivers: Child, sync: Child, driver: Child, writers: Child
) -> list[Result]:
    n_images = int(rate_hz * seconds)
    before = [child.ask(counters_of) for child in (sync, driver)]
    writers.begin(Take(n_images))
    sent_hz = receivers.ask(SendHeaders(n_images, rate_hz))
    after = [child.ask(counters_of) for child in (sync, driver)]
    n_taken = writers.end()
    if n_taken != n_images:
        raise RuntimeError(f"{n_taken} of {n_images} images reached the writers at {sent_hz:,.0f}/s")
    return [
        Result(
            f"bookkeeping/{child.name} at {rate_hz} images/s", (b[1] - a[1]) / n_images * 1e6, "us",
            1e6 / rate_hz, "one core; less is better",
            f"CPU of the process an image; {sent_hz:,.0f} images/s came, none was lost",
        )
        for child, a, b in zip((sync, driver), before, after, strict=True)
    ]  # fmt: skip


# -- an acquisition without files ------------------------------------------------------------------


def record(driver: WriterDriver) -> None:
    """Let the driver hand all that comes to the writers."""
    while not all(link.is_same_as(1) for link in driver.links.all):
        time.sleep(0.05)
    driver._request = Request("/", "none", 2**31)
    driver._account = Account(2**31)
    driver.acquisition_status = DriverStatus.RECORDING


def forget(driver: WriterDriver) -> None:
    """End it."""
    driver.acquisition_status = DriverStatus.IDLE


# -- the receivers ---------------------------------------------------------------------------------


class Headers:
    """Frame headers of all modules, without frames: slots are claimed for them, and not written."""

    def __init__(self, data: dict[str, Any]) -> None:
        config: DaqConfig = config_module.from_dict(data)
        modules = detector_of(config).modules
        self.sockets = [
            channels.connect(zmq.PUSH, channels.ipc_address(config.detector_name, "sync"))
            for _ in range(N_RECEIVERS)
        ]
        self.parts = np.array_split(np.array(modules), N_RECEIVERS)
        sizes = config.sizes
        self.ring = RingWriter.attach(config.segment("image"), sizes.n_slots, sizes.slot_bytes)
        self.next_id = 1
        time.sleep(0.5)

    def send(self, n: int) -> None:
        """Send the headers of the next images, a message of each receiver."""
        ids = np.arange(self.next_id, self.next_id + n)
        epochs = [self.ring.claim(image_id) for image_id in ids.tolist()]
        for out, modules in zip(self.sockets, self.parts, strict=True):
            headers = np.zeros((n, modules.size), FRAME_HEADER)
            headers["image_id"], headers["module_id"] = ids[:, None], modules[None, :]
            headers["mark"], headers["epoch"] = HEADER_MARK, np.array(epochs)[:, None]
            out.send(headers.tobytes())
        self.next_id += n


class SendHeaders:
    """A question to the receivers: send so many images, return how many a second it were."""

    def __init__(self, n_images: int, rate_hz: float) -> None:
        self.n_images, self.rate_hz = n_images, rate_hz

    def __call__(self, headers: Headers) -> float:
        """Send what is due, once a millisecond."""
        start, n_sent = time.perf_counter(), 0
        while n_sent < self.n_images:
            due = min(self.n_images, int((time.perf_counter() - start) * self.rate_hz) + 1)
            if due > n_sent:
                headers.send(min(due - n_sent, 256))
                n_sent += min(due - n_sent, 256)
            time.sleep(_PERIOD_S)
        elapsed_s = time.perf_counter() - start
        time.sleep(0.1)  # until the stages have taken them
        return self.n_images / elapsed_s


# -- the writers -----------------------------------------------------------------------------------


class Takers:
    """Take the driver's actions, as writers do."""

    def __init__(self, data: dict[str, Any]) -> None:
        config: DaqConfig = config_module.from_dict(data)
        name = config.detector_name
        self.out = [
            channels.bind(zmq.PUSH, channels.ipc_address(name, f"writer-{i}"), channels.DRIVER_HWM)
            for i in range(N_WRITERS)
        ]
        self.actions = [
            channels.connect(zmq.PULL, channels.ipc_address(name, f"driver-{i}"), channels.DRIVER_HWM)
            for i in range(N_WRITERS)
        ]
        self.rows = np.zeros((1024, 512), np.uint8)
        self.lengths = np.zeros(1024, np.int64)


class Take:
    """A question to the writers: take so many images, return how many came, each once and in order."""

    def __init__(self, n_images: int) -> None:
        self.n_images = n_images

    def __call__(self, takers: Takers) -> int:
        """Take until all came, or none for five seconds."""
        n_taken, last_s = 0, time.monotonic()
        last_ids = np.zeros(N_WRITERS, np.int64)
        while n_taken < self.n_images and time.monotonic() - last_s < 5:
            for writer, handle in enumerate(takers.actions):
                n = receive_rows(handle_of(handle), 2, takers.rows, takers.lengths)
                n_good, last_ids[writer] = _count_in_order(takers.rows, n, last_ids[writer])
                n_taken += n_good
                if n:
                    last_s = time.monotonic()
        return n_taken


@njit
def _count_in_order(rows, n, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Count the images whose ids follow each other, N_WRITERS apart; returns also the last id."""
    n_good = 0
    for i in range(n):
        at = 2  # RecordImage and its length, ImageMetadata and its length, the key of the id, the id
        while rows[i, at - 1] >= 0x80:
            at += 1
        at += 2
        while rows[i, at - 1] >= 0x80:
            at += 1
        at += 1
        image_id = uint64(0)
        shift = 0
        while True:
            image_id |= uint64(rows[i, at] & 0x7F) << uint64(shift)
            shift += 7
            if rows[i, at] < 0x80:
                break
            at += 1
        n_good += last == 0 or np.int64(image_id) == last + N_WRITERS
        last = np.int64(image_id)
    return n_good, last
