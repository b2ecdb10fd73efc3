"""A full disk, or a quota that is met: the acquisition says so, and what was accepted is there."""

import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import AcquisitionError, FileError
from tango_stddaq.io import master_file
from tango_stddaq.io.creation import FileRules
from tango_stddaq.io.master_file import Subject
from tango_stddaq.io.metadata_file import MetadataFile
from tango_stddaq.io.stored_images import StoredFile
from tango_stddaq.stats import Ledger

from . import limited_disks, packed
from .limited_disks import LimitedDisk
from .programs import wait_until
from .rig import Rig, pixels_of, rig_config

pytestmark = [pytest.mark.system, pytest.mark.expects_errors]

NOT_THERE = 2**64 - 1
ADVICE = {
    "No space left on device": "write to another directory",
    "Disk quota exceeded": "have the quota of this user, group or directory raised",
}


@pytest.fixture(params=limited_disks.KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LimitedDisk]:
    directory = tmp_path / "disk"
    directory.mkdir()
    with limited_disks.KINDS[request.param](directory) as disk:
        yield disk


@pytest.fixture
def config(detector_name: str) -> DaqConfig:
    """Images of 32 KiB, four in a chunk."""
    return rig_config(
        detector_name, image_pixel_height=128, image_pixel_width=128, gpfs_block_size=4 * 32768
    )


def fill(directory: Path, n_bytes: int = 2**40) -> None:
    """Let another program take so much room, or what there is."""
    with suppress(OSError), (directory / "other").open("wb", buffering=0) as other:
        while other.tell() < n_bytes and other.write(bytes(2**14)):
            pass


def check_accepted_are_there(rig: Rig, at_least: int) -> list[bool]:
    """All files open, and hold every image that the ledger counts, pixel by pixel.

    Returns
    -------
    list
        For each file whether it was brought to its end: it holds every image that its writer took.
    """
    ledger = rig.driver.ledger
    assert ledger.expected == ledger.complete + ledger.lost == rig.driver.n_dispatched
    lost = {reason: ids.count for reason, ids in ledger.lost_ids.items() if ids.count}
    assert lost["write_error"] > 0
    assert lost.keys() <= {"write_error", "overwritten"}  # the ring goes on while a disk says no
    stored: list[int] = []
    closed = []
    for path in rig.driver.last_files:
        with StoredFile(Path(path)) as file:
            closed.append(file.closed)
            ids = file.metadata["image_id"][:].tolist()
            stored += ids
            for k, image_id in enumerate(ids):
                np.testing.assert_array_equal(file.data[k], pixels_of(rig.config, image_id))
    assert len(stored) == ledger.complete >= at_least
    with rig.master() as master:  # the one from the start, where there was no room for another
        shown = {int(k): at for at, k in enumerate(master["entry/data/image_id"]) if k != NOT_THERE}
        for image_id, at in shown.items():
            np.testing.assert_array_equal(master["entry/data/data"][at], pixels_of(rig.config, image_id))
        is_final = master["entry"].attrs["state"] == "complete"
        assert is_final != ("run_master.h5: cannot be created" in rig.driver.reason)
        # Of a file that was not closed the first one may show ids whose `metadata` were not written.
        assert shown.keys() == set(stored) if is_final else shown.keys() >= set(stored)
    return closed


@pytest.mark.parametrize("filler", ["images", "another"])
@pytest.mark.parametrize("suffix", ["image", *packed.METHODS])
def test_the_acquisition_ends_with_the_reason_and_what_was_accepted_is_there(
    config: DaqConfig, disk: LimitedDisk, suffix: str, filler: str
) -> None:
    more: dict[str, Any] = {"compress": packed.METHODS[suffix][0]} if suffix in packed.METHODS else {}
    if filler == "images":
        fill(disk.path, 18 * 2**20)
    with Rig(config, suffix, **more) as rig:
        rig.begin(disk.path)
        rig.send(range(20))
        rig.wait_flushed(20)
        os.sync()
        if filler == "another":
            fill(disk.path)
        n_sent = 20
        while rig.driver.busy and not any(writer._failure for writer in rig.writers):
            assert n_sent < 40_000, "the disk is not full"
            rig.send(range(n_sent, n_sent + 20))
            n_sent += 20
        rig.wait_end()  # by itself: a writer that cannot go on says so
        assert rig.driver.failed
        assert disk.says in rig.driver.reason
        assert ADVICE[disk.says] in rig.driver.reason
        closed = check_accepted_are_there(rig, 20)
        assert all(closed) or disk.copies_on_write
        for path, is_closed in zip(rig.driver.last_files, closed, strict=True):
            assert (f"{path}: was not closed by its writer" in rig.driver.reason) != is_closed
        # With room again the next acquisition works.
        for path in disk.path.iterdir():
            if path.is_file():
                path.unlink()
        os.sync()
        rig.begin(disk.path, 4, prefix="next_")
        rig.send(range(4))
        rig.wait_end()
        assert not rig.driver.failed, rig.driver.reason


def refusal_of_master(path: Path, config: DaqConfig) -> str:
    """Make a master file; returns why it could not be made, "" if it was."""
    ledger = Ledger(requested=1)
    try:
        master_file.create(path, Subject.of(config), [], ledger, "x" * 10_000, FileRules())
    except FileError as error:
        return str(error)
    with h5py.File(path) as file:
        assert file["entry/ledger/end_reason"][()] == b"x" * 10_000
    return ""


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_master_that_finds_no_room_leaves_nothing_and_is_made_when_there_is_some(
    config: DaqConfig, tmp_path: Path, kind: str
) -> None:
    """HDF5 remembers a file that it could not close, and a new one may get its inode number."""
    directory = tmp_path / "disk"
    directory.mkdir()
    refusals = []
    with limited_disks.KINDS[kind](directory) as disk:
        for n_left in range(0, 40 * 1024, 2048):
            spare = disk.path / "spare"
            spare.write_bytes(bytes(n_left))
            fill(disk.path)
            spare.unlink()
            path = disk.path / "a_master.h5"
            refusal = refusal_of_master(path, config)
            assert bool(refusal) != path.exists()
            assert not list(disk.path.glob(".*.new"))
            refusals += [refusal] if refusal else []
            (disk.path / "other").unlink()
            for k in range(3):
                assert refusal_of_master(disk.path / f"b{k}_master.h5", config) == ""
            for found in disk.path.glob("*.h5"):
                found.unlink()
        beginning = f"{disk.path}/a_master.h5: cannot be created: {disk.says}"
    assert len(refusals) > 2
    assert [refusal for refusal in refusals if not refusal.startswith(beginning)] == []


def test_an_acquisition_does_not_start_where_the_quota_is_met_already(
    config: DaqConfig, disk: LimitedDisk
) -> None:
    with Rig(config) as rig:
        fill(disk.path)
        with pytest.raises(AcquisitionError, match=disk.says):
            rig.begin(disk.path)
        wait_until(lambda: not rig.driver.busy, "the error is over")
        assert not list(disk.path.glob("*.h5"))
        assert not list(disk.path.glob(".*.new"))


def test_a_metadata_file_holds_every_row_it_accepted(detector_name: str, disk: LimitedDisk) -> None:
    config = rig_config(
        detector_name, detector_type="gigafrost", n_modules=8,
        image_pixel_height=4, image_pixel_width=24, gpfs_block_size=2**20,
    )  # fmt: skip
    path = disk.path / "run_Meta.h5"
    rows = [pb.ImageMetadata(image_id=k) for k in range(4096)]

    def extend_without_end(file: MetadataFile) -> None:
        while file.n_written < 2**24:
            file.extend(rows)

    file = MetadataFile(path, config, FileRules())
    fill(disk.path)
    with pytest.raises(FileError, match=disk.says):
        extend_without_end(file)
    with suppress(FileError) if disk.copies_on_write else nullcontext():
        file.close()
    with h5py.File(path) as found:
        n_rows = len(found[f"{detector_name}/metadata"])
    assert n_rows == file.n_written or disk.copies_on_write
