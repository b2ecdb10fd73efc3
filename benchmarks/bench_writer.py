"""Writing images to files, beside `write()` of the same bytes to the same file system."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitshuffle  # type: ignore[import-untyped]
import numpy as np

from benchmarks.result import Result
from tango_stddaq import config as config_module
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.io.image_file import ImageFile
from tango_stddaq.model import Compression

SIZES = {"11 MB": (2162, 2560), "1 MB": (512, 1024), "480x128": (128, 480)}
PLACES = {"tmpfs": Path("/dev/shm"), "disk": Path(tempfile.gettempdir())}
N_SLOTS = 16
FLUSH_S = 0.2
COST_TARGET_US = 40.0
_FORK = multiprocessing.get_context("fork")

Write = Callable[[Path, DaqConfig, list[Any], "Slots"], None]


class Slots:
    """A ring that has every image, so that only writing is measured.

    Parameters
    ----------
    n_bytes
        Of an image.
    stored
        What lies in each slot instead of noise: a compressed image.
    """

    def __init__(self, n_bytes: int, stored: bytes = b"") -> None:
        if stored:
            self._slots = np.tile(np.frombuffer(stored, np.uint8), (N_SLOTS, 1))
        else:
            self._slots = np.random.default_rng(1).integers(0, 255, (N_SLOTS, n_bytes), np.uint8)

    def ticket(self, _image_id: int) -> int:
        """Return a ticket."""
        return 0

    def still(self, _image_id: int, _ticket: int) -> bool:
        """Return that nothing was overwritten."""
        return True

    def slot(self, image_id: int) -> np.ndarray:
        """Return the bytes of an image."""
        return self._slots[image_id % N_SLOTS]

    def copy(self, image_id: int, out: np.ndarray) -> bool:
        """Copy an image, as the ring does for compressed ones."""
        out[:] = self._slots[image_id % N_SLOTS, : out.size]
        return True


def run(quick: bool) -> list[Result]:
    """Measure each size of image on each file system; then two writers, compressed images, the cost."""
    results = []
    for name, (height, width) in SIZES.items():
        for place, root in PLACES.items():
            case = _Case(height, width, quick)
            results.append(case.result(f"{name} to {place}", root))
    two = _Case(*SIZES["1 MB"], quick)
    results.append(two.result("2 writers, 1 MB to tmpfs", PLACES["tmpfs"], n_writers=2))
    packed = _Case(*SIZES["1 MB"], quick, compressed=True)
    results.append(packed.result("compressed 1 MB to tmpfs", PLACES["tmpfs"]))
    results.append(_Case(*SIZES["480x128"], quick).cost(PLACES["tmpfs"]))
    results.append(_Case(*SIZES["480x128"], quick).cost_of_file(PLACES["tmpfs"]))
    return results


class _Case:
    """Images of one kind, and how they are written both ways."""

    def __init__(self, height: int, width: int, quick: bool, compressed: bool = False) -> None:
        self.config = config_module.from_dict(
            {
                "detector_name": "BENCH", "detector_type": "pco", "n_modules": 1, "bit_depth": 16,
                "image_pixel_height": height, "image_pixel_width": width, "start_udp_port": 0,
                "module_positions": {},
            }
        )  # fmt: skip
        sizes = self.config.sizes
        self.n_bytes, compression = sizes.slot_bytes, pb.none
        stored = b""
        if compressed:
            pixels = np.random.default_rng(1).poisson(20, sizes.shape).astype(np.uint16)
            packed = bitshuffle.compress_lz4(pixels)
            stored = sizes.slot_bytes.to_bytes(8, "big") + (8192).to_bytes(4, "big") + packed.tobytes()
            self.n_bytes, compression = len(stored), pb.h5bitshuffle_lz4
        self.slots = Slots(self.n_bytes, stored)
        n_images = max(8, (500 if quick else 2000) * 10**6 // sizes.slot_bytes)
        self.rounds = 3 if quick else 5
        self.images = [
            pb.ImageMetadata(
                image_id=k, height=height, width=width, size=self.n_bytes, dtype=pb.uint16,
                status=pb.good_image, compression=compression,
            )
            for k in range(n_images)
        ]  # fmt: skip

    @property
    def n_images(self) -> int:
        """Images of a file."""
        return len(self.images)

    def result(self, name: str, root: Path, n_writers: int = 1) -> Result:
        """Compare CPU time, or for several writers seconds on the clock.

        What is written goes to the page cache: it costs CPU time, and nothing is waited for. The clock
        would show what other programs do on the machine.
        """
        if n_writers == 1:
            best = self._best(root, self._cpu_seconds)
        else:
            best = self._best(root, lambda write, path: self._seconds(write, path, n_writers))
        n_bytes = self.n_images * self.n_bytes * n_writers
        us = {write: seconds / self.n_images * 1e6 for write, seconds in best.items()}
        return Result(
            f"writer/{name}", n_bytes / best[_file] / 1e9,
            "GB/CPU s" if n_writers == 1 else "GB/s", n_bytes / best[_raw] / 1e9,
            "write() of the same bytes", f"{us[_file]:.1f} us an image, raw {us[_raw]:.1f}",
        )  # fmt: skip

    def cost(self, root: Path) -> Result:
        """Say what an image costs beside the bare `write()`."""
        best = self._best(root, self._cpu_seconds)
        us = {write: seconds / self.n_images * 1e6 for write, seconds in best.items()}
        return Result(
            "writer/cost of an image of 480x128", us[_file] - us[_raw], "us", COST_TARGET_US,
            "target; less is better",
            f"CPU time beside that of write(): {us[_file]:.1f} us, write() {us[_raw]:.1f}",
        )  # fmt: skip

    def cost_of_file(self, root: Path) -> Result:
        """Say what a file costs beside its images: of one image, which is next to nothing."""
        self.images = self.images[:1]
        best = self._best(root, self._cpu_seconds)
        return Result(
            "writer/cost of a file", best[_file] * 1e3, "ms", best[_raw] * 1e3,
            "write() of the same bytes; less is better", "create, one image of 480x128, close",
        )  # fmt: skip

    def _best(self, root: Path, measure: Callable[[Write, Path], float]) -> dict[Write, float]:
        """Measure both ways in turn, each round in the other order: a drift does the same to both."""
        best: dict[Write, float] = {_raw: float("inf"), _file: float("inf")}
        with tempfile.TemporaryDirectory(dir=root) as directory:
            for k in range(self.rounds):
                for write in (_raw, _file) if k % 2 else (_file, _raw):
                    os.sync()
                    best[write] = min(best[write], measure(write, Path(directory)))
                    for path in Path(directory).iterdir():
                        path.unlink()
        return best

    def _seconds(self, write: Write, directory: Path, n_writers: int) -> float:
        barrier = _FORK.Barrier(n_writers + 1)
        writers = [
            _FORK.Process(target=self._write_at_once, args=(barrier, write, directory / str(k)))
            for k in range(n_writers)
        ]
        for writer in writers:
            writer.start()
        barrier.wait()
        start = time.perf_counter()
        barrier.wait()
        elapsed_s = time.perf_counter() - start
        for writer in writers:
            writer.join()
        return elapsed_s

    def _write_at_once(self, barrier: Any, write: Write, path: Path) -> None:
        barrier.wait()
        write(path, self.config, self.images, self.slots)
        barrier.wait()

    def _cpu_seconds(self, write: Write, directory: Path) -> float:
        start = time.process_time()
        write(directory / "0", self.config, self.images, self.slots)
        return time.process_time() - start


def _raw(path: Path, _config: DaqConfig, images: list[Any], slots: Slots) -> None:
    with path.open("wb", buffering=0) as file:
        for image in images:
            file.write(slots.slot(image.image_id))


def _file(path: Path, config: DaqConfig, images: list[Any], slots: Any) -> None:
    compression = Compression(images[0].compression)
    n_together = max(1, min(64, config.sizes.images_per_chunk))
    with ImageFile(path, config, compression) as file:
        next_flush = time.perf_counter() + FLUSH_S
        for first in range(0, len(images), n_together):
            file.extend(images[first : first + n_together], slots)
            if time.perf_counter() > next_flush:
                file.flush()
                next_flush += FLUSH_S
