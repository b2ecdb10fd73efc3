"""Servers die in the middle of the work: the facade says so, nothing hangs, nothing is left."""

import signal
from pathlib import Path

import h5py
import pytest
import tango
from tango import DevState

from .conftest import Daq, refused, wait_until

pytestmark = pytest.mark.tango


def test_a_stage_that_is_down_is_named_by_the_facade(daq: Daq) -> None:
    daq.kill("StdDaqLiveStream")
    device = daq.server("StdDaqLiveStream").device
    wait_until(lambda: daq.facade.state() == DevState.FAULT, 10)
    assert device in daq.facade.status()
    assert f"{device}: not running" in list(daq.facade.stageStates)
    with refused(device):
        daq.start(5)
    daq.restart("StdDaqLiveStream")
    daq.check_good()


def test_a_killed_file_writer_ends_the_acquisition_with_the_reason(daq: Daq) -> None:
    facade = daq.facade
    prefix = daq.start(1000)
    daq.detector.run(40, 100)
    wait_until(lambda: facade.imagesExpected == 40, 10)
    daq.kill("StdDaqFileWriter")
    device = daq.server("StdDaqFileWriter").device
    wait_until(lambda: facade.state() == DevState.FAULT, 10)
    assert device in facade.status()
    daq.detector.run(5, 100, first_id=41)
    daq.wait_end(40)
    assert "writer 0 ended during the acquisition" in facade.endReason
    ledger = daq.ledger()
    assert ledger["expected"] == ledger["complete"] + ledger["incomplete"] + ledger["lost"]
    n_images = 0
    for writer in (0, 1):  # what the killed one had written is there as well
        with h5py.File(daq.output / f"{prefix}{writer}.h5") as file:
            n_images += len(file[f"{daq.config.detector_name}/metadata"])
    assert n_images == ledger["complete"] > 20
    with h5py.File(facade.lastFile) as file:
        assert len(file["entry/data/data"]) == n_images
    daq.restart("StdDaqFileWriter")
    daq.check_good()


def test_abort_ends_an_acquisition_whose_writer_hangs(daq: Daq) -> None:
    facade = daq.facade
    prefix = daq.start(1000)
    daq.detector.run(5, 100)
    wait_until(lambda: facade.imagesExpected == 5, 10)
    process = daq.process("StdDaqFileWriter")
    process.send_signal(signal.SIGSTOP)
    try:
        facade.Abort()
        daq.wait_end(40)
        assert "aborted by the user" in facade.endReason
        assert not list(daq.output.glob(f"{prefix}*"))
    finally:
        process.send_signal(signal.SIGCONT)
    daq.check_good()


def test_start_without_a_living_writer_is_refused_and_leaves_no_file(daq: Daq) -> None:
    daq.kill("StdDaqFileWriter")
    driver = daq.stage("StdDaqWriterDriver")
    driver.outputPath, driver.filePrefix, driver.imageCount = str(daq.output), "dead_", 5
    driver.StartWriting()  # returns before it is known
    wait_until(lambda: not driver.acquiring, 30)
    assert "writer 0 does not answer" in driver.endReason
    assert not list(daq.output.glob("dead_*"))
    daq.restart("StdDaqFileWriter")
    daq.check_good()


def test_a_killed_synchronizer_is_named_and_its_ring_taken_over(daq: Daq) -> None:
    facade = daq.facade
    daq.start(100)
    daq.detector.run(5, 100)
    wait_until(lambda: facade.imagesExpected == 5, 10)
    daq.kill("StdDaqModuleSync")
    wait_until(lambda: facade.state() == DevState.FAULT, 10)
    assert "module-sync-0" in facade.status()
    facade.Stop()
    daq.wait_end()
    assert daq.ledger() == {"expected": 5, "complete": 5, "incomplete": 0, "lost": 0}
    daq.check_pixels(range(1, 6))
    daq.restart("StdDaqModuleSync")
    daq.check_good()


def test_a_killed_driver_is_named_and_the_next_acquisition_is_good(daq: Daq) -> None:
    facade = daq.facade
    daq.start(100)
    daq.detector.run(5, 100)
    daq.kill("StdDaqWriterDriver")
    wait_until(lambda: facade.state() == DevState.FAULT, 10)
    assert "writer-driver-0" in facade.status()
    assert not facade.acquiring
    for command in ("Start", "Stop", "Abort"):
        with refused("writer-driver-0"):
            facade.command_inout(command)
    daq.restart("StdDaqWriterDriver")
    daq.check_good()


def test_a_killed_receiver_is_named_and_works_when_restarted(daq: Daq) -> None:
    daq.kill("StdDaqUdpReceiver")
    wait_until(lambda: "udp-receiver-0" in daq.facade.status(), 10)
    daq.restart("StdDaqUdpReceiver")
    daq.check_good()


def test_a_facade_that_is_restarted_finds_the_acquisition_again(daq: Daq) -> None:
    daq.start(10)
    daq.detector.run(5, 100)
    daq.kill("StdDaq")
    daq.system._start_server(daq.system.plan.facade)
    daq.system._await(daq.system.plan.facade)
    wait_until(lambda: daq.facade.imagesExpected == 5 and daq.facade.acquiring, 10)
    daq.detector.run(5, 100, first_id=6)
    daq.wait_end()
    assert daq.ledger()["complete"] == 10


def test_a_stage_that_hangs_is_named_and_the_facade_still_answers(daq: Daq) -> None:
    process = daq.process("StdDaqFileWriter")
    process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: daq.facade.state() == DevState.FAULT, 10)
        with refused("file-writer-0"):
            daq.facade.Start()
    finally:
        process.send_signal(signal.SIGCONT)
    daq.check_good()


def test_stopping_the_driver_during_an_acquisition_closes_the_files(daq: Daq) -> None:
    driver = daq.stage("StdDaqWriterDriver")
    daq.start(100)
    daq.detector.run(5, 100)
    wait_until(lambda: daq.facade.imagesExpected == 5, 10)
    driver.Stop()
    assert "stopped during the acquisition" in driver.endReason
    for path in driver.writerFiles:
        with h5py.File(path) as file:
            assert len(file[f"{daq.config.detector_name}/data"]) > 0
    driver.Start()
    daq.check_good()


def test_nothing_in_memory_is_left_of_a_killed_synchronizer(daq: Daq) -> None:
    """The last test of the file: the system's end cleans up, as the fixture checks."""
    daq.kill("StdDaqModuleSync")
    assert list(Path("/dev/shm").glob(f"{daq.config.detector_name}-image*"))
    with pytest.raises(tango.DevFailed):
        daq.stage("StdDaqModuleSync").ping()
