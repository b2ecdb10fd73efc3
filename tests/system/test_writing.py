"""Driver and writers: what is asked for is in the files, or the ledger says why not."""

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import AcquisitionError
from tango_stddaq.model import Compression, GigafrostMetadata
from tango_stddaq.processing.acquisition import DriverStatus
from tango_stddaq.stages.meta_writer import MetaWriter

from . import packed
from .programs import refused, stddaq, wait_until
from .rig import Rig, incomplete, pixels_of, rig_config

pytestmark = pytest.mark.system


@pytest.fixture
def config(detector_name: str) -> DaqConfig:
    return rig_config(detector_name)


@pytest.fixture
def rig(config: DaqConfig) -> Iterator[Rig]:
    with Rig(config) as rig:
        yield rig


@pytest.mark.parametrize("n_writers", [1, 3])
@pytest.mark.parametrize("bit_depth", [8, 16, 32])
def test_images_of_any_depth_are_in_the_order_of_ids_over_all_writers(
    detector_name: str, tmp_path: Path, n_writers: int, bit_depth: int
) -> None:
    config = rig_config(detector_name, number_of_writers=n_writers, bit_depth=bit_depth)
    with Rig(config) as rig:
        rig.begin(tmp_path, 50)
        rig.send(range(10, 60))
        rig.wait_end()
        assert (rig.driver.failed, rig.driver.ledger.complete) == (False, 50)
        assert rig.statuses[-2:] == [DriverStatus.FILE_SAVED, DriverStatus.IDLE]
        rig.expect(range(10, 60))
        with rig.master() as file:
            received = file["entry/instrument/detector/received_ns"][()]
            assert (np.diff(received.astype(np.int64)) >= 0).all()
            assert received[0] > 1e18


def test_unknown_count_with_gaps_ends_with_stop(rig: Rig, tmp_path: Path) -> None:
    ids = [*range(5, 20), *range(40, 47), 90]
    rig.begin(tmp_path)
    rig.send(ids)
    rig.wait_dispatched(len(ids))
    rig.driver.finish()
    rig.wait_end()
    assert not rig.driver.failed
    rig.expect(ids)


@pytest.mark.expects_errors
def test_every_reason_is_exact_when_a_run_has_them_all(detector_name: str, tmp_path: Path) -> None:
    """A gap, an image overwritten in the ring, one that does not fit, and an incomplete one."""
    eiger = {
        "detector_type": "eiger", "n_modules": 1, "module_positions": {"0": [0, 0, 513, 255]},
        "image_pixel_height": 256, "image_pixel_width": 514, "gpfs_block_size": 2**20,
        "number_of_writers": 1, "ring_slots": 16,
    }  # fmt: skip
    with Rig(rig_config(detector_name, **eiger)) as rig:
        rig.begin(tmp_path, 12)
        rig.writers[0]._tells_unasked = False  # else the driver may stop before the last ones come
        rig.send(range(1, 4))
        rig.announce(incomplete(rig.store(4)))
        old = rig.store(5)
        rig.store(5 + 16)
        rig.announce(old)  # its slot is another's by now
        rig.send([7])  # 6 never comes
        broken = rig.store(8)
        rig.announce(replace(broken, height=257))
        rig.send([9, 10, 11, 12], paced=False)
        rig.wait_end()
        assert rig.driver.failed
        assert "does not fit the dataset" in rig.driver.reason
        summary = rig.driver.ledger.summary()
        assert (summary["requested"], summary["expected"]) == (12, 12)
        assert (summary["complete"], summary["incomplete_ids"]) == (4, [[4, 4]])
        assert summary["lost_ids"] == {
            "not_received": [[6, 6]], "overwritten": [[5, 5]], "write_error": [[8, 12]],
        }  # fmt: skip
        rig.expect([1, 2, 3, 4, 7])
        with rig.master() as file:
            assert [tuple(row) for row in file["entry/ledger/lost_ranges"][()].tolist()] == [
                (5, 5, b"overwritten"), (6, 6, b"not_received"), (8, 12, b"write_error"),
            ]  # fmt: skip
        with h5py.File(rig.driver.last_files[0]) as file:
            assert file[f"{detector_name}/lost"][()].tolist() == [(5, 5, b"overwritten")]


def test_a_stop_ends_it_however_fast_images_come(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.begin(tmp_path)
    rig.send(range(4))
    rig.wait_dispatched(4)
    monkeypatch.setattr(rig.driver, "_take_waiting", lambda *_: 1024)  # there are always more
    rig.driver.finish()
    rig.wait_end()
    rig.expect(range(4))


def test_uneven_writers_still_give_one_order(rig: Rig, tmp_path: Path) -> None:
    """Only one of the two writers loses images: from then on the files are out of step."""
    rig.begin(tmp_path, 40)
    lost = [2, 3, 8, 20]
    for image_id in range(40):
        if image_id in lost:
            old = rig.store(image_id)
            rig.store(image_id + rig.config.sizes.n_slots)
            rig.announce(old)
        else:
            rig.send([image_id])
    rig.wait_end()
    assert [list(ids) for ids in rig.driver.ledger.lost_ids.values() if ids.count] == [lost]
    rig.expect([image_id for image_id in range(40) if image_id not in lost])


def test_acquisitions_follow_one_another_without_a_restart(rig: Rig, tmp_path: Path) -> None:
    for number in range(5):
        rig.begin(tmp_path, 20, prefix=f"run{number}_")
        rig.send(range(20))
        rig.wait_end()
        assert not rig.driver.failed, rig.driver.reason
        rig.expect(range(20))
    assert len(list(tmp_path.iterdir())) == 15
    assert rig.driver.counters["acquisitions"] == 5


def test_abort_removes_all_files_and_says_so(rig: Rig, tmp_path: Path) -> None:
    rig.begin(tmp_path)
    rig.send(range(20))
    rig.wait_dispatched(20)
    assert len(list(tmp_path.iterdir())) == 3
    rig.driver.abort()
    rig.wait_end()
    assert "the files were removed" in rig.driver.reason
    assert list(tmp_path.iterdir()) == []
    assert rig.driver.ledger.lost == 20


def test_existing_files_are_replaced_only_when_asked(rig: Rig, tmp_path: Path) -> None:
    for ids in (range(4), range(100, 108)):
        rig.begin(tmp_path, len(ids), overwrite=True)
        rig.send(ids)
        rig.wait_end()
        rig.expect(ids)
    with pytest.raises(AcquisitionError, match="exists already"):
        rig.begin(tmp_path, 4)
    rig.expect(range(100, 108), tmp_path / "run_master.h5")


READER = """
import sys, time, h5py
file = h5py.File(sys.argv[1], "r", swmr=True)
ids, data = file["entry/data/image_id"], file["entry/data/data"]
deadline = time.monotonic() + 60
while len(ids) < int(sys.argv[2]) and time.monotonic() < deadline:
    time.sleep(0.05)
    ids.refresh(); data.refresh()
n = min(len(ids), len(data))
want = list(range(n))
print(n, ids[:n].tolist() == want, [int(v) for v in data[:n, 0, 0]] == [7 * k for k in want])
"""


@pytest.mark.parametrize("opened", ["before", "during"])
def test_a_reader_follows_a_running_acquisition_through_the_master(
    rig: Rig, tmp_path: Path, opened: str
) -> None:
    rig.begin(tmp_path)
    reader = None
    command = [sys.executable, "-c", READER, str(tmp_path / "run_master.h5"), "60"]
    if opened == "before":
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    rig.send(range(60))
    if reader is None:
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found, _ = reader.communicate(timeout=90)
    assert found.split() == ["60", "True", "True"]
    assert rig.driver.busy
    rig.driver.finish()
    rig.wait_end()
    rig.expect(range(60))


def test_gigafrost_metadata_file_has_a_row_for_every_image(detector_name: str, tmp_path: Path) -> None:
    config = rig_config(
        detector_name, detector_type="gigafrost", n_modules=8,
        image_pixel_height=4, image_pixel_width=24, gpfs_block_size=2**20,
    )  # fmt: skip
    with Rig(config, others=[MetaWriter(config)], with_metadata_writer=True) as rig:
        rig.begin(tmp_path, 9)
        for k in range(9):
            gf = GigafrostMetadata(3, 10 + k, 20 + k, 30 + k, 40 + k, True)
            rig.announce(replace(rig.store(k), detector=gf))
        rig.wait_end()
        assert not rig.driver.failed, rig.driver.reason
        rig.expect(range(9))
        with h5py.File(tmp_path / "run_Meta.h5") as file:
            rows = file[f"{detector_name}/metadata"][()]
            assert rows.dtype.names == (
                "image_id", "scan_id", "scan_time", "sync_time", "frame_timestamp", "exposure_time",
            )  # fmt: skip
            assert rows.tolist() == [(k, 3, 10 + k, 20 + k, 30 + k, 40 + k) for k in range(9)]
        with rig.master() as file:
            detector = file["entry/instrument/detector"]
            assert detector["scan_time"][()].tolist() == list(range(10, 19))
            assert detector["store_image"][()].tolist() == [1] * 9
        checked = stddaq("file", "check", *tmp_path.glob("run_*.h5"))
        assert checked.returncode == 0, checked.stderr
        assert "run_Meta.h5: 9 rows of metadata, closed: yes" in checked.stdout
        rig.begin(tmp_path, prefix="aborted_")
        rig.driver.abort()
        rig.wait_end()
        assert not list(tmp_path.glob("aborted_*"))


def test_every_file_is_read_by_the_tools_of_the_trade(rig: Rig, tmp_path: Path) -> None:
    nexus = pytest.importorskip("nexusformat.nexus")
    h5grove = pytest.importorskip("h5grove")
    rig.begin(tmp_path, 10)
    rig.send(range(10))
    rig.wait_end()
    root = nexus.nxload(rig.driver.last_master)
    # nexusformat takes every virtual dataset for one image per file, whatever the file says: it finds
    # the signal, and shows a shape of its own. The writers' files it reads as they are.
    assert root[f"entry/{root['entry'].attrs['default']}"].nxsignal.dtype == np.uint16
    assert root["entry/instrument/detector/image_id"].nxdata.tolist() == list(range(10))
    own = nexus.nxload(rig.driver.last_files[1])[f"{rig.config.detector_name}/data"]
    np.testing.assert_array_equal(np.asarray(own[1]), pixels_of(rig.config, 3))
    with rig.master() as file:
        content = h5grove.create_content(file, "/entry/data/data")
        np.testing.assert_array_equal(content.data("7"), pixels_of(rig.config, 7))
        assert h5grove.create_content(file, "/").attributes()["default"] == "entry"
    for path in [*rig.driver.last_files, rig.driver.last_master]:
        dump = subprocess.run(["h5dump", path], capture_output=True, text=True, check=False)
        assert (dump.returncode, dump.stderr) == (0, ""), path


@pytest.mark.expects_errors
def test_a_writer_that_never_answers_is_an_error_and_leaves_no_file(
    config: DaqConfig, tmp_path: Path
) -> None:
    with Rig(config) as rig:
        rig.writers[1].stop()
        with pytest.raises(AcquisitionError, match="writer 1 does not answer"):
            rig.begin(tmp_path)
        wait_until(lambda: not rig.driver.busy, "the error is over")
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.parametrize("suffix", packed.METHODS)
def test_compressed_images_are_stored_as_they_are_and_those_that_do_not_compress_too(
    detector_name: str, place: Path, suffix: str
) -> None:
    compress, filter_id = packed.METHODS[suffix]
    config = rig_config(detector_name, image_pixel_height=64, image_pixel_width=64)
    numbers = itertools.count()

    def every_third_not(pixels: np.ndarray) -> tuple[bytes, Compression]:
        return compress(pixels) if next(numbers) % 3 else (pixels.tobytes(), Compression.NONE)

    with Rig(config, suffix, compress=every_third_not) as rig:
        rig.begin(place, 20)
        rig.send(range(20))
        rig.wait_end()
        assert not rig.driver.failed, rig.driver.reason
        rig.expect(range(20))
        with h5py.File(rig.driver.last_files[0]) as file:
            data = file[f"{detector_name}/data"]
            assert list(data._filters) == [str(filter_id)]
            assert data.chunks == (1, 64, 64)
            for at in range(10):  # every second image
                mask, chunk = data.id.read_direct_chunk((at, 0, 0))
                pixels = pixels_of(config, 2 * at)
                packed_bytes = compress(pixels)[0]
                whole = 2 * at % 3 == 0
                assert mask == int(whole)
                assert (pixels.tobytes() if whole else packed_bytes) in chunk
                assert len(chunk) == pixels.nbytes if whole else len(chunk) < pixels.nbytes
        # Nobody knows how much room they will need: so many whole images have none.
        rig.begin(place, 10**10, prefix="many_")
        rig.driver.finish()
        rig.wait_end()


def test_missing_packets_are_named_bit_by_bit_in_the_order_of_ids(
    detector_name: str, tmp_path: Path
) -> None:
    config = rig_config(
        detector_name, detector_type="eiger", n_modules=1, module_positions={"0": [0, 0, 513, 255]},
        image_pixel_height=256, image_pixel_width=514, gpfs_block_size=2**20, ring_slots=32,
    )  # fmt: skip
    with Rig(config, mask_words=1) as rig:
        rig.begin(tmp_path, 12)
        for image_id in range(12):
            image = rig.store(image_id)
            if image_id % 3 == 0:
                rig.owner.note_missing(image_id, 0, np.array([1 << image_id | 1 << 63], np.uint64))
                image = incomplete(image)
            rig.announce(image)
        rig.wait_end()
        assert not rig.driver.failed, rig.driver.reason
        assert rig.driver.ledger.incomplete == 4
        with rig.master() as file:
            rows = file["entry/instrument/detector/missing_packets"][()]
            assert rows["image_id"].tolist() == [0, 3, 6, 9]
            assert rows["mask"].tolist() == [[1 << k | 1 << 63] for k in (0, 3, 6, 9)]


def test_files_are_checked_shown_and_joined_by_hand(rig: Rig, tmp_path: Path) -> None:
    rig.begin(tmp_path, 10)
    rig.send([*range(5), *range(7, 12)], paced=False)
    rig.wait_end()
    parts = rig.driver.last_files
    found = stddaq("file", "check", *parts)
    assert found.returncode == 0, found.stderr
    assert "missing ids: 5-6" in found.stdout
    assert "0 ids twice" in found.stdout
    whole = stddaq("file", "check", rig.driver.last_master)
    assert whole.returncode == 0, whole.stderr
    assert "run_0.h5" in whole.stdout
    assert "run_master.h5: shows 10 of 10 images" in whole.stdout
    joined = tmp_path / "joined.h5"
    assert stddaq("file", "join", *parts, "-o", joined).returncode == 0
    rig.expect([*range(5), *range(7, 12)], joined)
    refused("file", "join", *parts, "-o", joined, words=("exists already",))
    shown = stddaq("file", "show", rig.driver.last_master, "-i", 7)
    assert "image 7 of 10" in shown.stdout
    assert "▀" in shown.stdout
    picture = tmp_path / "picture.png"
    assert stddaq("file", "show", parts[0], "--png", picture).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused("file", "show", parts[0], "-i", 99, words=("there is no number 99",))
    refused("file", "check", tmp_path / "none.h5", words=("none.h5", "No such file"))
    alone = tmp_path / "elsewhere" / "run_master.h5"
    alone.parent.mkdir()
    Path(rig.driver.last_master).rename(alone)
    refused("file", "check", alone, words=("run_0.h5", "is not there", "keep the files"))
