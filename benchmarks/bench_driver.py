"""How soon one acquisition may follow another."""

import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from benchmarks.result import Result
from tango_stddaq import config as config_module
from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels
from tango_stddaq.io.preflight import Request
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import Image
from tango_stddaq.processing.acquisition import DriverStatus
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.writer_driver import WriterDriver

HEIGHT, WIDTH = 128, 480
GAP_TARGET_S = 0.5


def run(quick: bool) -> list[Result]:
    """Measure it."""
    return [_gap(5 if quick else 15)]


def _config() -> DaqConfig:
    return config_module.from_dict(
        {
            "detector_name": f"B{uuid.uuid4().hex[:8]}", "detector_type": "pco", "n_modules": 1,
            "bit_depth": 16, "image_pixel_height": HEIGHT, "image_pixel_width": WIDTH,
            "start_udp_port": 0, "module_positions": {}, "ring_slots": 512, "number_of_writers": 2,
        }
    )  # fmt: skip


class _Source:
    """A ring with images, and the stream that announces them."""

    def __init__(self, config: DaqConfig) -> None:
        self._sizes = config.sizes
        self._owner = RingOwner(config.segment("image"), self._sizes.n_slots, self._sizes.slot_bytes)
        self._stream = channels.bind(zmq.PUB, channels.ipc_address(config.detector_name, "image"))

    def send(self, first: int, n: int) -> None:
        """Put images into the ring and announce them."""
        for image_id in range(first, first + n):
            self._owner.begin(image_id)
            self._owner.publish(image_id)
            self._stream.send(self.metadata(image_id))

    def metadata(self, image_id: int) -> bytes:
        """Return what the stream says of an image."""
        sizes = self._sizes
        return image_metadata.encode(Image(image_id, HEIGHT, WIDTH, sizes.slot_bytes, sizes.dtype))

    def close(self) -> None:
        """Remove both."""
        channels.close(self._stream)
        self._owner.close()


@contextmanager
def _system() -> Iterator[tuple[_Source, WriterDriver]]:
    config = _config()
    with ExitStack() as stack:
        source = _Source(config)
        stack.callback(source.close)
        driver = WriterDriver(config)
        for stage in (*(FileWriter(config, i) for i in range(config.number_of_writers)), driver):
            stage.start()
            stack.callback(stage.stop, 10)
        while driver.counters["seen"] == 0:
            source.send(0, 1)
            time.sleep(0.01)
        yield source, driver


def _begin(driver: WriterDriver, directory: str, prefix: str, n_images: int) -> None:
    driver.begin(Request(directory, prefix, n_images), wait_s=10)
    while driver.acquisition_status is not DriverStatus.WAITING_FOR_FIRST_IMAGE:
        time.sleep(0.001)


def _gap(n_acquisitions: int) -> Result:
    """Time from the last image of an acquisition until the next one awaits images."""
    n_images, gaps = 100, []
    with _system() as (source, driver), tempfile.TemporaryDirectory() as directory:
        _begin(driver, directory, "0_", n_images)
        for number in range(1, n_acquisitions + 1):
            source.send((number - 1) * n_images + 1, n_images)
            start = time.perf_counter()
            driver.wait_until_idle(60)
            if driver.failed:
                raise RuntimeError(driver.reason)
            _begin(driver, directory, f"{number}_", n_images)
            gaps.append(time.perf_counter() - start)
        driver.finish()
        driver.wait_until_idle(60)
        n_files = len(list(Path(directory).glob("*.h5")))
    return Result(
        "driver/gap between acquisitions", statistics.median(gaps), "s", GAP_TARGET_S,
        "target; less is better",
        f"2 writers, files closed, read back and joined; longest {max(gaps):.2f} s, {n_files} files",
    )  # fmt: skip
