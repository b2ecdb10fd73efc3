"""Pool, MacroServer and Door of Sardana drive a running system: counts, scans and macros."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import tango
from tango import DevState

from tango_stddaq.sardana import CONTROLLERS, MACROS

from .conftest import Daq, running_system, wait_until

pytestmark = [pytest.mark.tango, pytest.mark.timeout(400)]

BIN = Path(sys.executable).parent


class Door:
    """Where macros are run. It listens all the time: first events after a subscription may be lost."""

    def __init__(self, device: tango.DeviceProxy) -> None:
        self.device = device
        self._heard: list[str] = []
        self._states: list[DevState] = []
        for name in ("State", "Output", "Error", "Info", "Warning"):
            device.subscribe_event(name, tango.EventType.CHANGE_EVENT, self._hear)

    def _hear(self, event: tango.EventData) -> None:
        if event.err or event.attr_value.value is None:
            return
        if event.attr_value.type == tango.CmdArgType.DevState:
            self._states.append(event.attr_value.value)
        else:
            self._heard.extend(event.attr_value.value)

    def _ended(self) -> bool:
        """Whether the macro has run and ended: RunMacro returns before it runs.

        Events come in the order in which they were sent: with this one all that it said has come.
        """
        return DevState.RUNNING in self._states and self._states[-1] != DevState.RUNNING

    def run(self, *words: object, ends_well: bool = True, timeout_s: float = 40) -> list[str]:
        """Run a macro; returns what it said."""
        wait_until(lambda: self.device.state() != DevState.RUNNING, timeout_s, "the last one ended")
        self._heard.clear()
        self._states.clear()
        self.device.RunMacro([str(word) for word in words])
        wait_until(self._ended, timeout_s, f"{words} ends: {self._heard}, {self._states}")
        assert (self._states[-1] == DevState.ON) == ends_well, self._heard
        return list(self._heard)


def start(name: str, directory: Path) -> "subprocess.Popen[bytes]":
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [str(BIN / name), "test"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=directory,
            env={**os.environ, "HOME": str(directory)},
        )  # fmt: skip


def register(
    database: tango.Database, server: str, kind: str, device: str, **properties: list[str]
) -> None:
    info = tango.DbDevInfo()
    info.server, info._class, info.name = server, kind, device
    database.add_device(info)
    database.put_device_property(device, properties)


def await_device(name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            tango.DeviceProxy(name).ping()
        except tango.DevFailed:
            return False
        return True

    wait_until(answers, 150, f"{name} answers")


@pytest.fixture(scope="module")
def daq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daq]:
    directory = tmp_path_factory.mktemp("sardana")
    with running_system(directory, simulate=True, number_of_writers=1) as running:
        yield running


def patiently(door: Door, macro: tuple[object, ...]) -> None:
    """Run a macro that needs what the one before has made: the MacroServer hears of it by an event."""
    deadline = time.monotonic() + 60  # an event that was lost does not come later: a new try helps
    while True:
        try:
            door.run(*macro, timeout_s=15)
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            return


@contextmanager
def open_door(daq: Daq, directory: Path) -> Iterator[Door]:
    """Run Pool, MacroServer and Door on the database of a system, with its images as a channel."""
    # Whole names: without a host Tango asks the first database that this process ever knew.
    root = f"tango://{daq.system.tango_host}"
    database = tango.Database(*daq.system.tango_host.rsplit(":", 1))
    register(database, "Pool/test", "Pool", "pool/test/1", PoolPath=[str(CONTROLLERS)])
    register(
        database, "MacroServer/test", "MacroServer", "macroserver/test/1",
        PoolNames=["pool/test/1"], MacroPath=[str(MACROS)],
        EnvironmentDb=[str(directory / "environment")],
    )  # fmt: skip
    register(database, "MacroServer/test", "Door", "door/test/1", MacroServerName=["macroserver/test/1"])
    processes = []
    try:
        for name, device in (("Pool", "pool/test/1"), ("MacroServer", "door/test/1")):
            processes.append(start(name, directory))
            await_device(f"{root}/{device}", processes[-1], directory / f"{name}.log")
        door = Door(tango.DeviceProxy(f"{root}/door/test/1"))
        wait_until(lambda: door.device.state() == DevState.ON, 30, "the door is open")
        for macro in (
            ("defctrl", "DummyMotorController", "motors"),
            ("defelem", "mot", "motors", 1),
            ("defctrl", "DummyCounterTimerController", "timers"),
            ("defelem", "timer", "timers", 1),
            ("defctrl", "StdDaqTwoDController", "daqs", "facade", daq.system.plan.facade.device),
            ("defelem", "eiger", "daqs", 1),
            ("defmeas", "group", "timer", "eiger"),
            ("senv", "ActiveMntGrp", "group"),
        ):
            patiently(door, macro)
        yield door
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def door(daq: Daq, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(daq, tmp_path_factory.mktemp("servers")) as opened:
        yield opened


@pytest.fixture
def detector(daq: Daq) -> Iterator[tango.DeviceProxy]:
    """A detector that sends all the time."""
    assert daq.system.plan.simulator is not None
    simulator = daq.system.device(daq.system.plan.simulator)
    simulator.imageCount, simulator.imageRate = 0, 50
    simulator.Start()
    yield simulator
    simulator.Stop()
    wait_until(lambda: not daq.facade.acquiring, 20)


def check_reference(daq: Daq, reference: str, n_images: int) -> list[int]:
    """The reference opens, and holds what the detector sent; returns the ids."""
    path, dataset = reference.removeprefix("h5file://").split("::")
    with h5py.File(path) as file:
        images = file[dataset]
        ids: list[int] = file["entry/data/image_id"][()].tolist()
        assert len(ids) == len(images) == n_images
        for image_id, image in zip(ids, images, strict=True):
            np.testing.assert_array_equal(image, daq.detector.truth(image_id))
        return ids


def test_a_count_shows_the_last_image(door: Door, daq: Daq, detector: tango.DeviceProxy) -> None:
    door.run("set_meas_conf", "ValueRefEnabled", "False", "eiger")
    files = set(daq.output.iterdir())
    door.run("ct", 0.3)
    value = tango.DeviceProxy(f"tango://{daq.system.tango_host}/eiger").read_attribute("Value").value
    assert value.shape == daq.facade.preview.shape
    assert value.max() == daq.facade.preview.max()
    assert set(daq.output.iterdir()) == files  # nothing was written


def test_each_point_of_a_scan_refers_to_its_images(
    door: Door, daq: Daq, detector: tango.DeviceProxy
) -> None:
    door.run("set_meas_conf", "ValueRefEnabled", "True", "eiger")
    name = f"scan-{uuid.uuid4().hex[:6]}"  # a second try of this test has other files
    pattern = f"h5file://{daq.output}/{name}_{{index}}.h5::entry/data/data"
    door.run("set_meas_conf", "ValueRefPattern", pattern, "eiger")
    channel = tango.DeviceProxy(f"tango://{daq.system.tango_host}/eiger")
    channel.ImagesPerPoint = 3
    said = door.run("ascan", "mot", 0, 2, 2, 0.1)
    text = "\n".join(said)
    assert f"{name}_2.h5" in text, text
    ids = [
        check_reference(daq, f"h5file://{daq.output}/{name}_{point}.h5::entry/data/data", 3)
        for point in range(3)
    ]
    assert ids == sorted(ids)
    assert channel.ValueRef == f"h5file://{daq.output}/{name}_2.h5::entry/data/data"
    # The same names again: the refusal reaches the user, and no file is touched.
    said = door.run("ascan", "mot", 0, 2, 2, 0.1, ends_well=False)
    assert any("exists already" in line for line in said), "\n".join(said)
    check_reference(daq, f"h5file://{daq.output}/{name}_0.h5::entry/data/data", 3)


def test_an_aborted_scan_aborts_its_acquisition(door: Door, daq: Daq) -> None:
    door.run("set_meas_conf", "ValueRefEnabled", "True", "eiger")
    pattern = f"h5file://{daq.output}/aborted_{{index}}.h5"
    door.run("set_meas_conf", "ValueRefPattern", pattern, "eiger")
    door.device.RunMacro(["ct", "0.1"])  # no detector sends: it waits
    wait_until(lambda: daq.facade.acquiring, 20, "it waits for images")
    door.device.StopMacro()
    wait_until(lambda: not daq.facade.acquiring, 20, "the acquisition has ended")
    wait_until(lambda: door.device.state() != DevState.RUNNING, 20, "the macro has ended")
    assert not list(daq.output.glob("aborted_*"))
    door.run("stddaq_status")


def test_macros_take_images_and_tell_the_state(
    door: Door, daq: Daq, detector: tango.DeviceProxy
) -> None:
    prefix = f"macro-{uuid.uuid4().hex[:6]}_"
    said = door.run("stddaq_acquire", 10, daq.output, prefix)
    assert str(daq.output / f"{prefix}master.h5") in said, said
    assert any("complete 10, incomplete 0, lost 0" in line for line in said), said
    check_reference(daq, f"h5file://{daq.output}/{prefix}master.h5::entry/data/data", 10)
    said = door.run("stddaq_status")
    wanted = f"{daq.system.plan.facade.device}: STANDBY".lower()
    assert any(line.lower().startswith(wanted) for line in said), said
    assert any("module-sync-0: " in line for line in said), said
    said = door.run("stddaq_acquire", 10, "/no/such/directory", "macro_", ends_well=False)
    assert any("/no/such/directory" in line and "create it first" in line for line in said), said
