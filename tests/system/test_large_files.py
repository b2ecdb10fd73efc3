"""A million small images, and more than 100 GB: memory does not grow with them, and counts are right."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.config_sizes import Sizes
from tango_stddaq.io import growing_file
from tango_stddaq.io.creation import FileRules
from tango_stddaq.io.growing_file import GrowingFile
from tango_stddaq.io.image_file import ImageFile
from tango_stddaq.io.master_file import Subject
from tango_stddaq.io.ring import RingOwner, RingReader
from tango_stddaq.io.stored_images import StoredFile
from tango_stddaq.io.virtual_images import RunMap
from tango_stddaq.processing.acquisition import Account
from tango_stddaq.stages.conclusion import MasterFile

from .rig import rig_config

pytestmark = pytest.mark.system

N_SMALL = 1_000_000
N_WRITERS = 2
BATCH = 1000
MISSING_EVERY = 10_007
INCOMPLETE_EVERY = 5_003
MAX_GROWTH_BYTES = 96 * 2**20
"""Caches of HDF5 and a block of rows, whatever the number of images; a tuple for each would be more."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def message(sizes: Sizes, image_id: int, good: bool = True) -> pb.ImageMetadata:
    return pb.ImageMetadata(
        image_id=image_id, height=sizes.height, width=sizes.width, size=sizes.slot_bytes,
        dtype=int(sizes.dtype), status=1 if good else 2,
    )  # fmt: skip


class Ring:
    """A ring as the writers see it, filled just before they look."""

    def __init__(self, config: DaqConfig) -> None:
        sizes = config.sizes
        self._owner = RingOwner(config.segment("image"), sizes.n_slots, sizes.slot_bytes)
        self.reader = RingReader.attach(config.segment("image"), sizes.n_slots, sizes.slot_bytes)

    def put(self, image_id: int) -> None:
        self._owner.begin(image_id)[:8].data[:] = image_id.to_bytes(8, "little")
        self._owner.publish(image_id)

    def close(self) -> None:
        self.reader.close()
        self._owner.close()


def number_in(image: np.ndarray) -> int:
    return int.from_bytes(image.reshape(-1)[:8].view(np.uint8).tobytes()[:8], "little")


@pytest.fixture
def small(detector_name: str) -> DaqConfig:
    """The smallest images of a GigaFRoST."""
    return rig_config(
        detector_name, detector_type="gigafrost", n_modules=8, image_pixel_height=4,
        image_pixel_width=24, ring_slots=2 * BATCH, gpfs_block_size=2**20, number_of_writers=N_WRITERS,
    )  # fmt: skip


@pytest.fixture
def ring(small: DaqConfig) -> Iterator[Ring]:
    ring = Ring(small)
    yield ring
    ring.close()


def test_a_million_small_images_are_written_and_joined_in_bounded_memory(
    small: DaqConfig, ring: Ring, tmp_path: Path
) -> None:
    sizes = small.sizes
    paths = [tmp_path / f"run_{i}.h5" for i in range(N_WRITERS)]
    account = Account(N_SMALL)
    files = [ImageFile(path, small) for path in paths]
    master = MasterFile(
        tmp_path / "run_master.h5", Subject.of(small, datetime.now(UTC)), paths, FileRules()
    )
    before = 0
    for first in range(0, N_SMALL, BATCH):
        shares: list[list[pb.ImageMetadata]] = [[] for _ in files]
        for image_id in range(first, first + BATCH):
            if image_id % MISSING_EVERY == MISSING_EVERY - 1:
                continue
            image = message(sizes, image_id, image_id % INCOMPLETE_EVERY != 0)
            if account.take(image_id, image.status):
                shares[(account.n_dispatched - 1) % N_WRITERS].append(image)
                ring.put(image_id)
        for file, share in zip(files, shares, strict=True):
            assert file.extend(share, ring.reader) == len(share)
        if first == N_SMALL // 10:
            before = resident_bytes()
    for file in files:
        file.close()
    conclusion = master.conclude(account, (), "; ".join)
    growth = resident_bytes() - before
    assert growth < MAX_GROWTH_BYTES, f"{growth / 2**20:.0f} MiB more"

    n_missing = N_SMALL // MISSING_EVERY
    n_incomplete = sum(
        k % MISSING_EVERY != MISSING_EVERY - 1 for k in range(0, N_SMALL, INCOMPLETE_EVERY)
    )
    ledger = conclusion.ledger
    assert (conclusion.failures, conclusion.has_master) == ([], True)
    assert (ledger.expected, ledger.incomplete, ledger.lost) == (N_SMALL, n_incomplete, n_missing)
    ids = np.arange(N_SMALL)
    ids = ids[ids % MISSING_EVERY != MISSING_EVERY - 1]
    with h5py.File(master.path) as file:
        data = file["entry/data"]
        np.testing.assert_array_equal(data["image_id"][()], ids)
        assert data["data"].shape == (len(ids), 4, 24)
        for at in (0, 1, MISSING_EVERY, len(ids) // 2, len(ids) - 1):
            assert number_in(data["data"][at]) == ids[at]


def test_a_file_of_more_than_100_gb_is_written_and_shown_in_bounded_memory(
    detector_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each image only the first bytes are written: the rest are holes, which take no room."""
    n_images, side = 1700, 4096
    config = rig_config(
        detector_name, bit_depth=32, image_pixel_height=side, image_pixel_width=side, ring_slots=4,
        number_of_writers=1, gpfs_block_size=16 * 2**20,
    )  # fmt: skip
    write_at = GrowingFile.write_at

    def write_the_first_bytes(file: GrowingFile, pieces: Any, offset: int) -> None:
        for k, piece in enumerate(pieces):
            write_at(file, [piece[:8]], offset + k * piece.nbytes)

    monkeypatch.setattr(GrowingFile, "write_at", write_the_first_bytes)
    monkeypatch.setattr(growing_file, "pays", lambda _fd: False)  # holes stay holes
    ring, sizes = Ring(config), config.sizes
    account = Account(n_images)
    path = tmp_path / "run_0.h5"
    before = 0
    try:
        with ImageFile(path, config) as file:
            subject = Subject.of(config, datetime.now(UTC))
            master = MasterFile(tmp_path / "run_master.h5", subject, [path], FileRules())
            for image_id in range(n_images):
                ring.put(image_id)
                image = message(sizes, image_id)
                assert account.take(image_id, image.status)
                assert file.extend([image], ring.reader) == 1
                if image_id == n_images // 10:
                    before = resident_bytes()
    finally:
        ring.close()
    conclusion = master.conclude(account, (), "; ".join)
    growth = resident_bytes() - before
    assert growth < MAX_GROWTH_BYTES, f"{growth / 2**20:.0f} MiB more"
    assert (conclusion.failures, conclusion.ledger.complete) == ([], n_images)
    found = path.stat()
    assert found.st_size > 100 * 10**9
    assert found.st_blocks * 512 < 2 * 10**9
    with StoredFile(path) as stored:
        assert (stored.closed, stored.n_images) == (True, n_images)
    with h5py.File(master.path) as file:
        data = file["entry/data/data"]
        assert data.shape == (n_images, side, side)
        for at in (0, n_images // 2, n_images - 1):
            assert number_in(data[at, :1, :2]) == at


@pytest.mark.parametrize(("n_images", "too_many"), [(2_000, False), (20_000, True)])
def test_with_more_gaps_than_a_virtual_dataset_bears_images_come_file_by_file(
    small: DaqConfig, ring: Ring, tmp_path: Path, n_images: int, too_many: bool
) -> None:
    """Every fifth image or so is lost by writer 1: each time new runs begin in both files."""
    sizes = small.sizes
    paths = [tmp_path / f"run_{i}.h5" for i in range(N_WRITERS)]
    files = [ImageFile(path, small) for path in paths]
    ids: list[list[int]] = [[], []]
    turn = (0, 0, 1, 0, 1)
    for first in range(0, n_images, BATCH):
        images = range(first, first + BATCH)
        for image_id in images:
            ring.put(image_id)
        for which, file in enumerate(files):
            part = [k for k in images if turn[k % len(turn)] == which]
            ids[which] += part
            assert file.extend([message(sizes, k) for k in part], ring.reader) == len(part)
    for file in files:
        file.close()
    account = Account(n_images)
    for image_id in range(n_images):
        account.take(image_id, 1)
    subject = Subject.of(small, datetime.now(UTC))
    master = MasterFile(tmp_path / "run_master.h5", subject, paths, FileRules())
    conclusion = master.conclude(account, (), "; ".join)
    assert (conclusion.failures, conclusion.ledger.complete) == ([], n_images)
    expected = ids[0] + ids[1] if too_many else sorted(ids[0] + ids[1])
    with h5py.File(master.path) as file:
        note = file["entry/instrument/detector"].attrs.get("order", "")
        assert ("file by file" in note) == too_many
        data = file["entry/data"]
        assert data["image_id"][()].tolist() == expected
        for at in (0, n_images // 3, n_images - 1):
            assert number_in(data["data"][at]) == expected[at]


def test_a_map_of_too_many_runs_keeps_none_of_them() -> None:
    """Images of two files in no order at all: memory may not grow with them."""
    run_map = RunMap(2)
    rng = np.random.default_rng(1)
    for _ in range(20):
        source = rng.integers(0, 2, 5000)
        position = rng.permutation(5000)
        run_map.add(source, position)
    assert run_map.too_many
    assert run_map.n_images == 100_000
    assert sum(map(len, run_map.runs)) == 0
