"""What a controls engineer sees of the devices: descriptions, versions, events, log, preview."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tango
from tango import AttrQuality, AttrWriteType, CmdArgType, DevState, EventType

from tango_stddaq import __version__
from tango_stddaq.processing.preview import decimate

from .conftest import Daq, wait_until

pytestmark = pytest.mark.tango

_CLASSES = (
    "StdDaq",
    "StdDaqUdpReceiver",
    "StdDaqModuleSync",
    "StdDaqLiveStream",
    "StdDaqWriterDriver",
    "StdDaqFileWriter",
)
_UNSIGNED = (CmdArgType.DevULong, CmdArgType.DevULong64)
_COUNTERS = {
    "StdDaq": ("imagesExpected", "imagesComplete", "imagesIncomplete", "imagesLost"),
    "StdDaqUdpReceiver": ("packets", "frames", "missingPackets", "kernelDrops", "badSize", "badHeader"),
    "StdDaqModuleSync": ("images", "complete", "incomplete", "frames"),
    "StdDaqLiveStream": ("images", "bytes", "overwritten"),
    "StdDaqWriterDriver": ("seen", "dispatched", "lost", "imagesComplete"),
    "StdDaqFileWriter": ("images", "bytes", "files", "writeErrors"),
}


@contextmanager
def events(device: tango.DeviceProxy, *attributes: str) -> Iterator[dict[str, list[object]]]:
    """Collect the values of change events; nothing is polled."""
    values: dict[str, list[object]] = {name: [] for name in attributes}

    def keep(name: str, event: tango.EventData) -> None:
        if not event.err:
            values[name].append(event.attr_value.value)

    ids = [
        device.subscribe_event(name, EventType.CHANGE_EVENT, lambda event, name=name: keep(name, event))
        for name in attributes
    ]
    try:
        yield values
    finally:
        for event_id in ids:
            device.unsubscribe_event(event_id)


@pytest.mark.parametrize("tango_class", _CLASSES)
def test_every_attribute_is_described(daq: Daq, tango_class: str) -> None:
    infos = daq.stage(tango_class).attribute_list_query_ex()
    own = [info for info in infos if info.name not in ("State", "Status")]
    assert own
    undescribed = [info.name for info in own if info.description in ("", "No description")]
    unlabelled = [info.name for info in own if not info.label or info.label != info.label.strip()]
    assert not undescribed
    assert not unlabelled


@pytest.mark.parametrize("tango_class", _CLASSES)
def test_every_command_is_described_and_none_is_missing(daq: Daq, tango_class: str) -> None:
    commands = {info.cmd_name: info for info in daq.stage(tango_class).command_list_query()}
    assert {"Init", "Start", "Stop", "Reset"} <= commands.keys()
    own = commands.keys() - {"Init", "State", "Status"}
    assert not [name for name in own if commands[name].in_type_desc in ("", "Uninitialised")]


@pytest.mark.parametrize(("tango_class", "names"), _COUNTERS.items())
def test_counters_are_unsigned_with_units(daq: Daq, tango_class: str, names: tuple[str, ...]) -> None:
    device = daq.stage(tango_class)
    for name in names:
        info = device.get_attribute_config(name)
        assert info.data_type in _UNSIGNED, name
        assert info.unit, name
        assert info.writable == AttrWriteType.READ


def test_losses_have_an_alarm_limit(daq: Daq) -> None:
    facade = daq.facade
    for name in ("imagesLost", "imagesIncomplete"):
        assert facade.get_attribute_config(name).alarms.max_alarm == "1"
    daq.check_good()
    assert facade.read_attribute("imagesLost").quality == AttrQuality.ATTR_VALID


@pytest.mark.parametrize("tango_class", _CLASSES)
def test_every_device_tells_its_version(daq: Daq, tango_class: str) -> None:
    device = daq.stage(tango_class)
    assert device.version == __version__
    assert device.info().version_info["tango_stddaq"] == __version__


@pytest.mark.parametrize("tango_class", _CLASSES)
def test_all_attributes_can_be_read(daq: Daq, tango_class: str) -> None:
    device = daq.stage(tango_class)
    replies = device.read_attributes(list(device.get_attribute_list()))
    assert not [reply.name for reply in replies if reply.has_failed]


def test_the_facade_pushes_an_acquisition_as_events(daq: Daq) -> None:
    daq.wait_ready()
    watched = ("State", "acquiring", "progress", "imagesComplete", "acquisitionStatus", "lastFile")
    with events(daq.facade, *watched, "previewId", "preview") as seen:
        daq.acquire(40, 40)
        wait_until(lambda: seen["State"][-1] == DevState.STANDBY and not seen["acquiring"][-1], 5)
        wait_until(lambda: seen["lastFile"][-1] == daq.facade.lastFile, 5)
        assert DevState.RUNNING in seen["State"]
        assert True in seen["acquiring"]
        for name, last in (("progress", 100.0), ("imagesComplete", 40)):
            assert seen[name][-1] == last
            assert any(0 < value < last for value in seen[name])  # type: ignore[operator]
        assert "recording" in seen["acquisitionStatus"]
        assert len(seen["preview"]) > 1
        assert seen["previewId"][-1] == daq.facade.previewId


@pytest.mark.parametrize(
    ("tango_class", "counter"),
    [
        ("StdDaqUdpReceiver", "frames"),
        ("StdDaqModuleSync", "images"),
        ("StdDaqLiveStream", "images"),
        ("StdDaqWriterDriver", "dispatched"),
        ("StdDaqFileWriter", "images"),
    ],
)
def test_stages_push_their_counters(daq: Daq, tango_class: str, counter: str) -> None:
    device = daq.stage(tango_class)
    with events(device, counter, "rate", "State") as seen:
        daq.check_good(10)
        wait_until(lambda: seen[counter][-1] == device.read_attribute(counter).value, 5)
        assert len(seen[counter]) > 1
        assert seen["State"][-1] == device.state()


def test_a_stage_pushes_its_state_when_it_is_stopped_and_started(daq: Daq) -> None:
    device = daq.stage("StdDaqLiveStream")
    with events(device, "State") as seen:
        device.Stop()
        wait_until(lambda: seen["State"][-1] == DevState.STANDBY, 5)
        device.Start()
        wait_until(lambda: seen["State"][-1] == DevState.RUNNING, 5)


def test_many_clients_read_while_images_are_taken(daq: Daq) -> None:
    """Reads and events use the same attribute: neither may disturb the other."""
    facade, driver = daq.facade, daq.stage("StdDaqWriterDriver")
    names = ["acquiring", "progress", "imagesComplete", "writerFiles", "ledger", "acquisitionStatus"]
    daq.start(100)
    with events(facade, *names[:3]), events(driver, *names[:3]):
        for part in range(10):
            daq.detector.run(10, 200, first_id=1 + 10 * part)
            for _ in range(20):
                for device in (facade, driver):
                    assert not [r.name for r in device.read_attributes(names) if r.has_failed]
    daq.wait_end()
    assert daq.ledger()["complete"] == 100


def test_the_preview_shows_the_picture(daq: Daq) -> None:
    daq.acquire(1)
    facade = daq.facade
    wait_until(lambda: facade.previewId == 1, 5)
    assert facade.get_attribute_config("preview").data_format == tango.AttrDataFormat.IMAGE
    np.testing.assert_array_equal(facade.preview, decimate(daq.detector.truth(1)))


def test_commands_return_within_3_s(daq: Daq) -> None:
    for tango_class in _CLASSES[1:]:
        device = daq.stage(tango_class)
        for command in ("Stop", "Start", "Reset", "ReloadConfig", "Init"):
            started = time.monotonic()
            device.command_inout(command)
            assert time.monotonic() - started < 3, f"{tango_class}.{command}"
    for command in ("Reset", "Init", "Stop", "Abort"):
        started = time.monotonic()
        daq.facade.command_inout(command)
        assert time.monotonic() - started < 3, command
    daq.check_good()


def test_the_log_tells_what_happened(daq: Daq) -> None:
    daq.check_good()
    assert any("start of 5 images" in line for line in daq.facade.log)
    assert any("acquisition ended" in line for line in daq.facade.log)
    assert any("saved 5 images" in line for line in daq.stage("StdDaqWriterDriver").log)


def test_reset_sets_the_counters_to_zero(daq: Daq) -> None:
    daq.check_good()
    driver, receiver = daq.stage("StdDaqWriterDriver"), daq.stage("StdDaqUdpReceiver")
    wait_until(lambda: receiver.frames > 0, 5)
    daq.facade.Reset()
    wait_until(lambda: driver.dispatched == 0 and receiver.frames == 0, 5)
    daq.check_good()


def test_the_facade_lists_the_state_of_every_stage(daq: Daq) -> None:
    lines = list(daq.facade.stageStates)
    assert [line.split(": ")[0] for line in lines] == [s.device for s in daq.system.plan.stages]
    assert all(line.endswith((": RUNNING", ": ALARM")) for line in lines)


def cpus_of_threads(pid: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(path.name)) for path in Path(f"/proc/{pid}/task").iterdir()]


@pytest.mark.parametrize("tango_class", _CLASSES[1:])
def test_the_run_loop_keeps_to_its_cpus_and_tango_has_all(daq: Daq, tango_class: str) -> None:
    ours = os.sched_getaffinity(0)
    if len(ours) == 1:
        pytest.skip("this machine lets us use one CPU only")
    device, pid = daq.stage(tango_class), daq.process(tango_class).pid
    assert {min(ours)} not in cpus_of_threads(pid)
    device.put_property({"Cpus": [str(min(ours))]})
    device.Init()
    try:
        wait_until(lambda: {min(ours)} in cpus_of_threads(pid), 5, "a thread keeps to the CPU")
        assert os.sched_getaffinity(pid) == ours
    finally:
        device.delete_property("Cpus")
        device.Init()
    wait_until(lambda: {min(ours)} not in cpus_of_threads(pid), 5, "all threads are free")


@pytest.mark.parametrize("cpus", ["4000", "fast"])
def test_wrong_cpus_are_named_and_the_device_usable_afterwards(daq: Daq, cpus: str) -> None:
    device = daq.stage("StdDaqModuleSync")
    device.put_property({"Cpus": [cpus]})
    device.Init()
    try:
        assert device.state() == DevState.FAULT
        for word in ("property Cpus", cpus, "allowed are CPUs out of"):
            assert word in device.status()
    finally:
        device.delete_property("Cpus")
        device.Init()
    assert device.state() != DevState.FAULT
    daq.check_good()
