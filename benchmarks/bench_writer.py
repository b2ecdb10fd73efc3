"""Writing images to files, beside `write()` of the same bytes to the same file system."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import Result
from tango_stddaq import config as config_module
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.io.image_file import ImageFile

SIZES = {"11 MB": (2162, 2560), "1 MB": (512, 1024), "480x128": (128, 480)}
PLACES = {"tmpfs": Path("/dev/shm"), "disk": Path(tempfile.gettempdir())}
N_SLOTS = 16
FLUSH_S = 0.2


class Slots:
    """A ring that has every image, so that only writing is measured."""

    def __init__(self, n_bytes: int) -> None:
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


def run(quick: bool) -> list[Result]:
    """Measure each size of image on each file system."""
    results = []
    for name, (height, width) in SIZES.items():
        for place, root in PLACES.items():
            results.append(_measure(name, height, width, place, root, quick))
    return results


def _measure(name: str, height: int, width: int, place: str, root: Path, quick: bool) -> Result:
    config = config_module.from_dict(
        {
            "detector_name": "BENCH", "detector_type": "pco", "n_modules": 1, "bit_depth": 16,
            "image_pixel_height": height, "image_pixel_width": width, "start_udp_port": 0,
            "module_positions": {},
        }
    )  # fmt: skip
    sizes = config.sizes
    slots = Slots(sizes.slot_bytes)
    n_images = max(8, (200 if quick else 500) * 10**6 // sizes.slot_bytes)
    images = [
        pb.ImageMetadata(
            image_id=k, height=height, width=width, size=sizes.slot_bytes, dtype=pb.uint16,
            status=pb.good_image,
        )
        for k in range(n_images)
    ]  # fmt: skip
    n_together = max(1, min(64, sizes.images_per_chunk))
    best = {"raw": float("inf"), "file": float("inf")}
    with tempfile.TemporaryDirectory(dir=root) as directory:
        for _ in range(3 if quick else 5):
            for what, write in (("raw", _raw), ("file", _file)):
                path = Path(directory) / what
                best[what] = min(best[what], _seconds(write, path, config, images, slots, n_together))
                path.unlink()
    n_bytes = n_images * sizes.slot_bytes
    return Result(
        f"writer/{name} to {place}",
        n_bytes / best["file"] / 1e9,
        "GB/s",
        n_bytes / best["raw"] / 1e9,
        "write() of the same bytes",
        f"{best['file'] / n_images * 1e6:.1f} us an image, raw {best['raw'] / n_images * 1e6:.1f}",
    )


def _seconds(write: Callable[..., None], *arguments: Any) -> float:
    os.sync()
    start = time.perf_counter()
    write(*arguments)
    return time.perf_counter() - start


def _raw(path: Path, _config: Any, images: list[Any], slots: Slots, _n_together: int) -> None:
    with path.open("wb", buffering=0) as file:
        for image in images:
            file.write(slots.slot(image.image_id))


def _file(path: Path, config: Any, images: list[Any], slots: Any, n_together: int) -> None:
    with ImageFile(path, config) as file:
        next_flush = time.perf_counter() + FLUSH_S
        for first in range(0, len(images), n_together):
            file.extend(images[first : first + n_together], slots)
            if time.perf_counter() > next_flush:
                file.flush()
                next_flush += FLUSH_S
