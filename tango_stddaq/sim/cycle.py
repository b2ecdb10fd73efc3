"""Packets made in advance: a cycle of images, of which only what names the image is written anew."""

from collections.abc import Callable
from typing import Final

import numpy as np

from tango_stddaq.detectors.layout import Detector
from tango_stddaq.errors import ConfigError
from tango_stddaq.sim.picture import N_MARKS

MAX_CYCLE_BYTES: Final = 2 * 2**30
"""Memory that a cycle may take."""


class PacketCycle:
    """The packets of `n_images` images, made by `make_next`; image `i` uses those at `i % n_images`.

    Parameters
    ----------
    picture
        Gives the image (height, width) of a position in the cycle.
    n_images
        Rounded up where sets of connections take turns, so that each position belongs to one set.

    Attributes
    ----------
    packets
        (n_images, n_modules, packets_per_frame, packet_bytes) uint8.
    n_made
        Images whose packets are there.

    Raises
    ------
    ConfigError
        If it would take more than `MAX_CYCLE_BYTES`.
    """

    def __init__(self, detector: Detector, picture: Callable[[int], np.ndarray], n_images: int) -> None:
        self.detector = detector
        self.n_images = cycle_length(detector, n_images)
        layout = detector.layout
        shape = (self.n_images, len(detector.modules), layout.packets_per_frame, layout.packet_bytes)
        self.packets = np.empty(shape, np.uint8)
        self.n_made = 0
        self._picture = picture
        # One behind the other, not by image and module: numpy is fast with long rows only.
        self._headers = np.ndarray(
            (self.packets.size // layout.packet_bytes,), layout.header, self.packets.data,
            strides=(layout.packet_bytes,),
        )  # fmt: skip
        # The lowest byte of the first pixel of each frame, in every pixel format.
        self._marks = self.packets[:, :, 0, layout.header.itemsize]

    def make_next(self) -> bool:
        """Make the packets of one more image; returns whether all are made."""
        if self.n_made < self.n_images:
            position = self.n_made
            image = self._picture(position)
            for part, connection in enumerate(self.detector.connections_of(position)):
                self.packets[position, part] = self.detector.packets(image, position, connection)
            self.n_made += 1
        return self.n_made == self.n_images

    @property
    def image_bytes(self) -> int:
        """Bytes of the datagrams of an image."""
        return int(self.detector.packet_sizes().sum()) * len(self.detector.modules)

    def stamp(self, first_id: int, n: int) -> None:
        """Let the packets of n images in a row carry their ids; n is at most the cycle."""
        ids = np.arange(first_id, first_id + n, dtype=np.uint64)
        start = first_id % self.n_images
        before_end = min(n, self.n_images - start)
        per_image = len(self._headers) // self.n_images
        for first, part in ((start, ids[:before_end]), (0, ids[before_end:])):
            if not len(part):
                continue
            end = first + len(part)
            headers = self._headers[first * per_image : end * per_image]
            self.detector.stamp(headers, np.repeat(part, per_image))
            self._marks[first:end] = (part % N_MARKS)[:, None]

    def frames(self, image_id: int) -> dict[int, np.ndarray]:
        """Return the packets of an image by connection; they are good until the next call."""
        self.stamp(image_id, 1)
        connections = self.detector.connections_of(image_id)
        return dict(zip(connections, self.packets[image_id % self.n_images], strict=True))


def cycle_length(detector: Detector, n_images: int) -> int:
    """Return the images that a cycle of `n_images` or slightly more has.

    Raises
    ------
    ConfigError
        If it is too long to be held in memory.
    """
    n_sets = len(detector.connections) // len(detector.modules)
    rounded = -(-n_images // n_sets) * n_sets
    layout = detector.layout
    each = len(detector.modules) * layout.packets_per_frame * layout.packet_bytes
    most = MAX_CYCLE_BYTES // each // n_sets * n_sets
    if not 0 < rounded <= most:
        raise ConfigError(
            f"cycle {n_images}: is not allowed: the packets of 1 to {most} images of this detector "
            f"fit in {MAX_CYCLE_BYTES // 2**20} MiB"
        )
    return rounded
