"""Where chunks lie in a file: at pages, one behind the other, without holes of the size of a block."""

from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.io.growing_file import PAGE_BYTES
from tango_stddaq.io.image_file import ImageFile
from tango_stddaq.io.ring import RingOwner, RingReader
from tango_stddaq.model import Compression, Image

BLOCK_BYTES = 2**18
N_SLOTS = 8
ROOM_FOR_THE_REST = 2**20
"""Rows, indexes and headers of so few images: far less than a block for each object would be."""


def config_of(detector_name: str, shape: tuple[int, int], bit_depth: int) -> DaqConfig:
    return config_module.from_dict(
        {
            "detector_name": detector_name, "detector_type": "pco", "n_modules": 1,
            "bit_depth": bit_depth, "image_pixel_height": shape[0], "image_pixel_width": shape[1],
            "start_udp_port": 0, "module_positions": {}, "ring_slots": N_SLOTS,
            "gpfs_block_size": BLOCK_BYTES,
        }
    )  # fmt: skip


def pixels_of(config: DaqConfig, image_id: int) -> np.ndarray:
    n = config.image_pixel_height * config.image_pixel_width
    return (np.arange(n) * 3 + image_id).astype(config.sizes.dtype.numpy).reshape(config.sizes.shape)


def written(config: DaqConfig, path: Path, n_images: int, compression: Compression) -> None:
    """Write images; compressed ones stay as they are, as those that do not compress."""
    sizes = config.sizes
    name = config.segment("image")
    with (
        closing(RingOwner(name, sizes.n_slots, sizes.slot_bytes)) as owner,
        closing(RingReader.attach(name, sizes.n_slots, sizes.slot_bytes)) as reader,
        ImageFile(path, config, compression) as file,
    ):
        for image_id in range(n_images):
            owner.begin(image_id)[:] = pixels_of(config, image_id).reshape(-1).view(np.uint8)
            owner.publish(image_id)
            assert file.append(Image(image_id, *sizes.shape, sizes.slot_bytes, sizes.dtype), reader)
            if image_id % 50 == 49:
                file.flush()


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.H5BITSHUFFLE_LZ4])
@pytest.mark.parametrize(
    ("shape", "bit_depth", "per_chunk"),
    [
        ((128, 128), 16, 8),  # a chunk is a block
        ((101, 103), 8, 25),  # a chunk is a little less than a block
        ((256, 257), 32, 1),  # an image is a little more than a block
        ((700, 800), 32, 1),  # an image is many blocks
    ],
)
def test_chunks_begin_at_pages_and_follow_each_other(
    detector_name: str,
    tmp_path: Path,
    shape: tuple[int, int],
    bit_depth: int,
    per_chunk: int,
    compression: Compression,
) -> None:
    config = config_of(detector_name, shape, bit_depth)
    path = tmp_path / "run_0.h5"
    n_images = 4 * per_chunk + 3 * 7 + 1  # the last chunk is not full
    written(config, path, n_images, compression)
    with h5py.File(path) as file:
        data = file[f"{detector_name}/data"]
        assert data.chunks == (1 if compression else per_chunk, *shape)
        chunks = sorted(
            (data.id.get_chunk_info(k) for k in range(data.id.get_num_chunks())),
            key=lambda chunk: chunk.chunk_offset,
        )
        assert len(chunks) == -(-n_images // data.chunks[0])
        starts = np.array([chunk.byte_offset for chunk in chunks])
        ends = starts + [chunk.size for chunk in chunks]
        for at in range(n_images):
            np.testing.assert_array_equal(data[at], pixels_of(config, at))
    assert (starts % PAGE_BYTES == 0).all()
    assert (starts[1:] >= ends[:-1]).all()  # from front to end
    to_pages = len(chunks) * PAGE_BYTES
    assert path.stat().st_size - int((ends - starts).sum()) < ROOM_FOR_THE_REST + to_pages
