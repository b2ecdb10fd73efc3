"""For tests of a stage of one's own: a real ring and real sockets before and behind it."""

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import zmq

from tango_stddaq import config as config_module
from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import StageError
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import Dtype, Image
from tango_stddaq.stages.own_settings import values_of
from tango_stddaq.stages.own_stage import ImageStage, OwnStage

_PATIENCE_S: Final = 20.0
_PERIOD_S: Final = 0.005
_SLOTS: Final = 64


@dataclass(slots=True)
class Outcome:
    """What a stage did with some images.

    Attributes
    ----------
    images
        Image id to what came out, a copy; only of an `ImageStage`.
    values
        Of every image that was processed, in order: the values that the stage declares.
    counters
        Of the stage at the end.
    """

    images: dict[int, np.ndarray] = field(default_factory=dict)
    values: list[dict[str, float]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)


def config_for(pixels: np.ndarray) -> DaqConfig:
    """Return a configuration of a camera that sends images like this one, under a name of its own."""
    height, width = pixels.shape
    return config_module.from_dict(
        {
            "detector_name": f"test-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            "detector_type": "pco",
            "n_modules": 1,
            "bit_depth": 8 * pixels.dtype.itemsize,
            "image_pixel_height": height,
            "image_pixel_width": width,
            "start_udp_port": 0,
            "module_positions": {},
            "ring_slots": _SLOTS,
        }
    )


class Bench:
    """A running stage, and what it needs to be fed and read.

    Parameters
    ----------
    stage
        Made with a configuration of its own, as `config_for` returns it; not started.
    """

    def __init__(self, stage: OwnStage) -> None:
        self.stage = stage
        config = stage.config
        self._ring = RingOwner(config.segment("image"), config.sizes.n_slots, config.sizes.slot_bytes)
        self._out = channels.bind(zmq.XPUB, channels.ipc_address(config.detector_name, "image"))
        self._next_id = 1
        self._results: tuple[MetadataSource, PixelSource] | None = None
        stage.start()
        if not self._out.poll(int(_PATIENCE_S * 1000)):
            raise StageError(f"{stage.title}: does not listen")
        if isinstance(stage, ImageStage):
            self._results = MetadataSource(config, stage.name), PixelSource(config, stage.name)
            time.sleep(0.2)  # a subscription tells nobody when it has arrived

    def close(self) -> None:
        """Stop the stage and remove what was made for it."""
        self.stage.stop()
        for handle in self._results or ():
            handle.close()
        channels.close(self._out)
        self._ring.close()

    def send(self, pixels: np.ndarray) -> int:
        """Send an image; returns its id when the stage is done with it.

        Raises
        ------
        StageError
            If it is not in time.
        """
        image_id = self._next_id
        self._next_id += 1
        data = np.ascontiguousarray(pixels)
        self._ring.begin(image_id)[: data.nbytes] = data.reshape(-1).view(np.uint8)
        self._ring.publish(image_id)
        height, width = data.shape
        image = Image(image_id, height, width, data.nbytes, Dtype.from_numpy(data.dtype))
        before = self._n_done()
        self._out.send(image_metadata.encode(image))
        deadline = time.monotonic() + _PATIENCE_S
        while self._n_done() == before:
            if not self.stage.running or time.monotonic() > deadline:
                raise StageError(f"{self.stage.title}: {self.stage.error or 'is not done in time'}")
            time.sleep(_PERIOD_S)
        return image_id

    def _n_done(self) -> int:
        return sum(self.stage.counters.values())

    def result(self) -> tuple[int, np.ndarray]:
        """Return id and pixels of the next image that comes out.

        Raises
        ------
        StageError
            If none does.
        """
        if self._results is None:
            raise StageError(f"{self.stage.title}: makes no images")
        metadata, pixels = self._results
        found = metadata.receive(int(_PATIENCE_S * 1000), limit=1)
        if not found:
            raise StageError(f"{self.stage.title}: no image comes out")
        image = found[0]
        data = np.zeros(image.size, np.uint8)
        if not pixels.copy(image, data):
            raise StageError(f"{self.stage.title}: image {image.image_id} is not in its ring")
        return image.image_id, data.view(image.dtype.numpy).reshape(image.height, image.width)


@contextmanager
def running(
    stage_type: type[OwnStage], like: np.ndarray, settings: Mapping[str, Any] | None = None
) -> Iterator[Bench]:
    """Run a stage for images of the size and type of `like`; nothing is left afterwards."""
    bench = Bench(stage_type(config_for(like), settings=settings))
    try:
        yield bench
    finally:
        bench.close()


def run(
    stage_type: type[OwnStage],
    images: Sequence[np.ndarray],
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Let a stage process images, (height, width) of one shape and type; their ids count from 1."""
    outcome = Outcome()
    with running(stage_type, images[0], settings) as bench:
        for pixels in images:
            before = bench.stage.counters["images"]
            bench.send(pixels)
            if bench.stage.counters["images"] == before:
                continue  # dropped, or failed: the counters say it
            names = values_of(stage_type)
            outcome.values.append({name: float(getattr(bench.stage, name)) for name in names})
            if isinstance(bench.stage, ImageStage):
                image_id, made = bench.result()
                outcome.images[image_id] = made
        outcome.counters = dict(bench.stage.counters)
    return outcome
