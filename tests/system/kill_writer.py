"""Kill a process that writes a file, at random moments, and look at what it leaves: a JSON report.

Files lie in the directories given in turn; images are whole, or compressed in one of two ways.

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
import hdf5plugin  # noqa: F401
import numpy as np

from tango_stddaq import config as config_module
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.io.image_file import ImageFile
from tango_stddaq.model import Compression

from . import packed

N_IMAGES = 600
PROGRESS = struct.Struct("<qqq")
"""Accepted, flushed, phase: 0 before the file is there, 1 while it grows, 2 after it was closed."""


SIDE = 8
IMAGE_BYTES = 2 * SIDE * SIDE


class Images:
    """All images as they lie in a ring, and a reader of it that always has the one that is asked for.

    They are made before a child is forked, which would not have the threads of a compressor.
    """

    def __init__(self, compress: packed.Compress | None) -> None:
        self.compression = Compression.NONE
        self._bytes = []
        for image_id in range(N_IMAGES):
            pixels = np.full((SIDE, SIDE), image_id, "<u2")
            data: bytes = pixels.tobytes()
            if compress is not None:
                data, self.compression = compress(pixels)
            self._bytes.append(np.frombuffer(data, np.uint8))
        assert max(part.size for part in self._bytes) <= IMAGE_BYTES

    def message(self, image_id: int) -> pb.ImageMetadata:
        return pb.ImageMetadata(
            image_id=image_id, height=SIDE, width=SIDE, size=self._bytes[image_id].size,
            dtype=pb.uint16, status=pb.good_image, compression=int(self.compression),
        )  # fmt: skip

    def ticket(self, _image_id: int) -> int:
        return 0

    def still(self, _image_id: int, _ticket: int) -> bool:
        return True

    def slot(self, image_id: int) -> np.ndarray:
        return self._bytes[image_id]

    def copy(self, image_id: int, out: np.ndarray) -> bool:
        out[:] = self._bytes[image_id]
        return True


def write(path: Path, config: Any, images: Any, progress: mmap.mmap, seed: int) -> None:
    chance = random.Random(seed)
    n_flushed = 0
    with ImageFile(path, config, images.compression) as file:
        progress[: PROGRESS.size] = PROGRESS.pack(0, 0, 1)
        while file.n_written < N_IMAGES:
            ids = range(file.n_written, min(N_IMAGES, file.n_written + chance.randint(1, 9)))
            file.extend([images.message(image_id) for image_id in ids], images)
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
        ids = group["image_id"][()]
        n = len(ids)
        data, metadata = group["data"], group["metadata"]["image_id"]
        assert (ids == np.arange(n)).all(), "ids"
        assert (metadata == np.arange(len(metadata))).all(), "ids of metadata"
        # Whichever of the two a reader goes by, all else is there.
        assert data.shape[0] >= len(metadata) >= n, "fewer images than rows"
        assert len(group["details"]) >= len(metadata), "rows"
        assert (data[:n] == np.arange(n, dtype=np.uint16)[:, None, None]).all(), "pixels"
        return n


def main(n_kills: int, directories: list[Path]) -> None:
    chance = random.Random(1)
    progress = mmap.mmap(-1, mmap.PAGESIZE)
    report: dict[str, Any] = {
        "kills": 0, "while_writing": 0, "unreadable": [], "most_lost": 0,
        "flushed_but_lost": 0, "more_lost_than_unflushed": 0, "of_kind": {},
    }  # fmt: skip
    kinds = {"none": Images(None)}
    kinds |= {suffix: Images(compress) for suffix, (compress, _) in packed.METHODS.items()}
    longest_s = 0.05
    for number in range(n_kills):
        per_chunk = chance.choice([1, 4, 50])
        config = config_module.from_dict(
            {
                "detector_name": "K", "detector_type": "pco", "n_modules": 1, "bit_depth": 16,
                "image_pixel_height": SIDE, "image_pixel_width": SIDE, "start_udp_port": 0,
                "module_positions": {}, "gpfs_block_size": per_chunk * IMAGE_BYTES,
            }
        )  # fmt: skip
        directory = directories[number % len(directories)]
        kind = chance.choice(list(kinds))
        path = directory / f"k{number}.h5"
        progress[: PROGRESS.size] = PROGRESS.pack(0, 0, 0)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                write(path, config, kinds[kind], progress, number)
            finally:
                os._exit(0)
        time.sleep(chance.random() * longest_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        accepted, flushed, phase = PROGRESS.unpack(progress[: PROGRESS.size])
        report["kills"] += 1
        report["while_writing"] += phase == 1
        where = f"{kind} in {directory}"
        report["of_kind"][where] = report["of_kind"].get(where, 0) + (phase == 1)
        if phase == 0:  # until a writer gets used to the machine, and where it is slow
            longest_s = min(5.0, longest_s * 1.2)
        elif not os.WIFSIGNALED(status) or phase == 2:
            longest_s = max(0.005, (time.monotonic() - started) * 0.9)
        if path.exists():
            try:
                n = look(path)
            except Exception as error:
                report["unreadable"].append(f"{number} {kind}: {error!r}")
                continue
            report["most_lost"] = max(report["most_lost"], accepted - n)
            report["flushed_but_lost"] += max(0, flushed - n)
            report["more_lost_than_unflushed"] += accepted - n > accepted - flushed
            path.unlink()
        else:
            report["flushed_but_lost"] += flushed
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
