"""Every size that follows from the configuration, computed once: nobody else computes them."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from tango_stddaq.config_keys import ConfigKeys
from tango_stddaq.model import Dtype

MIN_SLOTS: Final = 1000
"""An existing program always assumes at least this many slots in a ring."""
SEGMENT_ALIGN_BYTES: Final = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes derived from the configuration; nobody else computes them.

    Attributes
    ----------
    dtype
        Type of a pixel in the image ring.
    slot_bytes
        Bytes of one uncompressed converted image.
    n_slots
        Slots of the image ring.
    segment_bytes
        Bytes of the ring's segment, rounded up to 2 MiB.
    images_per_chunk
        Images in one HDF5 chunk.
    """

    height: int
    width: int
    dtype: Dtype
    slot_bytes: int
    n_slots: int
    segment_bytes: int
    images_per_chunk: int

    @classmethod
    def of(cls, config: ConfigKeys) -> "Sizes":
        """Compute the sizes of `config`."""
        if config.detector_type == "jungfrau-converted":
            dtype = Dtype.FLOAT32
        elif config.detector_type == "gigafrost":
            dtype = Dtype.UINT16
        else:
            dtype = Dtype.from_numpy(np.dtype(f"uint{config.bit_depth}"))
        height, width = config.image_pixel_height, config.image_pixel_width
        slot_bytes = height * width * dtype.numpy.itemsize
        n_slots = config.ring_slots or max(int(config.ram_buffer_gb * 2**30) // slot_bytes, MIN_SLOTS)
        return cls(
            height=height,
            width=width,
            dtype=dtype,
            slot_bytes=slot_bytes,
            n_slots=n_slots,
            segment_bytes=segment_bytes(n_slots, slot_bytes),
            images_per_chunk=max(1, config.gpfs_block_size // slot_bytes),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.height, self.width)


def segment_bytes(n_slots: int, slot_bytes: int) -> int:
    """Return the bytes of a ring's segment: whole pages of 2 MiB."""
    return -(-n_slots * slot_bytes // SEGMENT_ALIGN_BYTES) * SEGMENT_ALIGN_BYTES
