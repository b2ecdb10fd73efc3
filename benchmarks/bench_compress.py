"""Compressors: our kernel and the whole stage, ring to ring, beside the library's own rate.

The library's own rate is that of its C function, called by as many threads, on the same images, from the
same slots to memory of the same kind, in the same run. Rates are the best of several short rounds. Rates
per CPU second are of the compressor's process alone: they hold on a busy machine too.
"""

import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitshuffle.ext
import numpy as np
import zmq

from benchmarks.result import Result, seconds
from tango_stddaq import config as config_module
from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels, processes
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import Compression, Dtype, Image
from tango_stddaq.processing import blosc2_chunk
from tango_stddaq.processing.compress import SUFFIXES, compressor

_PROGRAMS = {
    Compression.H5BITSHUFFLE_LZ4: "compress-h5bitshuffle-lz4",
    Compression.BLOSC2: "compress-blosc2",
}
_N_SLOTS = 32
_ITEMSIZE = 2
_PATIENCE_MS = 60_000


def run(quick: bool) -> list[Result]:
    """Measure both methods with 1 and 2 threads on two kinds of images."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:2160, :2560]
    camera = 1000 + 500 * np.sin(x / 300) * np.cos(y / 200)
    pictures: dict[str, Callable[[], np.ndarray]] = {
        "Poisson 512x1024": lambda: rng.poisson(2.0, (512, 1024)).astype(np.uint16),
        "camera 2160x2560": lambda: (camera + rng.normal(0, 20, camera.shape)).astype(np.uint16),
    }
    results = []
    for picture, draw in pictures.items():
        several = [draw() for _ in range(4)]
        for method in _PROGRAMS:
            for threads in (1, 2):
                results += _measure(picture, several, method, threads, quick)
    return results


def _measure(
    picture: str, images: list[np.ndarray], method: Compression, threads: int, quick: bool
) -> list[Result]:
    n_images = max(_N_SLOTS, 100_000_000 // images[0].nbytes // threads * threads)
    with _Rings(images, method, threads) as rings:
        actions = (rings.stage, rings.kernel, rings.library)
        for action in actions:
            action(n_images)
        rounds = [[_timed(rings, act, n_images) for act in actions] for _ in range(2 if quick else 7)]
    gb = n_images * images[0].nbytes / 1e9
    best = [
        [gb / min(took[kind] for took in column) for column in zip(*rounds, strict=True)]
        for kind in (0, 1)
    ]
    (stage, kernel, limit), (stage_cpu, _, limit_cpu) = best
    name = f"compress/{method.name.lower()}, {picture}, {threads} thread{'s' * (threads > 1)}"
    note = f"{rings.library_name}, ratio {rings.ratio:.2f}"
    return [
        Result(f"{name}, stage", stage, "GB/s", limit, "library", note),
        Result(f"{name}, kernel", kernel, "GB/s", limit, "library"),
        Result(f"{name}, stage, CPU", stage_cpu, "GB/CPU s", limit_cpu, "library"),
    ]


def _timed(rings: "_Rings", action: Callable[[int], None], n_images: int) -> tuple[float, float]:
    """Return the seconds, and the CPU seconds of the process that compresses."""
    clock = rings.stage_cpu_s if action == rings.stage else time.process_time
    cpu = clock()
    took = seconds(lambda: action(n_images))
    return took, clock() - cpu


class _Rings:
    """A filled source ring, a target of the same size, and a compressor process between the two."""

    def __init__(self, images: list[np.ndarray], method: Compression, threads: int) -> None:
        self._method, self._threads = method, threads
        height, width = images[0].shape
        self._config: DaqConfig = config_module.from_dict(
            {
                "detector_name": f"BENCH-{os.getpid()}",
                "detector_type": "pco",
                "n_modules": 1,
                "bit_depth": 8 * _ITEMSIZE,
                "image_pixel_height": height,
                "image_pixel_width": width,
                "start_udp_port": 50000,
                "module_positions": {},
                "ring_slots": _N_SLOTS,
                "log_level": "error",
            }
        )
        name, slot_bytes = self._config.detector_name, self._config.sizes.slot_bytes
        self._source = RingOwner(f"{name}-image", _N_SLOTS, slot_bytes)
        for slot in range(_N_SLOTS):
            self._source.slot(slot)[:] = images[slot % len(images)].reshape(-1).view(np.uint8)
        # Shared memory, as the target ring: ordinary memory has larger pages.
        memory = mmap.mmap(-1, _N_SLOTS * 2 * slot_bytes)
        self._targets = np.frombuffer(memory, np.uint8).reshape(_N_SLOTS, 2 * slot_bytes)
        self._image = Image(0, height, width, slot_bytes, Dtype.UINT16)
        self._template = image_metadata.to_message(self._image)
        self._next_id = _N_SLOTS
        self._compressors = [compressor(method) for _ in range(threads)]
        self.library_name = self._compressors[0].library
        self._out = channels.bind(zmq.XPUB, channels.ipc_address(name, "image"))
        self._results = channels.connect(zmq.SUB, channels.ipc_address(name, SUFFIXES[method]))
        self.ratio = 0.0

    def __enter__(self) -> "_Rings":
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(self._config.model_dump(mode="json", exclude_unset=True), file)
        self._path = Path(file.name)
        command = [
            sys.executable, "-m", "tango_stddaq.cli.main", "stage", _PROGRAMS[self._method], file.name,
            "-t", str(self._threads),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            processes.leash_command(command),
            env=processes.leash_environment(),
            stdout=subprocess.DEVNULL,
        )
        if not self._out.poll(_PATIENCE_MS):
            raise TimeoutError("the compressor does not listen")
        while not self._results.poll(200):  # until both sides know each other
            self._announce()
        while self._results.poll(200):
            self._results.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._path.unlink()
        channels.close(self._out)
        channels.close(self._results)
        self._source.close()
        for one in self._compressors:
            one.close()

    def _announce(self) -> None:
        """Declare the pixels of a slot those of the next image: they need not be written anew."""
        self._source.begin(self._next_id)
        self._source.publish(self._next_id)
        self._template.image_id = self._next_id
        self._out.send(self._template.SerializeToString())
        self._next_id += 1

    def stage(self, n_images: int) -> None:
        """Send images through the process, at most half a ring ahead of it."""
        n_sent = n_received = size = 0
        while n_received < n_images:
            while n_sent < n_images and n_sent - n_received < _N_SLOTS // 2:
                self._announce()
                n_sent += 1
            if not self._results.poll(_PATIENCE_MS):
                raise TimeoutError("the compressor gives no image")
            # Woken for a few images at once: with as many threads as cores we take their time.
            while n_received < n_images and self._results.poll(0):
                size = image_metadata.decode(self._results.recv()).size
                n_received += 1
        self.ratio = self._image.size / size

    def stage_cpu_s(self) -> float:
        """CPU seconds of the compressor's process so far."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def kernel(self, n_images: int) -> None:
        """Compress with our kernel."""
        self._with_threads(n_images, lambda thread: self._compressors[thread].compress)

    def library(self, n_images: int) -> None:
        """Compress with the library's function."""
        self._with_threads(n_images, lambda _: _library_function(self._method, self._image.size))

    def _with_threads(self, n_images: int, function: Callable[[int], "_Compress"]) -> None:
        """Each thread compresses its share of the images."""

        def work(thread: int) -> None:
            compress = function(thread)
            for at in range(thread, n_images, self._threads):
                slot = at % _N_SLOTS
                target = self._targets[slot, : self._image.size]
                if compress(self._source.slot(slot), _ITEMSIZE, target) <= 0:
                    raise RuntimeError("does not fit")

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(self._threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


_Compress = Callable[[np.ndarray, int, np.ndarray], int]


def _library_function(method: Compression, n_bytes: int) -> _Compress:
    """Return the C function for one thread, with as little around it as there can be."""
    if method is Compression.BLOSC2:
        blosc, _ = blosc2_chunk.load_library()
        context = blosc2_chunk.new_context(blosc, 5, _ITEMSIZE)
        return lambda source, _, target: blosc.blosc2_compress_ctx(
            context, source.ctypes.data, n_bytes, target.ctypes.data, n_bytes
        )
    library = ctypes.CDLL(bitshuffle.ext.__file__)
    function: Any = library.bshuf_compress_lz4
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 3
    library.omp_set_num_threads(1)  # of the calling thread
    return lambda source, itemsize, target: function(
        source.ctypes.data, target.ctypes.data, n_bytes // itemsize, itemsize, 0
    )
