"""How an image is cut into parts that travel between two servers, each over a connection of its own.

Source: the interface contract, "Forwarding between servers". Part *i* of *n* begins at byte
`i * base // n`, where *base* is the largest image of the detector, or the configured one with
`use_all_forwarders`. Existing programs give every part `base // n` bytes, and so leave bytes out where
*n* does not divide *base*. Ours send up to where the next part begins, and the last one takes the rest.
"""

from dataclasses import dataclass
from typing import Final

from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.errors import ConfigError

_LARGEST_PIXELS: Final = {
    "gigafrost": 2016 * 2016,
    "eiger": 3106 * 3264,
    "jungfrau": 1024 * 512 * 32,
    "jungfrau-raw": 1024 * 512 * 32,
    "jungfrau-converted": 1024 * 512 * 32,
}
_LARGEST_PIXEL_BYTES: Final = {"gigafrost": 2, "eiger": 4, "jungfrau-converted": 4}
"""Of the others: bytes of a pixel as configured."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of bytes of every image.

    Attributes
    ----------
    number
        From 0.
    offset, n_bytes
        Where it lies in the slot.
    existing_n_bytes
        Bytes that an existing program sends for it: fewer where the cut leaves a rest.
    """

    number: int
    offset: int
    n_bytes: int
    existing_n_bytes: int

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.n_bytes


def parts_of(config: DaqConfig) -> tuple[Part, ...]:
    """Return the parts of an image that are not empty; part *i* stands at index *i*.

    Raises
    ------
    ConfigError
        If the largest image of this detector is not known.
    """
    n, image = config.max_number_of_forwarders_spawned, config.sizes.slot_bytes
    base = image if config.use_all_forwarders else _largest_bytes(config)
    starts = [start for start in (i * base // n for i in range(n)) if start < image]
    # With fewer bytes than forwarders several would begin at the same byte: only the last has it.
    ends = [*starts[1:], image]
    return tuple(
        Part(i, start, end - start, min(image - start, base // n))
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def part_of(config: DaqConfig, number: int) -> Part | None:
    """Return what sender and receiver `number` carry; None if that is nothing.

    With `sender_sends_full_images` it is the whole slot, of every n-th image.

    Raises
    ------
    ConfigError
        If the number is negative, or as in `parts_of`.
    """
    if number < 0:
        raise ConfigError(f"part {number}: allowed are numbers from 0")
    if config.sender_sends_full_images:
        image = config.sizes.slot_bytes
        taken = number < config.max_number_of_forwarders_spawned
        return Part(number, 0, image, image) if taken else None
    parts = parts_of(config)
    return parts[number] if number < len(parts) and parts[number].n_bytes else None


def carries(config: DaqConfig, number: int, image_id: int) -> bool:
    """Return whether sender `number` sends anything of an image."""
    if not config.sender_sends_full_images:
        return True
    return image_id % config.max_number_of_forwarders_spawned == number


def _largest_bytes(config: DaqConfig) -> int:
    kind = config.detector_type
    if kind not in _LARGEST_PIXELS:
        cameras = ", ".join(CAMERAS)
        raise ConfigError(
            f"use_all_forwarders: value false is not allowed for detector_type {kind!r}: the largest "
            f"image of {cameras} is not known; allowed is true"
        )
    pixel_bytes = _LARGEST_PIXEL_BYTES.get(kind, config.sizes.dtype.numpy.itemsize)
    return _LARGEST_PIXELS[kind] * pixel_bytes
