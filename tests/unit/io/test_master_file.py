"""The master file: all images in the order of their ids, whatever the writers' files hold."""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.errors import FileError
from tango_stddaq.io import master_file, virtual_images
from tango_stddaq.io.master_file import Subject
from tango_stddaq.io.rows import METADATA
from tango_stddaq.io.stored_images import StoredFile
from tango_stddaq.stats import Ledger, LossReason

from .test_image_file import HEIGHT, WIDTH, pixels_of, small_config

STARTED = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def write_part(path: Path, detector_name: str, image_ids: list[int]) -> Path:
    rows = np.zeros(len(image_ids), METADATA)
    rows["image_id"], rows["status"] = image_ids, 1
    images = np.zeros((len(image_ids), HEIGHT, WIDTH), np.uint16)
    for image, image_id in zip(images, image_ids, strict=True):
        image[:] = pixels_of(image_id)
    with h5py.File(path, "x") as file:
        file[f"{detector_name}/data"] = images
        file[f"{detector_name}/metadata"] = rows
    return path


def join(directory: Path, detector_name: str, parts: list[list[int]], ledger: Ledger) -> Path:
    files = [write_part(directory / f"file{i}.h5", detector_name, ids) for i, ids in enumerate(parts)]
    master = directory / "file.h5"
    subject = Subject.of(small_config(detector_name), STARTED)
    with ExitStack() as stack:
        stored = [stack.enter_context(StoredFile(path, detector_name)) for path in files]
        master_file.create(master, subject, stored, ledger, "all images stored")
    return master


def expect_images(master: Path, image_ids: list[int]) -> None:
    with h5py.File(master) as file:
        data = file["entry/data/data"]
        assert data.shape == (len(image_ids), HEIGHT, WIDTH)
        assert file["entry/data/image_id"][()].tolist() == image_ids
        for found, image_id in zip(data[()], image_ids, strict=True):
            np.testing.assert_array_equal(found, pixels_of(image_id), f"image {image_id}")


@settings(deadline=None, max_examples=200)
@given(
    sources=st.one_of(
        st.lists(st.integers(0, 3), max_size=40),
        st.integers(0, 40).map(lambda n: [k % 4 for k in range(n)]),
    ),
    swaps=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=3),
)
def test_runs_name_every_image_once_at_its_place(
    sources: list[int], swaps: list[tuple[int, int]]
) -> None:
    source = np.array(sources, np.int64)
    position = np.zeros(source.size, np.int64)
    for which in range(4):
        mine = source == which
        position[mine] = np.arange(mine.sum())
    for a, b in swaps:  # a writer's images need not come in the order of their ids
        if max(a, b) < source.size and source[a] == source[b]:
            position[[a, b]] = position[[b, a]]
    named = np.full((2, source.size), -1, np.int64)
    for which in range(4):
        for target, stride, first, length in virtual_images.runs(source, position, which):
            assert length >= 1
            assert stride >= 1
            targets = target + stride * np.arange(length)
            assert (named[0, targets] == -1).all()
            named[0, targets], named[1, targets] = which, first + np.arange(length)
    np.testing.assert_array_equal(named, [source, position])


def test_images_dealt_in_turn_are_one_run_per_file() -> None:
    source, position = np.arange(1000) % 3, np.arange(1000) // 3
    assert virtual_images.runs(source, position, 0) == [(0, 3, 0, 334)]
    assert virtual_images.runs(source, position, 2) == [(2, 3, 0, 333)]


def test_many_gaps_are_cut_into_runs_without_going_through_all_images_each_time() -> None:
    steps = np.random.default_rng(1).integers(1, 3, 200_000)
    source = np.ones(int(steps.sum()), np.int64)
    source[np.cumsum(steps) - 1] = 0
    found = virtual_images.runs(source, np.cumsum(source == 0) - 1, 0)
    assert sum(length for *_, length in found) == 200_000


@settings(deadline=None, max_examples=15)
@given(
    parts=st.lists(st.lists(st.integers(0, 200), max_size=12), min_size=1, max_size=3),
)
def test_master_shows_uneven_files_in_the_order_of_ids(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]
) -> None:
    seen: set[int] = set()
    unique = [[i for i in ids if i not in seen and not seen.add(i)] for ids in parts]  # type: ignore[func-returns-value]
    master = join(tmp_path_factory.mktemp("master"), "EG", unique, Ledger())
    expect_images(master, sorted(seen))


def test_files_may_be_moved_together(detector_name: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    join(tmp_path / "here", detector_name, [[1, 3, 5], [2, 4]], Ledger())
    (tmp_path / "here").rename(tmp_path / "there")
    expect_images(tmp_path / "there" / "file.h5", [1, 2, 3, 4, 5])


def test_images_of_two_runs_with_the_same_ids_are_all_there(detector_name: str, tmp_path: Path) -> None:
    expect_images(join(tmp_path, detector_name, [[1, 2], [1, 2]], Ledger()), [1, 1, 2, 2])


@pytest.mark.parametrize("parts", [[], [[]], [[], []]])
def test_no_images_are_a_master_without_images(
    detector_name: str, tmp_path: Path, parts: list[list[int]]
) -> None:
    expect_images(join(tmp_path, detector_name, parts, Ledger()), [])


def test_master_tells_what_happened(detector_name: str, tmp_path: Path) -> None:
    ledger = Ledger(requested=5, complete=2)
    ledger.incomplete_ids.add(3)
    ledger.lost_ids[LossReason.OVERWRITTEN].add_range(4, 5)
    master = join(tmp_path, detector_name, [[1, 2, 3]], ledger)
    with h5py.File(master) as file:
        entry = file["entry"]
        assert file.attrs["default"] == "entry"
        assert entry.attrs["NX_class"] == "NXentry"
        assert entry["start_time"][()].decode() == "2024-05-06T07:08:09+00:00"
        assert entry["instrument/detector/local_name"][()].decode() == detector_name
        account = {name: entry["ledger"][name][()] for name in entry["ledger"]}
    assert account["end_reason"] == b"all images stored"
    assert [account[name] for name in ("requested", "expected", "complete")] == [5, 5, 2]
    assert [account[name] for name in ("incomplete", "lost")] == [1, 2]
    assert account["incomplete_ids"].tolist() == [3]
    assert account["lost_ids_overwritten"].tolist() == [4, 5]
    assert account["incomplete_ranges"].tolist() == [(3, 3, b"incomplete")]
    assert account["lost_ranges"].tolist() == [(4, 5, b"overwritten")]


def test_existing_master_is_not_overwritten(detector_name: str, tmp_path: Path) -> None:
    (tmp_path / "file.h5").write_text("precious")
    with pytest.raises(FileError, match="exists already"):
        join(tmp_path, detector_name, [[1]], Ledger())
    assert (tmp_path / "file.h5").read_text() == "precious"


def test_missing_file_is_named(detector_name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"file7\.h5: cannot be read back"):
        StoredFile(tmp_path / "file7.h5", detector_name)
