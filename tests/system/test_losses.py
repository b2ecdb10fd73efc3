"""Whatever happens to writers, driver and disk: the files open, and what they lack is said."""

import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import AcquisitionError
from tango_stddaq.io.stored_images import StoredFile
from tango_stddaq.stages.file_writer import FileWriter

from .programs import Program, running, save, stddaq, wait_until
from .rig import Rig, pixels_of, rig_config

pytestmark = [pytest.mark.system, pytest.mark.expects_errors]

N_KILLS = 300


@pytest.fixture
def config(detector_name: str) -> DaqConfig:
    return rig_config(detector_name)


def test_a_killed_writer_leaves_a_good_file_at_any_of_hundreds_of_moments(tmp_path: Path) -> None:
    """Lost are at most the images since the last flush; nothing of what was flushed, and no file."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as in_memory:
        found = subprocess.run(
            [sys.executable, "-m", "tests.system.kill_writer", str(N_KILLS), str(tmp_path), in_memory],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["kills"] == N_KILLS
    assert report["unreadable"] == []
    assert report["flushed_but_lost"] == 0
    assert report["more_lost_than_unflushed"] == 0
    dead = [
        path for path in Path("/dev/shm").glob("hdf5-*")
        if not Path(f"/proc/{path.name.split('-')[1]}").exists()
    ]  # fmt: skip
    assert len(dead) <= 2, dead  # the next writer removes what a killed one has left there
    # The kills hit all phases: before the file, while it grows, after it was closed.
    assert report["while_writing"] > N_KILLS / 3
    # And files of all kinds: whole images and both compressions, on a disk and in memory.
    assert len(report["of_kind"]) == 6
    assert min(report["of_kind"].values()) > N_KILLS / 60


@pytest.fixture
def writer_program(config: DaqConfig, tmp_path: Path) -> Iterator[Program]:
    """Writer 1 as a process of its own."""
    path = save(config, tmp_path / "config.json")
    with running(tmp_path / "writer1.log", "stage", "file-writer", path, 1) as program:
        program.wait_for("started")
        yield program
        if program.process.poll() is not None:  # killed: nobody has removed its socket
            Path(f"/tmp/{config.detector_name}-writer-1").unlink(missing_ok=True)


@pytest.fixture
def rig(config: DaqConfig, writer_program: Program) -> Iterator[Rig]:
    """Driver and writer 0 here, writer 1 outside."""
    with Rig(config, writers=False, others=[FileWriter(config, 0)]) as rig:
        yield rig


def output(tmp_path: Path) -> Path:
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


def flushed(rig: Rig, writer: int, n_images: int) -> None:
    """Wait until a file has so many images, as a plain reader finds it."""

    def there() -> bool:
        with h5py.File(rig.driver.last_files[writer], "r", locking=False) as file:
            return len(file[f"{rig.config.detector_name}/metadata"]) >= n_images

    wait_until(there, f"{n_images} images of writer {writer} are in the file")


def test_a_writer_killed_in_the_middle_ends_the_acquisition_and_its_images_are_kept(
    rig: Rig, writer_program: Program, tmp_path: Path
) -> None:
    directory = output(tmp_path)
    rig.begin(directory)
    rig.send(range(40))
    flushed(rig, 0, 20)
    flushed(rig, 1, 20)
    writer_program.process.kill()
    rig.wait_end()
    assert rig.driver.failed
    assert "writer 1 ended during the acquisition" in rig.driver.reason
    assert "run_1.h5: was not closed by its writer; it holds 20 images" in rig.driver.reason
    rig.expect(range(40))
    assert rig.driver.ledger.complete == 40


def test_a_writer_that_is_restarted_says_so_and_overwrites_nothing(
    rig: Rig, writer_program: Program, config: DaqConfig, tmp_path: Path
) -> None:
    directory = output(tmp_path)
    rig.begin(directory, prefix="a_")
    rig.send(range(8))
    flushed(rig, 1, 4)
    writer_program.process.kill()
    with running(tmp_path / "again.log", "stage", "file-writer", tmp_path / "config.json", 1) as again:
        again.wait_for("started")
        rig.wait_end()
        before = (directory / "a_1.h5").read_bytes()
        rig.begin(directory, 6, prefix="b_")
        rig.send(range(6))
        rig.wait_end()
        assert not rig.driver.failed, rig.driver.reason
        rig.expect(range(6))
        assert (directory / "a_1.h5").read_bytes() == before
    rig.expect(range(8), directory / "a_master.h5")


def test_the_whole_chain_killed_leaves_files_that_plain_h5py_opens(
    config: DaqConfig, tmp_path: Path
) -> None:
    """Everything runs in one process, which is killed: no one is left to mend anything."""
    directory = output(tmp_path)
    script = (
        "import sys, signal; from pathlib import Path\n"
        "from tests.system.rig import Rig, rig_config\n"
        "rig = Rig(rig_config(sys.argv[1]))\n"
        "rig.begin(Path(sys.argv[2]))\n"
        "rig.send(range(30))\n"
        "print('sent', flush=True)\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, config.detector_name, str(directory)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()

    def all_there() -> bool:
        with h5py.File(directory / "run_master.h5", "r") as file:
            return file["entry/data/image_id"][()].tolist() == list(range(30))

    wait_until(all_there, "30 images are seen through the master")
    process.kill()
    process.wait()
    process.stdout.close()
    with h5py.File(directory / "run_master.h5", "r") as file:
        assert file["entry"].attrs["state"] == "acquiring"
        assert file["entry/data/image_id"][()].tolist() == list(range(30))
        for k in range(30):
            np.testing.assert_array_equal(file["entry/data/data"][k], pixels_of(config, k))
    found = stddaq("file", "check", *directory.glob("*.h5"))
    assert found.returncode == 1
    assert found.stdout.count("NO: its writer was") == 2
    assert "the acquisition is under way, or was killed" in found.stdout
    joined = tmp_path / "joined.h5"
    assert stddaq("file", "join", *sorted(directory.glob("run_?.h5")), "-o", joined).returncode == 0
    with h5py.File(joined) as file:
        assert file["entry/data/image_id"][()].tolist() == list(range(30))
        np.testing.assert_array_equal(file["entry/data/data"][29], pixels_of(config, 29))
    for path in directory.glob("*.h5"):
        dump = subprocess.run(["h5dump", "-H", path], capture_output=True, text=True, check=False)
        assert (dump.returncode, dump.stderr) == (0, "")
    from tango_stddaq.io import ring_segments

    ring_segments.remove_abandoned(config.detector_name)
    for path in Path("/tmp").glob(f"{config.detector_name}*"):
        path.unlink()


def test_a_writer_that_hangs_as_on_a_dead_file_server_is_an_error(
    rig: Rig, writer_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tango_stddaq.stages.writer_driver.SAVE_TIMEOUT_S", 1.0)
    directory = output(tmp_path)
    rig.begin(directory, 20)
    rig.send(range(10))
    flushed(rig, 1, 5)
    writer_program.process.send_signal(signal.SIGSTOP)
    try:
        rig.send(range(10, 20))
        rig.wait_end()
    finally:
        writer_program.process.send_signal(signal.SIGCONT)
    assert "writer 1 does not answer" in rig.driver.reason
    ledger = rig.driver.ledger
    assert (ledger.expected, ledger.stored + ledger.lost) == (20, 20)
    rig.expect([k for k in range(20) if k % 2 == 0 or k < 10])
    wait_until(lambda: StoredFile(directory / "run_1.h5").closed, "the writer has closed its file, late")
    rig.begin(directory, 6, prefix="next_")
    rig.send(range(6))
    rig.wait_end()
    assert not rig.driver.failed, rig.driver.reason


def test_a_writer_that_hangs_after_the_last_image_is_given_up_when_it_is_silent(
    rig: Rig, writer_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken every image; nothing is left but its word that they are in the file."""
    for module in ("writer_links", "writer_driver"):
        monkeypatch.setattr(f"tango_stddaq.stages.{module}.STUCK_S", 2.0)
    # Nothing but the silence can end it.
    monkeypatch.setattr("tango_stddaq.stages.writer_driver.SAVE_TIMEOUT_S", 1e9)
    directory = output(tmp_path)
    rig.begin(directory)
    rig.send(range(20))
    flushed(rig, 1, 10)
    wait_until(lambda: rig.driver.links.writers[1].silent_s() is not None, "the writer tells")
    writer_program.process.send_signal(signal.SIGSTOP)
    try:
        rig.driver.finish()
        rig.wait_end()
    finally:
        writer_program.process.send_signal(signal.SIGCONT)
    assert rig.driver.failed
    assert "writer 1 does not answer" in rig.driver.reason
    assert rig.driver.ledger.complete == 20
    rig.expect(range(20))
    wait_until(lambda: StoredFile(directory / "run_1.h5").closed, "the writer has closed its file, late")
    rig.begin(directory, 6, prefix="next_")
    rig.send(range(6))
    rig.wait_end()
    assert not rig.driver.failed, rig.driver.reason


def test_a_slow_writer_has_all_the_time_it_needs_while_it_makes_progress(
    config: DaqConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits takes longer than a writer may be silent, and than it may have to confirm."""
    for module in ("writer_links", "writer_driver"):
        monkeypatch.setattr(f"tango_stddaq.stages.{module}.STUCK_S", 1.0)
    monkeypatch.setattr("tango_stddaq.stages.writer_driver.SAVE_TIMEOUT_S", 1.0)
    monkeypatch.setattr("tango_stddaq.stages.writer_base.PROGRESS_PERIOD_S", 0.05)
    monkeypatch.setattr("tango_stddaq.stages.writer_base.PIECE_BYTES", 1)
    with Rig(config) as rig:
        rig.begin(tmp_path, 30)
        slow = rig.writers[1]
        store = slow._store

        def store_slowly(images: Any) -> None:
            time.sleep(0.25)
            store(images)

        monkeypatch.setattr(slow, "_store", store_slowly)
        rig.send(range(30), paced=False)
        rig.wait_end()
        assert not rig.driver.failed, rig.driver.reason
        rig.expect(range(30))


def test_a_directory_that_is_removed_meanwhile_is_an_error(rig: Rig, tmp_path: Path) -> None:
    directory = output(tmp_path)
    rig.begin(directory, 10)
    rig.send(range(5))
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    rig.send(range(5, 10))
    rig.wait_end()
    assert "run_0.h5: cannot be read back: No such file or directory" in rig.driver.reason
    assert rig.driver.ledger.lost == 10


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may pass through."""
    if os.geteuid() != 0:
        pytest.skip("taking another user's identity needs root")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


NOBODY = pwd.getpwnam("nobody").pw_uid


def test_without_permission_nothing_starts(config: DaqConfig, open_directory: Path) -> None:
    switching = config.model_copy(update={"switch_user_active": True})
    with Rig(switching) as rig, pytest.raises(AcquisitionError, match="may not write there"):
        rig.begin(open_directory, writer_user_id=NOBODY)


def test_files_belong_to_the_experiment_and_its_group(config: DaqConfig, open_directory: Path) -> None:
    group = pwd.getpwnam("nobody").pw_gid
    directory = open_directory / "own"
    directory.mkdir(mode=0o700)
    os.chown(directory, NOBODY, group)
    changes = {"switch_user_active": True, "file_mode": "0640", "file_group": str(group)}
    with Rig(config.model_copy(update=changes)) as rig:
        rig.begin(directory, 10, writer_user_id=NOBODY)
        rig.send(range(10))
        rig.wait_end()
        assert not rig.driver.failed, rig.driver.reason
        rig.expect(range(10))
        found = {path.name: path.stat() for path in directory.iterdir()}
        assert sorted(found) == ["run_0.h5", "run_1.h5", "run_master.h5"]
        for stat in found.values():
            assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (NOBODY, group, 0o640)
        rig.begin(directory, prefix="aborted_", writer_user_id=NOBODY)
        rig.driver.abort()
        rig.wait_end()
        assert not list(directory.glob("aborted_*"))
        for user, words in ((0, "no writer_user_id"), (2**31 - 1, "no such user")):
            with pytest.raises(AcquisitionError, match=words):
                rig.begin(directory, prefix="refused_", writer_user_id=user)
    # The identity was taken for files only, and given back.
    (open_directory / "after").touch()
    assert (open_directory / "after").stat().st_uid == 0
