"""Kill a process that writes a file, at random moments, and look at what it leaves: a JSON report.

The child is forked: a process that starts from nothing would take a second each time.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tango_stddaq import config as config_module
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.io.image_file import ImageFile

N_IMAGES = 600
PROGRESS = struct.Struct("<qqq")
"""Accepted, flushed, phase: 0 before the file is there, 1 while it grows, 2 after it was closed."""


class Reader:
    """A ring that always has the image that is asked for."""

    def __init__(self, n_bytes: int) -> None:
        self.slots = np.zeros((16, n_bytes), np.uint8)

    def ticket(self, _image_id: int) -> int:
        return 0

    def still(self, _image_id: int, _ticket: int) -> bool:
        return True

    def slot(self, image_id: int) -> np.ndarray:
        slot = self.slots[image_id % 16]
        slot.view("<u2")[:] = image_id
        return slot


def write(path: Path, config: Any, progress: mmap.mmap, seed: int) -> None:
    chance = random.Random(seed)
    sizes = config.sizes
    reader: Any = Reader(sizes.slot_bytes)
    n_flushed = 0
    with ImageFile(path, config) as file:
        progress[: PROGRESS.size] = PROGRESS.pack(0, 0, 1)
        while file.n_written < N_IMAGES:
            ids = range(file.n_written, min(N_IMAGES, file.n_written + chance.randint(1, 9)))
            images = [
                pb.ImageMetadata(
                    image_id=image_id, height=sizes.height, width=sizes.width, size=sizes.slot_bytes,
                    dtype=pb.uint16, status=pb.good_image,
                )
                for image_id in ids
            ]  # fmt: skip
            file.extend(images, reader)
            progress[: PROGRESS.size] = PROGRESS.pack(file.n_written, n_flushed, 1)
            if chance.random() < 0.3:
                file.flush()
                n_flushed = file.n_written
                progress[: PROGRESS.size] = PROGRESS.pack(file.n_written, n_flushed, 1)
    progress[: PROGRESS.size] = PROGRESS.pack(N_IMAGES, N_IMAGES, 2)


def look(path: Path) -> int:
    """Return how many images a plain reader finds; all of them must be right."""
    with h5py.File(path, "r") as file:
        group = file["K"]
        ids = group["metadata"]["image_id"]
        n = len(ids)
        data = group["data"]
        assert (ids == np.arange(n)).all(), "ids"
        assert data.shape[0] >= n, "fewer images than rows"
        assert min(len(group["image_id"]), len(group["details"])) >= n, "rows"
        assert (data[:n] == np.arange(n, dtype=np.uint16)[:, None, None]).all(), "pixels"
        return n


def main(directory: Path, n_kills: int) -> None:
    chance = random.Random(1)
    progress = mmap.mmap(-1, mmap.PAGESIZE)
    report: dict[str, Any] = {
        "kills": 0, "while_writing": 0, "unreadable": [], "most_lost": 0,
        "flushed_but_lost": 0, "more_lost_than_unflushed": 0,
    }  # fmt: skip
    longest_s = 0.05
    for number in range(n_kills):
        per_chunk = chance.choice([1, 4, 50])
        config = config_module.from_dict(
            {
                "detector_name": "K", "detector_type": "pco", "n_modules": 1, "bit_depth": 16,
                "image_pixel_height": 8, "image_pixel_width": 8, "start_udp_port": 0,
                "module_positions": {}, "gpfs_block_size": per_chunk * 128,
            }
        )  # fmt: skip
        path = directory / f"k{number}.h5"
        progress[: PROGRESS.size] = PROGRESS.pack(0, 0, 0)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                write(path, config, progress, number)
            finally:
                os._exit(0)
        time.sleep(chance.random() * longest_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        accepted, flushed, phase = PROGRESS.unpack(progress[: PROGRESS.size])
        report["kills"] += 1
        report["while_writing"] += phase == 1
        if phase == 0:  # until a writer gets used to the machine, and where it is slow
            longest_s = min(5.0, longest_s * 1.2)
        elif not os.WIFSIGNALED(status) or phase == 2:
            longest_s = max(0.005, (time.monotonic() - started) * 0.9)
        if path.exists():
            try:
                n = look(path)
            except Exception as error:
                report["unreadable"].append(f"{number}: {error!r}")
                continue
            report["most_lost"] = max(report["most_lost"], accepted - n)
            report["flushed_but_lost"] += max(0, flushed - n)
            report["more_lost_than_unflushed"] += accepted - n > accepted - flushed
            path.unlink()
        else:
            report["flushed_but_lost"] += flushed
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
