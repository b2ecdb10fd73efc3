"""Very many images through driver and writers, each a process: counts and ids, and memory that stays.

`STDDAQ_LARGE_IMAGES=1000000 python -m pytest tests/system/test_million_images.py --log-cli-level=INFO`
is the long one, and says how fast it went and how much memory each process took.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import zmq
from websockets.sync.client import ClientConnection

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.io.stored_images import StoredFile
from tango_stddaq.model import Image, Status

from ..conftest import free_tcp_port
from .programs import Program, running, save, wait_until
from .rig import rig_config
from .test_stage_programs import connected, talk

_log = logging.getLogger(__name__)
N_IMAGES = int(os.environ.get("STDDAQ_LARGE_IMAGES", "60000"))
N_WRITERS = 2
N_SLOTS = 65536
BATCH = 512
MISSING_EVERY = 10_007
"""Ids that never come."""
INCOMPLETE_EVERY = 5_003
MAX_GROWTH_BYTES = {"images": 32 * 2**20, "end": 96 * 2**20}
"""While images come: caches of HDF5; an object kept for each of a million images would take more. At the
end: blocks of rows of all files, which the driver reads again."""

pytestmark = [pytest.mark.system, pytest.mark.timeout(300 + N_IMAGES / 500)]


def is_missing(image_id: int) -> bool:
    return image_id % MISSING_EVERY == MISSING_EVERY - 1


class Source:
    """A ring with small images and the stream that announces them."""

    def __init__(self, config: DaqConfig) -> None:
        self._sizes = config.sizes
        self._owner = RingOwner(config.segment("image"), self._sizes.n_slots, self._sizes.slot_bytes)
        self._stream = channels.bind(zmq.PUB, channels.ipc_address(config.detector_name, "image"))

    def send(self, image_id: int) -> None:
        sizes = self._sizes
        self._owner.begin(image_id)[:8].view("<u8")[0] = image_id
        self._owner.publish(image_id)
        good = image_id % INCOMPLETE_EVERY != 0
        status = Status.GOOD_IMAGE if good else Status.MISSING_PACKETS
        image = Image(image_id, *sizes.shape, sizes.slot_bytes, sizes.dtype, status)
        self._stream.send(image_metadata.encode(image))

    def close(self) -> None:
        channels.close(self._stream)
        self._owner.close()


class Progress:
    """How many images the writers' files hold, as one sees it who follows them."""

    def __init__(self, paths: list[Path], detector_name: str) -> None:
        self._files = [h5py.File(path, "r", swmr=True) for path in paths]
        self._rows = [file[f"{detector_name}/metadata"] for file in self._files]

    def n_written(self) -> int:
        for rows in self._rows:
            rows.refresh()
        return sum(len(rows) for rows in self._rows)

    def wait_for(self, n_images: int) -> None:
        wait_until(lambda: self.n_written() >= n_images, f"{n_images} images are in the files")

    def close(self) -> None:
        for file in self._files:
            file.close()


class Memory:
    """Looks at the memory of processes again and again; that of rings is not theirs."""

    def __init__(self, programs: dict[str, Program]) -> None:
        self._programs = programs
        self.first: dict[str, int] = {}
        self.most = dict.fromkeys(programs, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def now(self) -> dict[str, int]:
        found = {}
        for name, program in self._programs.items():
            text = Path(f"/proc/{program.process.pid}/status").read_text()
            found[name] = int(text.split("RssAnon:")[1].split()[0]) * 1024
        return found

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            for name, n_bytes in self.now().items():
                self.most[name] = max(self.most[name], n_bytes)

    def growth(self) -> dict[str, int]:
        return {name: most - self.first[name] for name, most in self.most.items()}

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def config(detector_name: str) -> DaqConfig:
    """The smallest images of a GigaFRoST; their ids have no gaps but where images are lost."""
    return rig_config(
        detector_name, detector_type="gigafrost", n_modules=8, image_pixel_height=4,
        image_pixel_width=24, ring_slots=N_SLOTS, gpfs_block_size=2**20, number_of_writers=N_WRITERS,
    )  # fmt: skip


@contextmanager
def system(config: DaqConfig, tmp_path: Path, port: int) -> Iterator[dict[str, Program]]:
    path = save(config, tmp_path / "config.json")
    arguments: dict[str, tuple[object, ...]] = {
        f"writer {i}": ("file-writer", path, i) for i in range(N_WRITERS)
    }
    arguments["driver"] = ("writer-driver", path, "-p", port)
    with ExitStack() as stack:
        programs = {
            name: stack.enter_context(running(tmp_path / f"{name}.log", "stage", *those))
            for name, those in arguments.items()
        }
        for program in programs.values():
            program.wait_for("[event] started")
        yield programs


def send_all(source: Source, progress: Progress, memory: Memory, client: ClientConnection) -> int:
    """Send as fast as the files grow, never more than a third of the ring ahead; returns how many."""
    n_sent = 0
    for first in range(0, N_IMAGES, BATCH):
        for image_id in range(first, min(first + BATCH, N_IMAGES)):
            if not is_missing(image_id):
                source.send(image_id)
                n_sent += 1
        progress.wait_for(n_sent - N_SLOTS // 3)
        with suppress(TimeoutError):
            while True:
                client.recv(timeout=0)
        if not memory.first and first > N_IMAGES // 10:
            memory.first = memory.now()
    return n_sent


def test_memory_of_driver_and_writers_does_not_grow_with_images(
    config: DaqConfig, tmp_path: Path
) -> None:
    paths = [tmp_path / f"run_{i}.h5" for i in range(N_WRITERS)]
    port = free_tcp_port()
    with ExitStack() as stack:
        source = Source(config)
        stack.callback(source.close)
        programs = stack.enter_context(system(config, tmp_path, port))
        client = stack.enter_context(connected(port))
        time.sleep(1)  # the driver hears the stream by then
        request = {"command": "start", "path": str(tmp_path), "file_prefix": "run_", "n_image": N_IMAGES}
        client.send(json.dumps(request))
        talk(client, "waiting_for_first_image")
        progress = Progress(paths, config.detector_name)
        stack.callback(progress.close)
        memory = Memory(programs)
        stack.callback(memory.close)
        started_s = time.monotonic()
        n_sent = send_all(source, progress, memory, client)
        progress.wait_for(n_sent)
        written_s = time.monotonic()
        growth = {"images": memory.growth()}
        if is_missing(N_IMAGES - 1):
            client.send('{"command": "stop"}')
        assert talk(client, "file_saved")[-1]["count"] == n_sent
        saved_s = time.monotonic()
        growth["end"] = memory.growth()
    _log.info(
        "%d images at %.0f Hz, saved %.2f s after the last was in its file; MiB of memory more %s",
        n_sent,
        n_sent / (written_s - started_s),
        saved_s - written_s,
        {
            when: {name: round(more / 2**20, 1) for name, more in of.items()}
            for when, of in growth.items()
        },
    )
    for when, of_programs in growth.items():
        assert max(of_programs.values()) < MAX_GROWTH_BYTES[when], when
    check_files(config, paths, tmp_path / "run_master.h5")


def check_files(config: DaqConfig, paths: list[Path], master: Path) -> None:
    ids = np.arange(N_IMAGES, dtype=np.uint64)
    ids = ids[ids % MISSING_EVERY != MISSING_EVERY - 1]
    for which, path in enumerate(paths):
        with StoredFile(path) as stored:
            assert stored.closed
            np.testing.assert_array_equal(stored.metadata["image_id"], ids[which::N_WRITERS])
            whole = stored.data[()].reshape(stored.n_images, -1)[:, :4]
            np.testing.assert_array_equal(
                np.ascontiguousarray(whole).view("<u8")[:, 0], ids[which::N_WRITERS]
            )
    with h5py.File(master) as file:
        np.testing.assert_array_equal(file["entry/data/image_id"], ids)
        incomplete = ids % INCOMPLETE_EVERY == 0
        np.testing.assert_array_equal(file["entry/data/status"], np.where(incomplete, 2, 1))
        data = file["entry/data/data"]
        assert data.shape == (len(ids), *config.sizes.shape)
        for at in (0, 1, MISSING_EVERY, len(ids) // 2, len(ids) - 1):
            assert data[at].reshape(-1)[:4].view("<u8")[0] == ids[at]
        ledger = file["entry/ledger"]
        assert ledger["expected"][()] == N_IMAGES
        assert ledger["complete"][()] == np.count_nonzero(~incomplete)
        assert ledger["lost"][()] == N_IMAGES - len(ids)
        assert ledger["lists_are_complete"][()]
