"""Forwarding: images a second from ring to ring, beside bare ZeroMQ over TCP of the same bytes.

Both go over the loopback between processes. At most a few images are on their way at a time, so that
nothing is lost: what is measured is the rate at which images are complete in the second ring.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
import zmq

from benchmarks.result import Result
from tango_stddaq import config as config_module
from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import Dtype, Image
from tango_stddaq.sim.demo_config import free_tcp_port

_SHAPES: Final = ((2160, 2560), (512, 1024))
_N_SLOTS: Final = 64
_WINDOW: Final = 12
_PATIENCE_S: Final = 30.0
_BARE: Final = """
import sys, zmq
context = zmq.Context()
source, back = context.socket(zmq.SUB), context.socket(zmq.PUSH)
source.setsockopt(zmq.SUBSCRIBE, b"")
source.connect(sys.argv[1])
back.connect(sys.argv[2])
while True:
    source.recv_multipart(copy=False)
    back.send(b"")
"""


def run(quick: bool) -> list[Result]:
    """Measure one part and two parts of both image sizes."""
    rounds, seconds = (2, 0.5) if quick else (5, 1.5)
    results = []
    for shape in _SHAPES:
        limit = statistics.median(_bare(shape, rounds, seconds))
        for parts in (1, 2):
            found = statistics.median(_stages(shape, parts, rounds, seconds))
            results.append(
                Result(
                    f"forward/{shape[0]}x{shape[1]} parts {parts}",
                    found,
                    "images/s",
                    limit,
                    "bare ZeroMQ PUB/SUB over TCP",
                    f"{found * shape[0] * shape[1] * 2 / 1e9:.2f} GB/s",
                )
            )
    return results


def _bare(shape: tuple[int, int], rounds: int, seconds: float) -> list[float]:
    pixels = [
        np.random.default_rng(i).integers(0, 16, 2 * shape[0] * shape[1], np.uint8) for i in range(8)
    ]
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        out, back = context.socket(zmq.PUB), context.socket(zmq.PULL)
        for handle in (out, back):
            stack.callback(handle.close, 0)
        addresses = [f"tcp://127.0.0.1:{free_tcp_port()}" for _ in range(2)]
        out.bind(addresses[0])
        back.bind(addresses[1])
        stack.callback(_end, subprocess.Popen([sys.executable, "-c", _BARE, *addresses]))

        def send(image_id: int) -> None:
            out.send(image_metadata.encode(_image(shape, image_id)), zmq.SNDMORE)
            out.send(pixels[image_id % 8], copy=False)

        return _rates(send, back, rounds, seconds)


def _stages(shape: tuple[int, int], parts: int, rounds: int, seconds: float) -> list[float]:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        first = _config(shape, parts)
        second = first.model_copy(update={"detector_name": f"{first.detector_name}-2"})
        paths = []
        for config in (first, second):
            paths.append(str(Path(directory, f"{config.detector_name}.json")))
            Path(paths[-1]).write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
        sizes = first.sizes
        ring = stack.enter_context(RingOwner(first.segment("image"), sizes.n_slots, sizes.slot_bytes))
        for slot in range(_N_SLOTS):
            ring.begin(slot)[:] = np.random.default_rng(slot).integers(0, 16, sizes.slot_bytes, np.uint8)
        out = channels.bind(zmq.PUB, channels.ipc_address(first.detector_name, "image"))
        stack.callback(channels.close, out)
        back = channels.connect(zmq.SUB, channels.ipc_address(second.detector_name, "image"))
        stack.callback(channels.close, back)
        _start(stack, "sync-stream", paths[1])
        ring_path = Path("/dev/shm", f"{second.segment('image')}.index")
        deadline = time.monotonic() + _PATIENCE_S
        while not ring_path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for part in range(parts):
            address = f"tcp://127.0.0.1:{free_tcp_port()}"
            _start(stack, "stream-send", paths[0], address, str(part))
            _start(stack, "stream-receive", paths[1], address, str(part))

        def send(image_id: int) -> None:
            ring.begin(image_id)
            ring.publish(image_id)
            out.send(image_metadata.encode(_image(shape, image_id)))

        return _rates(send, back, rounds, seconds)


def _start(stack: ExitStack, *arguments: str) -> None:
    command = [sys.executable, "-m", "tango_stddaq.cli.main", "stage", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    stack.callback(_end, process)


def _rates(
    send: Callable[[int], None], back: "zmq.Socket[bytes]", rounds: int, seconds: float
) -> list[float]:
    """Send with a few images on their way; returns how many a second come back, for each round."""
    image_id, deadline = 1, time.monotonic() + _PATIENCE_S
    while not back.poll(200):  # until everybody listens
        send(image_id)
        image_id += 1
        if time.monotonic() > deadline:
            raise RuntimeError("nothing comes back")
    time.sleep(1.5)  # late subscriptions, and images that went on incomplete
    while back.poll(300):
        back.recv()
    under_way, rates = 0, []
    for _ in range(rounds):
        n_back, started = 0, time.monotonic()
        while time.monotonic() - started < seconds:
            while under_way < _WINDOW:
                send(image_id)
                image_id += 1
                under_way += 1
            if not back.poll(int(_PATIENCE_S * 1000)):
                raise RuntimeError("images were lost")
            while back.poll(0):
                back.recv()
                under_way -= 1
                n_back += 1
        rates.append(n_back / (time.monotonic() - started))
    return rates


def _config(shape: tuple[int, int], parts: int) -> DaqConfig:
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
            "use_all_forwarders": True,
            "max_number_of_forwarders_spawned": parts,
        }
    )


def _image(shape: tuple[int, int], image_id: int) -> Image:
    return Image(image_id, *shape, shape[0] * shape[1] * 2, Dtype.UINT16)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()
