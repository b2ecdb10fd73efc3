"""Writers and driver with a source of images in front of them that does exactly what a test says."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import zmq

from tango_stddaq import config as config_module
from tango_stddaq.closing import Closing
from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels
from tango_stddaq.io.preflight import Request
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import Compression, Image, Status
from tango_stddaq.processing.acquisition import DEFAULT_N_IMAGES, DriverStatus
from tango_stddaq.stages.base import Stage
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.writer_driver import WriterDriver

from .programs import wait_until


def rig_config(detector_name: str, **changes: Any) -> DaqConfig:
    """Images of 6 x 8 pixels, four in a chunk, two writers."""
    data: dict[str, Any] = {
        "detector_name": detector_name,
        "detector_type": "pco",
        "n_modules": 1,
        "bit_depth": 16,
        "image_pixel_height": 6,
        "image_pixel_width": 8,
        "start_udp_port": 0,
        "module_positions": {},
        "ring_slots": 64,
        "number_of_writers": 2,
        "gpfs_block_size": 4 * 96,
    }
    return config_module.from_dict({**data, **changes})


def pixels_of(config: DaqConfig, image_id: int) -> np.ndarray:
    """What image `image_id` looks like, (height, width)."""
    n = config.image_pixel_height * config.image_pixel_width
    values = (np.arange(n) % 251 + 7 * image_id) % 65536
    return values.astype(config.sizes.dtype.numpy).reshape(config.sizes.shape)


class Rig(Closing):
    """Owns the ring and the stream; runs driver and writers in this process.

    Parameters
    ----------
    writers
        Whether to run the writers here.
    """

    def __init__(
        self,
        config: DaqConfig,
        suffix: str = "image",
        writers: bool = True,
        others: Sequence[Stage] = (),
        compress: Callable[[np.ndarray], tuple[bytes, Compression]] | None = None,
        mask_words: int = 0,
        **driver: Any,
    ) -> None:
        self.config = config
        self._compress = compress
        sizes = config.sizes
        self.owner = RingOwner(config.segment(suffix), sizes.n_slots, sizes.slot_bytes, mask_words)
        self._stream = channels.bind(zmq.PUB, channels.ipc_address(config.detector_name, suffix))
        self.writers = [
            FileWriter(config, i, suffix) for i in range(config.number_of_writers) if writers
        ]
        self.driver = WriterDriver(config, suffix, **driver)
        self.statuses: list[DriverStatus] = []
        self.driver.on_status = self.statuses.append
        self.stages: list[Stage] = [*self.writers, *others, self.driver]
        try:
            for stage in self.stages:
                stage.start()
            wait_until(self._is_heard, "the driver listens")
        except BaseException:
            self.close()
            raise

    def _is_heard(self) -> bool:
        self.announce(
            Image(0, *self.config.sizes.shape, self.config.sizes.slot_bytes, self.config.sizes.dtype)
        )
        time.sleep(0.02)
        return self.driver.counters["seen"] > 0

    def store(self, image_id: int) -> Image:
        """Put an image into the ring; returns its metadata."""
        sizes = self.config.sizes
        slot = self.owner.begin(image_id)
        pixels = pixels_of(self.config, image_id)
        data, compression = pixels.tobytes(), Compression.NONE
        if self._compress is not None:
            data, compression = self._compress(pixels)
        slot[: len(data)] = np.frombuffer(data, np.uint8)
        self.owner.publish(image_id)
        return Image(image_id, *sizes.shape, len(data), sizes.dtype, compression=compression)

    def announce(self, *images: Image) -> None:
        for image in images:
            self._stream.send(image_metadata.encode(image))

    def send(self, image_ids: Iterable[int], paced: bool = True) -> None:
        """Store and announce images, not faster than they are written."""
        for image_id in image_ids:
            self.announce(self.store(image_id))
            if paced:
                self.wait_written(self.driver.n_dispatched + 1 - self.config.sizes.n_slots // 4)

    def wait_written(self, n_images: int) -> None:
        """Wait until so many images of this acquisition are written, where the writers run here."""
        if self.writers and n_images > 0:
            files = [writer._file for writer in self.writers]
            wait_until(
                lambda: (
                    sum(file.n_written + file.n_lost for file in files if file) >= n_images
                    or not self.driver.busy
                    or any(writer._failure for writer in self.writers)
                ),
                f"{n_images} images are written",
            )

    def wait_flushed(self, n_images: int) -> None:
        """Wait until a plain reader finds so many images of this acquisition."""
        name = self.config.detector_name

        def there() -> bool:
            n_found = 0
            for path in self.driver.last_files:
                with h5py.File(path, "r", locking=False) as file:
                    n_found += len(file[f"{name}/metadata"])
            return n_found >= n_images

        wait_until(there, f"{n_images} images are in the files")

    def begin(
        self, path: Path, n_images: int = DEFAULT_N_IMAGES, prefix: str = "run_", **more: Any
    ) -> None:
        self.statuses.clear()
        self.driver.begin(Request(str(path), prefix, n_images, **more), wait_s=30)
        wait_until(lambda: DriverStatus.WAITING_FOR_FIRST_IMAGE in self.statuses, "images are awaited")

    def wait_dispatched(self, n_images: int) -> None:
        wait_until(
            lambda: self.driver.n_dispatched >= n_images or not self.driver.busy,
            f"{n_images} images are dispatched",
        )

    def wait_end(self) -> None:
        assert self.driver.wait_until_idle(60)

    def master(self) -> Any:
        return h5py.File(self.driver.last_master, "r")

    def expect(self, image_ids: Sequence[int], master: Path | None = None) -> None:
        """The master shows exactly these images, pixel by pixel."""
        with h5py.File(master or self.driver.last_master, "r") as file:
            data = file["entry/data/data"]
            assert file["entry/data/image_id"][()].tolist() == list(image_ids)
            assert data.shape == (len(image_ids), *self.config.sizes.shape)
            for k, image_id in enumerate(image_ids):
                np.testing.assert_array_equal(data[k], pixels_of(self.config, image_id), f"{image_id}")

    def close(self) -> None:
        for stage in reversed(self.stages):
            stage.stop(10)
        channels.close(self._stream)
        self.owner.close()


def incomplete(image: Image) -> Image:
    """The same image with a packet missing."""
    values = {name: getattr(image, name) for name in Image.__slots__}
    return Image(**{**values, "status": Status.MISSING_PACKETS, "n_missing_packets": 1})
