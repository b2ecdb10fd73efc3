"""Whole acquisitions through the facade alone."""

import json
import threading
from pathlib import Path

import h5py
import pytest
from tango import AttrQuality, DevState

from tango_stddaq.sim.faults import Faults

from .conftest import Daq, refused, running_system, wait_until

pytestmark = pytest.mark.tango


def test_an_acquisition_ends_in_a_master_file_with_exactly_the_images_sent(daq: Daq) -> None:
    facade = daq.facade
    prefix = daq.start(30)
    assert facade.acquiring
    assert facade.state() == DevState.RUNNING
    assert facade.acquisitionStatus == "waiting_for_first_image"
    daq.detector.run(30, 100)
    daq.wait_end()

    assert facade.lastFile == str(daq.output / f"{prefix}master.h5")
    assert list(facade.writerFiles) == [str(daq.output / f"{prefix}{i}.h5") for i in range(2)]
    assert daq.ledger() == {"expected": 30, "complete": 30, "incomplete": 0, "lost": 0}
    assert (facade.imagesExpected, facade.imagesComplete, facade.imagesLost) == (30, 30, 0)
    assert facade.progress == 100
    assert facade.meanImageRate > 0
    assert "30 images" in facade.endReason
    assert facade.acquisitionStatus == "idle"
    assert facade.state() == DevState.STANDBY
    daq.check_pixels(range(1, 31))
    with h5py.File(facade.lastFile) as file:
        assert file["entry/ledger/complete"][()] == 30
        assert json.loads(file["entry/instrument/detector/configuration"][()]) == json.loads(
            daq.config.model_dump_json()
        )


def test_acquisitions_follow_one_another_with_ids_that_start_again_at_1(daq: Daq) -> None:
    for n_images in (7, 3, 11):
        daq.check_good(n_images)


def test_an_image_that_lost_packets_is_named_even_if_it_is_the_last_one(daq: Daq) -> None:
    facade = daq.facade
    daq.start(5)
    daq.detector.run(4, 100)
    daq.detector.run(1, 100, first_id=5, faults=Faults(drop_every=100))
    daq.wait_end()
    assert daq.ledger() == {"expected": 5, "complete": 4, "incomplete": 1, "lost": 0}
    assert list(facade.incompleteImageIds) == [5]


def test_lost_packets_raise_an_alarm_and_are_named_by_image_in_ledger_and_file(daq: Daq) -> None:
    facade = daq.facade
    daq.start(41)
    faults = daq.detector.run(40, 100, faults=Faults(drop_every=1000))
    dropped = sorted({image_id for image_id, _, _ in faults.dropped})
    assert 1 < len(dropped) < 40
    wait_until(lambda: facade.imagesExpected >= dropped[-1], 10)
    wait_until(lambda: facade.state() == DevState.ALARM, 10)
    assert facade.read_attribute("imagesIncomplete").quality == AttrQuality.ATTR_ALARM
    daq.detector.run(1, 100, first_id=41)
    daq.wait_end()
    assert facade.state() == DevState.STANDBY
    assert list(facade.incompleteImageIds) == dropped
    n_bad = len(dropped)
    assert daq.ledger() == {"expected": 41, "complete": 41 - n_bad, "incomplete": n_bad, "lost": 0}
    with h5py.File(facade.lastFile) as file:
        assert file["entry/ledger/incomplete_ids"][()].tolist() == dropped
        status = file["entry/instrument/detector/status"][()]
        ids = file["entry/data/image_id"][()]
        assert ids[status != 1].tolist() == dropped


def test_images_that_never_came_are_lost_by_id(daq: Daq) -> None:
    facade = daq.facade
    daq.start(10)
    daq.detector.run(4, 100)
    daq.detector.run(4, 100, first_id=7)
    wait_until(lambda: facade.imagesExpected == 10, 10)
    daq.wait_end()
    assert daq.ledger() == {"expected": 10, "complete": 8, "incomplete": 0, "lost": 2}
    assert list(facade.lostImageIds) == [5, 6]
    daq.check_pixels([1, 2, 3, 4, 7, 8, 9, 10])


def test_stop_keeps_what_was_taken(daq: Daq) -> None:
    facade = daq.facade
    daq.start(1000)
    daq.detector.run(12, 100)
    wait_until(lambda: facade.imagesComplete == 12, 10)
    assert facade.acquiring
    assert facade.progress == pytest.approx(1.2)
    facade.Stop()
    daq.wait_end()
    assert "stopped by the user after 12 of 1000" in facade.endReason
    assert daq.ledger() == {"expected": 12, "complete": 12, "incomplete": 0, "lost": 0}
    daq.check_pixels(range(1, 13))
    with h5py.File(facade.lastFile) as file:
        assert b"stopped by the user" in file["entry/ledger/end_reason"][()]
    daq.check_good()


def test_stop_before_the_first_image_leaves_an_empty_readable_file(daq: Daq) -> None:
    daq.start(5)
    daq.facade.Stop()
    daq.wait_end()
    assert "0 of 5" in daq.facade.endReason
    daq.check_pixels([])
    daq.check_good()


def test_abort_removes_the_files_and_says_so(daq: Daq) -> None:
    facade = daq.facade
    prefix = daq.start(1000)
    daq.detector.run(12, 100)
    wait_until(lambda: facade.imagesComplete == 12, 10)
    facade.Abort()
    daq.wait_end()
    wait_until(lambda: "aborted by the user after 12 images" in facade.endReason, 5)
    assert not list(daq.output.glob(f"{prefix}*"))
    assert facade.lastFile == ""
    assert daq.ledger() == {"expected": 12, "complete": 0, "incomplete": 0, "lost": 12}
    daq.check_good()


def test_a_start_right_after_an_abort_in_full_flow_gives_good_files(daq: Daq) -> None:
    facade = daq.facade
    for _ in range(2):
        daq.start(1000)
        sender = threading.Thread(target=daq.detector.run, args=(100, 50))
        sender.start()
        wait_until(lambda: facade.imagesExpected > 10, 10)
        facade.Abort()
        daq.wait_end()
        facade.Start()
        wait_until(lambda: facade.imagesExpected > 0, 10)
        sender.join(20)
        facade.Stop()
        daq.wait_end()
        assert "stopped by the user" in facade.endReason
        ledger = daq.ledger()
        assert ledger["complete"] == ledger["expected"] > 0
    daq.check_good()


def test_stop_and_abort_without_an_acquisition_do_nothing(daq: Daq) -> None:
    facade = daq.facade
    reason = facade.endReason
    facade.Stop()
    facade.Abort()
    assert facade.endReason == reason
    daq.check_good()


def test_images_below_the_start_id_are_left_out(daq: Daq) -> None:
    facade = daq.facade
    facade.startId = 4
    try:
        daq.start(3)
        daq.detector.run(6, 100)
        daq.wait_end()
    finally:
        facade.startId = 0
    daq.check_pixels([4, 5, 6])


def test_the_second_start_is_refused_and_the_first_goes_on(daq: Daq) -> None:
    daq.start(5)
    with refused("an acquisition is under way", "Stop or Abort"):
        daq.facade.Start()
    daq.detector.run(5, 100)
    daq.wait_end()
    assert daq.ledger()["complete"] == 5
    daq.check_pixels(range(1, 6))


def test_32_bit_images_are_pixel_exact(tmp_path: Path) -> None:
    with running_system(tmp_path, bit_depth=32) as daq:
        daq.check_good(12)
