"""A stage of one's own: write what happens to an image; everything else is here.

Subclass `ImageStage` or `ValueStage`, or decorate a function with `image_stage` or `value_stage`. See
docs/own-stage.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.registry import mask_words_of
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.ring import RingOwner, RingReader
from tango_stddaq.model import Compression, Dtype, Image
from tango_stddaq.stage_names import class_name
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stages.own_settings import Setting, Value, settings_of, values_of
from tango_stddaq.stats import Counter

__all__ = ["Image", "ImageStage", "Setting", "Value", "ValueStage", "image_stage", "value_stage"]

_BATCH: Final = 64
_TAKEN_NAMES: Final = frozenset(
    {
        "config",
        "counters",
        "cpus",
        "error",
        "label",
        "log",
        "log_lines",
        "on_tick",
        "rate",
        "rate_hz",
        "source_suffix",
        "suffix",
        "version",
        "detector_name",
    }
)
"""What stages and their devices have beside the members of the class."""


class OwnStage(Stage):
    """What `ImageStage` and `ValueStage` share.

    Parameters
    ----------
    source_suffix
        Stream that announces the images.
    source_suffix_image
        Ring with their pixels; empty: that of the stream.
    settings
        Values of settings, by name; the others have their defaults.

    Attributes
    ----------
    newest_only
        Set it in a class that may be slower than the detector, such as a display: of several images that
        wait it takes the last one.

    Raises
    ------
    ConfigError
        If a setting is not one, or of the wrong type.
    """

    newest_only: ClassVar[bool] = False
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images that were processed."),
        Counter("dropped", "images", "Images that the stage did not pass on, as it should be."),
        Counter("skipped", "images", "Images left out, as a newer one was waiting (newest_only)."),
        Counter("overwritten", "images", "Images lost: their slot was taken too early.", loss=True),
        Counter("failed", "images", "Images lost: the stage's code raised an error.", loss=True),
        Counter("refused", "images", "Images lost: compressed, or a result of no use.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not image metadata.", loss=True),
    )

    def __init__(
        self,
        config: DaqConfig,
        source_suffix: str = "image",
        source_suffix_image: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config)
        self.source_suffix = source_suffix
        self._image_suffix = source_suffix_image or source_suffix
        known = settings_of(type(self))
        for name, value in (settings or {}).items():
            if name not in known:
                allowed = ", ".join(known) or "none"
                raise ConfigError(f"setting {name} of {self.name}: unknown; allowed are {allowed}")
            known[name].__set__(self, value)
        self._metadata: MetadataSource | None = None
        self._pixels: PixelSource | None = None

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        names = (*settings_of(cls), *values_of(cls))
        hidden = [name for name in names if name in _TAKEN_NAMES or hasattr(OwnStage, name)]
        if hidden:
            raise TypeError(
                f"{cls.__name__}: {', '.join(hidden)}: every stage has something of this name already; "
                "choose another one"
            )

    def prepare(self) -> None:
        """Load or compute what is needed; called at every start, before the first image."""

    def _handle(self, image: Image, pixels: np.ndarray) -> np.ndarray | None:
        """Process an image; returns the new one, if there is one."""
        raise NotImplementedError

    def _conclude(self, image: Image, made: np.ndarray | None) -> str:
        """Pass on what was made of an image; returns the counter that it ends in."""
        return "images"

    def _open(self) -> None:
        self.prepare()
        self._pixels = PixelSource(self.config, self._image_suffix)
        self._metadata = MetadataSource(self.config, self.source_suffix)

    def _turn(self) -> None:
        if self._metadata is None:
            return
        messages = self._metadata.receive_messages(int(TURN_S * 1000), _BATCH)
        if self.newest_only and len(messages) > 1:
            self.counters["skipped"] += len(messages) - 1
            del messages[:-1]
        for data in messages:
            try:
                image = image_metadata.decode(data)
            except ValueError:
                self.counters["malformed"] += 1
            else:
                self.counters[self._process(image)] += 1

    def _process(self, image: Image) -> str:
        reader = self._pixels.reader() if self._pixels is not None else None
        if reader is None or self._pixels is None:
            return "overwritten"
        reason = "is compressed" if image.compression else self._pixels.accepts(image)
        if reason:
            self._complain(f"image {image.image_id}: {reason}")
            return "refused"
        ticket = reader.ticket(image.image_id)
        if ticket is None:
            return "overwritten"
        try:
            made = self._handle(image, _view(reader, image))
        except Exception as error:  # the code is not ours: one image fails, the next may do
            self._complain(f"image {image.image_id}: {type(error).__name__}: {error}", error)
            return "failed"
        if not reader.still(image.image_id, ticket):
            return "overwritten"
        return self._conclude(image, made)

    def _complain(self, text: str, error: Exception | None = None) -> None:
        """Log what is wrong with images, but not a thousand times a second."""
        if self.say_seldom(text) and error is not None:
            self.log.info("traceback of %s", self.title, exc_info=error)

    def _more_statistics(self) -> dict[str, float]:
        found = {name: float(getattr(self, name)) for name in values_of(type(self))}
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def _close(self) -> None:
        for handle in (self._metadata, self._pixels):
            if handle is not None:
                handle.close()
        self._metadata = self._pixels = None


class ValueStage(OwnStage):
    """Finds numbers in images: declare them as `Value`, and set them in `process`."""

    def process(self, pixels: np.ndarray, image: Image) -> None:
        """Look at an image.

        Parameters
        ----------
        pixels
            (height, width), read only; do not keep it, its memory is used again.
        image
            What is known of it: `image_id`, `status`, ...
        """
        raise NotImplementedError

    def _handle(self, image: Image, pixels: np.ndarray) -> None:
        self.process(pixels, image)


class ImageStage(OwnStage):
    """Makes images of images: they go to a ring and a stream that are named like the stage."""

    def process(self, pixels: np.ndarray, image: Image) -> np.ndarray | None:
        """Return the new image, of at most as many bytes; None if it shall not go on.

        Parameters
        ----------
        pixels
            (height, width), read only; do not keep it, its memory is used again.
        image
            What is known of it: `image_id`, `status`, ...
        """
        raise NotImplementedError

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self.source_suffix == self.name:
            raise ConfigError(f"source suffix {self.name!r}: is this stage's own stream")
        self._ring: RingOwner | None = None
        self._out: zmq.Socket[bytes] | None = None

    def _open(self) -> None:
        super()._open()
        config = self.config
        self._out = channels.bind(zmq.PUB, channels.ipc_address(config.detector_name, self.name))
        self._ring = RingOwner.of_images(config, self.name, mask_words_of(config))

    def _handle(self, image: Image, pixels: np.ndarray) -> np.ndarray | None:
        made = self.process(pixels, image)
        if made is None:
            return None
        made = np.asarray(made)
        # A view of the source must be copied while it is sure to hold this image.
        return made.copy() if np.may_share_memory(made, pixels) else made

    def _conclude(self, image: Image, made: np.ndarray | None) -> str:
        ring, out = self._ring, self._out
        if made is None or ring is None or out is None:
            return "dropped"
        made = np.ascontiguousarray(made)
        dtype = Dtype.from_numpy(made.dtype) if made.dtype.isnative else Dtype.UNKNOWN
        if made.ndim != 2 or not made.size or not dtype or made.nbytes > ring.slot_bytes:
            self._complain(
                f"the result is {made.shape} of {made.dtype}: a 2-D image of at most {ring.slot_bytes} "
                "bytes is needed"
            )
            return "refused"
        ring.begin(image.image_id)[: made.nbytes] = made.reshape(-1).view(np.uint8)
        self._pass_mask_on(image, ring)
        ring.publish(image.image_id)
        height, width = made.shape
        new = replace(
            image, height=height, width=width, size=made.nbytes, dtype=dtype,
            compression=Compression.NONE,
        )  # fmt: skip
        out.send(image_metadata.encode(new))
        return "images"

    def _pass_mask_on(self, image: Image, ring: RingOwner) -> None:
        reader = self._pixels.reader() if self._pixels is not None else None
        if reader is not None:
            ring.copy_mask(image.image_id, reader)

    def _close(self) -> None:
        super()._close()
        if self._out is not None:
            channels.close(self._out)
        if self._ring is not None:
            self._ring.close()
        self._out = self._ring = None


def _view(reader: RingReader, image: Image) -> np.ndarray:
    pixels = reader.slot(image.image_id)[: image.size].view(image.dtype.numpy)
    pixels = pixels.reshape(image.height, image.width)
    pixels.flags.writeable = False
    return pixels


def image_stage(name: str) -> Callable[[Callable[[np.ndarray], np.ndarray | None]], type[ImageStage]]:
    """Make a stage of a function that takes an image and returns one, or None.

    Parameters
    ----------
    name
        Of the stage, its ring and its stream: lower case, with hyphens.
    """

    def make(function: Callable[[np.ndarray], np.ndarray | None]) -> type[ImageStage]:
        def process(_self: ImageStage, pixels: np.ndarray, _image: Image) -> np.ndarray | None:
            return function(pixels)

        return type(class_name(name), (ImageStage,), _members(name, function, process))

    return make


def value_stage(
    name: str, unit: str = ""
) -> Callable[[Callable[[np.ndarray], float]], type[ValueStage]]:
    """Make a stage of a function that takes an image and returns a number, its attribute `value`."""

    def make(function: Callable[[np.ndarray], float]) -> type[ValueStage]:
        def process(self: ValueStage, pixels: np.ndarray, _image: Image) -> None:
            self.value = function(pixels)  # type: ignore[attr-defined]

        described = (function.__doc__ or name).splitlines()[0]
        members = {**_members(name, function, process), "value": Value(unit, described)}
        return type(class_name(name), (ValueStage,), members)

    return make


def _members(name: str, function: Callable[..., Any], process: Callable[..., Any]) -> dict[str, Any]:
    return {
        "name": name,
        "process": process,
        "__doc__": function.__doc__,
        "__module__": function.__module__,
    }
