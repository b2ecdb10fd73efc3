"""Live stream: images a second and latency, beside a bare ZeroMQ PUB/SUB loop of the same bytes.

Clients are processes of their own, which take the images and look at nothing. One *elsewhere* drops them
in the kernel: it needs no core of this machine, as if it ran on another one. At most a few images are
on their way at a time, so that neither side loses any: the rate is that of the slowest client.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import zmq

from benchmarks.result import Result
from benchmarks.stream_client import N_IMAGES, N_WORDS, TIMES, shared
from tango_stddaq import config as config_module
from tango_stddaq.codecs import array10, image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.io.stream_socket import SEND_BUFFER_BYTES
from tango_stddaq.model import Dtype, Image
from tango_stddaq.sim.demo_config import free_tcp_port

_SHAPES: Final = ((2160, 2560), (512, 1024))
_WINDOW_BYTES: Final = 96 * 2**20
_MAX_WINDOW: Final = 32
"""ZeroMQ tells the sender in steps of 50 what a client took: one that is 50 behind may lose images."""
_N_SLOTS: Final = 64
_PATIENCE_S: Final = 30.0
_LATENCY_HZ: Final = 40.0
_LATENCY_ROUNDS: Final = 5
_SETTLE_S: Final = 1.0
_POLL_S: Final = 1e-3

_HERE, _ELSEWHERE = "benchmarks.stream_client", "benchmarks.stream_sink"
"""Clients that take a core of this machine, and those that take next to nothing of it."""

Send = Callable[[int], None]


def run(quick: bool) -> list[Result]:
    """Measure rate and latency of both image sizes."""
    results = []
    for shape in _SHAPES:
        rounds, duration_s = (2, 0.5) if quick else (7, 1.5)
        for n_clients in (1, 4):
            results += _rates(shape, n_clients, rounds, duration_s)
        results += _rates(shape, 1, rounds, duration_s, _ELSEWHERE)
        results += _latencies(shape, 60 if quick else 400)
    return results


# -- what is compared ------------------------------------------------------------------------------


@contextmanager
def bare(shape: tuple[int, int], address: str, send_buffer_bytes: int = -1) -> Iterator[Send]:
    """A PUB socket that sends from as many images in memory as the ring has: no copy, no check."""
    frames = [
        zmq.Frame(
            np.random.default_rng(slot).integers(0, 16, 2 * shape[0] * shape[1], np.uint8), copy=False
        )
        for slot in range(_N_SLOTS)
    ]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    out = context.socket(zmq.PUB)
    out.setsockopt(zmq.SNDHWM, channels.STREAM_HWM)
    out.setsockopt(zmq.SNDBUF, send_buffer_bytes)
    out.bind(address)

    def send(image_id: int) -> None:
        out.send(array10.encode_header(_image(shape, image_id)), zmq.SNDMORE)
        out.send(frames[image_id % _N_SLOTS], copy=False)

    try:
        yield send
    finally:
        out.close(0)
        context.term()


def tuned(shape: tuple[int, int], address: str) -> AbstractContextManager[Send]:
    """The bare one with the kernel buffer that our stage sets."""
    return bare(shape, address, SEND_BUFFER_BYTES)


@contextmanager
def stage(shape: tuple[int, int], address: str) -> Iterator[Send]:
    """`stddaq stage live-stream` as a process, reading a ring that is filled already."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        config = _config(shape, address)
        path = Path(directory, "config.json")
        path.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
        sizes = config.sizes
        ring = stack.enter_context(RingOwner(config.segment("image"), sizes.n_slots, sizes.slot_bytes))
        for slot in range(_N_SLOTS):
            ring.begin(slot)[:] = np.random.default_rng(slot).integers(0, 16, sizes.slot_bytes, np.uint8)
        out = channels.bind(zmq.XPUB, channels.ipc_address(config.detector_name, "image"))
        stack.callback(channels.close, out)
        command = [sys.executable, "-m", "tango_stddaq.cli.main", "stage", "live-stream"]
        process = subprocess.Popen(
            [*command, str(path), address], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        stack.callback(_end, process)
        if not out.poll(int(_PATIENCE_S * 1000)):
            raise RuntimeError("the stage did not subscribe")

        def send(image_id: int) -> None:
            ring.begin(image_id)
            ring.publish(image_id)
            out.send(image_metadata.encode(_image(shape, image_id)))

        yield send


def _config(shape: tuple[int, int], address: str) -> DaqConfig:
    return config_module.from_dict(
        {
            "detector_name": f"bench-{uuid.uuid4().hex[:8]}",
            "detector_type": "pco",
            "n_modules": 1,
            "bit_depth": 16,
            "image_pixel_height": shape[0],
            "image_pixel_width": shape[1],
            "start_udp_port": 0,
            "module_positions": {},
            "ring_slots": _N_SLOTS,
            "live_stream_configs": {address: {"type": "forward"}},
        }
    )


def _image(shape: tuple[int, int], image_id: int) -> Image:
    return Image(image_id, *shape, shape[0] * shape[1] * 2, Dtype.UINT16)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(_PATIENCE_S)


# -- driving it ------------------------------------------------------------------------------------


class Driven:
    """A sender with its clients; sends no more than the clients keep up with."""

    def __init__(self, send: Send, words: np.ndarray, window: int) -> None:
        self._send = send
        self.words = words
        self._window = window
        self.n_sent = 0
        deadline = time.monotonic() + _PATIENCE_S
        while self._received() == 0:  # what is sent before all are connected reaches nobody
            if time.monotonic() > deadline:
                raise RuntimeError("a client receives nothing")
            send(self.n_sent)
            self.n_sent += 1
            time.sleep(0.05)
        before = -1
        while before != self._received():  # until all that is on its way has arrived
            before = self._received()
            time.sleep(_SETTLE_S)
        self._missed = self.n_sent - self._received()

    def _received(self) -> int:
        return int(self.words[:, N_IMAGES].min())

    def images_a_second(self, duration_s: float) -> float:
        """Send as fast as the slowest client takes."""
        start, first = time.perf_counter(), self._received()
        while (now := time.perf_counter()) - start < duration_s:
            if self.n_sent - self._missed - self._received() < self._window:
                self._send(self.n_sent)
                self.n_sent += 1
            else:
                time.sleep(_POLL_S)
        rate = (self._received() - first) / (now - start)
        self._wait_empty()
        return rate

    def latencies_s(self, n_images: int, rate_hz: float) -> list[float]:
        """Send at a steady rate; seconds from sending to arrival at the first client."""
        self._wait_empty()
        first, sent_ns = int(self.words[0, N_IMAGES]), []
        start = time.monotonic()
        for at in range(n_images):
            time.sleep(max(0.0, start + at / rate_hz - time.monotonic()))
            sent_ns.append(time.monotonic_ns())
            self._send(self.n_sent)
            self.n_sent += 1
        self._wait_empty()
        places = TIMES + (first + np.arange(n_images)) % (N_WORDS - TIMES)
        return list((self.words[0, places].astype(np.int64) - np.array(sent_ns)) / 1e9)

    def _wait_empty(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self._received() < self.n_sent - self._missed:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"clients received {self._received()} of {self.n_sent - self._missed} images"
                )
            time.sleep(1e-3)


@contextmanager
def driven(
    kind: Callable[[tuple[int, int], str], AbstractContextManager[Send]],
    shape: tuple[int, int],
    n_clients: int,
    program: str = _HERE,
) -> Iterator[Driven]:
    """Start a sender of this kind and its clients."""
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    window = max(4, min(_MAX_WINDOW, _WINDOW_BYTES // (shape[0] * shape[1] * 2)))
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm"))
        file.truncate(n_clients * N_WORDS * 8)
        for client in range(n_clients):
            process = subprocess.Popen([sys.executable, "-m", program, address, file.name, str(client)])
            stack.callback(_end, process)
        send = stack.enter_context(kind(shape, address))
        yield Driven(send, shared(Path(file.name)), window)


def _rates(
    shape: tuple[int, int], n_clients: int, rounds: int, duration_s: float, program: str = _HERE
) -> list[Result]:
    with (
        driven(bare, shape, n_clients, program) as limit,
        driven(tuned, shape, n_clients, program) as other,
        driven(stage, shape, n_clients, program) as ours,
    ):
        rows = [[one.images_a_second(duration_s) for one in (ours, limit, other)] for _ in range(rounds)]
    rate, bare_rate, tuned_rate = (statistics.median(column) for column in zip(*rows, strict=True))
    gb_s = rate * shape[0] * shape[1] * 2 * n_clients / 1e9
    name = f"stream/{shape[0]}x{shape[1]} u16, {n_clients} client{'s' * (n_clients > 1)}"
    if program == _ELSEWHERE:
        name += " elsewhere"
    note = f"{gb_s:.2f} GB/s to all clients; {rate / tuned_rate:.2f} of bare with our SNDBUF"
    return [Result(name, rate, "images/s", bare_rate, "bare ZeroMQ PUB/SUB", note)]


def _latencies(shape: tuple[int, int], n_images: int) -> list[Result]:
    with driven(bare, shape, 1) as limit, driven(stage, shape, 1) as ours:
        rows = [
            [one.latencies_s(n_images // _LATENCY_ROUNDS, _LATENCY_HZ) for one in (ours, limit)]
            for _ in range(_LATENCY_ROUNDS)
        ]
    columns = [np.concatenate(column) * 1e3 for column in zip(*rows, strict=True)]
    note = f"at {_LATENCY_HZ:g} images/s"
    return [
        Result(
            f"stream/{shape[0]}x{shape[1]} u16, latency p{percent}",
            float(np.percentile(columns[0], percent)),
            "ms",
            float(np.percentile(columns[1], percent)),
            "bare ZeroMQ PUB/SUB",
            note,
        )
        for percent in (50, 99)
    ]
