"""A writer's HDF5 file: chunks, counts, refusal to overwrite."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import FileError
from tango_stddaq.io.image_file import ImageFile
from tango_stddaq.io.ring import RingOwner, RingReader
from tango_stddaq.io.rows import GrowingRows
from tango_stddaq.io.stored_images import StoredFile
from tango_stddaq.model import Compression, Dtype, Image, Status

HEIGHT, WIDTH = 3, 5
IMAGE_BYTES = HEIGHT * WIDTH * 2


def small_config(detector_name: str, **changes: object) -> DaqConfig:
    """Images of 3 x 5 pixels, in a ring of 8."""
    data: dict[str, object] = {
        "detector_name": detector_name,
        "detector_type": "pco",
        "n_modules": 1,
        "bit_depth": 16,
        "image_pixel_height": HEIGHT,
        "image_pixel_width": WIDTH,
        "start_udp_port": 0,
        "module_positions": {},
        "ring_slots": 8,
    }
    return config_module.from_dict({**data, **changes})


def pixels_of(image_id: int) -> np.ndarray:
    return (np.arange(HEIGHT * WIDTH, dtype=np.uint16) + 100 * image_id + 1).reshape(HEIGHT, WIDTH)


def metadata_of(image_id: int, status: Status = Status.GOOD_IMAGE) -> Image:
    return Image(image_id, HEIGHT, WIDTH, IMAGE_BYTES, Dtype.UINT16, status)


class Source:
    """A ring of its own, its owner and its reader."""

    def __init__(self, detector_name: str) -> None:
        self.owner = RingOwner(f"{detector_name}-image", 8, IMAGE_BYTES)
        self.reader = RingReader.attach(f"{detector_name}-image", 8, IMAGE_BYTES)

    def store(self, image_id: int) -> None:
        self.owner.begin(image_id)[:] = pixels_of(image_id).reshape(-1).view(np.uint8)
        self.owner.publish(image_id)

    def append(self, file: ImageFile, image_id: int, status: Status = Status.GOOD_IMAGE) -> bool:
        return file.append(metadata_of(image_id, status), self.reader)

    def store_and_append(self, file: ImageFile, *image_ids: int) -> None:
        for image_id in image_ids:
            self.store(image_id)
            assert self.append(file, image_id)


@pytest.fixture
def source(detector_name: str) -> Iterator[Source]:
    source = Source(detector_name)
    yield source
    source.reader.close()
    source.owner.close()


def read_rows(path: Path, detector_name: str) -> np.ndarray:
    with StoredFile(path, detector_name) as file:
        rows: np.ndarray = file.metadata[()]
        return rows


Create = Callable[..., ImageFile]


@pytest.fixture
def create(detector_name: str, tmp_path: Path) -> Iterator[Create]:
    files: list[ImageFile] = []

    def create(per_chunk: int = 1, name: str = "file0.h5") -> ImageFile:
        config = small_config(detector_name, gpfs_block_size=per_chunk * IMAGE_BYTES)
        assert config.sizes.images_per_chunk == per_chunk
        files.append(ImageFile(tmp_path / name, config))
        return files[-1]

    yield create
    for file in files:
        file.close()


def expect(path: Path, detector_name: str, image_ids: list[int]) -> None:
    with h5py.File(path) as file:
        data, rows = file[f"{detector_name}/data"], file[f"{detector_name}/metadata"]
        assert data.shape == (len(image_ids), HEIGHT, WIDTH)
        assert data.dtype == np.uint16
        assert rows["image_id"].tolist() == image_ids
        for found, image_id in zip(data, image_ids, strict=True):
            np.testing.assert_array_equal(found, pixels_of(image_id))


@pytest.mark.parametrize("per_chunk", [1, 2, 3, 1000])
@pytest.mark.parametrize("n_images", [0, 1, 2, 3, 7])
def test_images_are_read_back_for_any_chunking(
    create: Create, source: Source, detector_name: str, per_chunk: int, n_images: int
) -> None:
    file = create(per_chunk)
    image_ids = [3 * k for k in range(n_images)]
    source.store_and_append(file, *image_ids)
    assert file.n_written == n_images
    file.close()
    file.close()
    expect(file.path, detector_name, image_ids)
    assert read_rows(file.path, detector_name)["image_id"].tolist() == image_ids


@pytest.mark.parametrize("per_chunk", [1, 4])
def test_file_has_the_contract_layout(
    create: Create, source: Source, detector_name: str, per_chunk: int
) -> None:
    file = create(per_chunk)
    source.store(0)
    source.append(file, 0, Status.MISSING_PACKETS)
    file.close()
    with h5py.File(file.path) as found:
        data, rows = found[f"{detector_name}/data"], found[f"{detector_name}/metadata"]
        assert data.chunks == (per_chunk, HEIGHT, WIDTH)
        assert data.maxshape == (None, HEIGHT, WIDTH)
        assert rows.dtype == np.dtype([("image_id", "<u8"), ("status", "<u8")])
        assert rows[()].tolist() == [(0, 2)]


@pytest.mark.parametrize("per_chunk", [1, 3])
def test_flush_between_images_changes_nothing(
    create: Create, source: Source, detector_name: str, per_chunk: int
) -> None:
    file = create(per_chunk)
    for image_id in range(7):
        source.store_and_append(file, image_id)
        file.flush()
        file.flush()
    file.close()
    expect(file.path, detector_name, list(range(7)))


@pytest.mark.parametrize("n_stored", range(4))
def test_an_image_whose_id_is_seen_is_whole_wherever_a_kill_cuts_the_flush(
    create: Create, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_stored: int
) -> None:
    file = create(1)
    source.store_and_append(file, 0)
    file.flush()
    source.store_and_append(file, 1, 2)
    append, calls = GrowingRows.append, iter(range(n_stored))

    def cut(rows: GrowingRows, values: np.ndarray) -> None:
        if next(calls, None) is None:
            raise OSError("killed here")
        append(rows, values)

    monkeypatch.setattr(GrowingRows, "append", cut)
    with suppress(FileError):
        file.flush()
    monkeypatch.undo()
    left = Path(shutil.copy(file.path, tmp_path / "left.h5"))
    file.let_go()
    found = StoredFile(left)
    ids = found.rows("image_id")
    assert ids is not None
    seen = ids[()].tolist()
    n_images = found.n_images
    found.close()
    assert seen == ([0, 1, 2] if n_stored == 3 else [0])
    assert n_images == len(seen)


def test_more_images_than_rows_are_gathered_keep_their_rows(
    create: Create, source: Source, detector_name: str
) -> None:
    file = create(64)
    image_ids = list(range(2 * 1024 + 5))
    for image_id in image_ids:
        source.store_and_append(file, image_id % 8)
    file.close()
    rows = read_rows(file.path, detector_name)
    assert rows["image_id"].tolist() == [image_id % 8 for image_id in image_ids]


@pytest.mark.parametrize("per_chunk", [1, 3])
def test_overwritten_image_is_left_out(
    create: Create, source: Source, detector_name: str, per_chunk: int
) -> None:
    file = create(per_chunk)
    source.store_and_append(file, 0, 1)
    source.store(10)
    assert not source.append(file, 2)
    assert file.n_written == 2
    source.store_and_append(file, 3)
    assert not source.append(file, 2)
    file.close()
    expect(file.path, detector_name, [0, 1, 3])


class OvertakenReader(RingReader):
    """A reader that is overtaken while it reads: the next image of the slot comes before the check."""

    overtake: Callable[[], None]

    def still(self, image_id: int, ticket: int) -> bool:
        self.overtake()
        return super().still(image_id, ticket)


@pytest.mark.parametrize("per_chunk", [1, 3])
def test_image_overwritten_while_it_is_read_is_left_out(
    create: Create, source: Source, detector_name: str, per_chunk: int
) -> None:
    file = create(per_chunk)
    source.store_and_append(file, 0, 1, 2, 3)
    source.store(4)
    with OvertakenReader.attach(f"{detector_name}-image", 8, IMAGE_BYTES) as attached:
        assert isinstance(attached, OvertakenReader)
        attached.overtake = lambda: source.store(12)
        assert not file.append(metadata_of(4), attached)
    file.flush()
    file.close()
    expect(file.path, detector_name, [0, 1, 2, 3])


@pytest.mark.parametrize("per_chunk", [1, 3])
def test_image_of_another_shape_is_refused(create: Create, source: Source, per_chunk: int) -> None:
    file = create(per_chunk)
    for image in (
        Image(0, HEIGHT, WIDTH + 1, IMAGE_BYTES, Dtype.UINT16),
        Image(0, HEIGHT, WIDTH, IMAGE_BYTES, Dtype.UINT8),
        Image(0, HEIGHT, WIDTH, IMAGE_BYTES, Dtype.UNKNOWN),
        Image(0, HEIGHT, WIDTH, 7, Dtype.UINT16, compression=Compression.BLOSC2),
    ):
        with pytest.raises(FileError, match="does not fit the dataset of 3 x 5 uint16"):
            file.append(image, source.reader)
    assert file.n_written == 0


def test_existing_file_is_not_overwritten(create: Create, tmp_path: Path) -> None:
    (tmp_path / "file0.h5").write_text("precious")
    with pytest.raises(FileError, match="exists already; nothing is overwritten"):
        create()
    assert (tmp_path / "file0.h5").read_text() == "precious"


def test_missing_directory_is_named(create: Create, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=str(tmp_path / "nowhere")):
        create(name="nowhere/file0.h5")


def test_chunk_that_hdf5_cannot_hold_is_refused_and_leaves_no_file(
    detector_name: str, tmp_path: Path
) -> None:
    config = small_config(detector_name, gpfs_block_size=5 * 2**30)
    with pytest.raises(FileError, match="cannot be created"):
        ImageFile(tmp_path / "file0.h5", config)
    assert list(tmp_path.iterdir()) == []


def test_file_with_fewer_rows_than_images_is_not_believed(detector_name: str, tmp_path: Path) -> None:
    path = tmp_path / "file0.h5"
    with h5py.File(path, "w") as file:
        file[f"{detector_name}/data"] = np.zeros((2, HEIGHT, WIDTH), np.uint16)
        file[f"{detector_name}/metadata"] = np.zeros(1, [("image_id", "<u8"), ("status", "<u8")])
    with pytest.raises(FileError, match="2 images but 1 rows"):
        read_rows(path, detector_name)


@pytest.mark.parametrize("content", [None, b"no HDF5"])
def test_file_that_cannot_be_read_back_is_named(
    detector_name: str, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "file0.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match="cannot be read back"):
        read_rows(path, detector_name)
