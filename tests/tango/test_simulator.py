"""The simulator as a Tango device: every kind of source, driven and told to misbehave by a client."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tango
from tango import DevState

from tango_stddaq import config as config_module
from tango_stddaq.control.plan import plan
from tango_stddaq.devices.system import System
from tango_stddaq.sim import demo_config
from tango_stddaq.sim.camera import SimulatedCamera
from tango_stddaq.sim.detector import SimulatedDetector

from .conftest import refused, wait_until

pytestmark = pytest.mark.tango


@pytest.fixture(scope="module", params=demo_config.DETECTORS)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp(request.param)
    path = directory / "config.json"
    path.write_text(json.dumps(demo_config.build(request.param, f"SIM-{request.param}", 16, 1)))
    config = config_module.load(path)
    with System(config, plan(config, path, simulate=True), directory / "logs") as running:
        yield running


@pytest.fixture
def simulator(system: System) -> tango.DeviceProxy:
    assert system.plan.simulator is not None
    return system.device(system.plan.simulator)


def truth(system: System, image_id: int) -> np.ndarray:
    config = system.config
    if config.detector_type == "pco":
        with SimulatedCamera(config.sizes.shape, config.sizes.dtype.numpy) as camera:
            return camera.truth(image_id)
    return SimulatedDetector(config).truth(image_id)


def test_a_client_drives_detector_and_acquisition(
    system: System, simulator: tango.DeviceProxy, tmp_path: Path
) -> None:
    daq = system.facade
    daq.outputPath, daq.filePrefix, daq.imageCount = str(tmp_path), "run_", 20
    daq.Start()
    assert simulator.state() == DevState.STANDBY
    simulator.imageCount, simulator.imageRate, simulator.firstId = 20, 50.0, 7
    simulator.Start()
    wait_until(lambda: not daq.acquiring, 30, daq.Status())
    assert (daq.imagesComplete, daq.imagesIncomplete, daq.imagesLost) == (20, 0, 0)
    wait_until(lambda: simulator.state() == DevState.STANDBY, 5, "the simulator ends by itself")
    assert simulator.images == 20
    with h5py.File(daq.lastFile) as file:
        assert file["entry/data/image_id"][()].tolist() == list(range(7, 27))
        assert np.array_equal(file["entry/data/data"][19], truth(system, 26))
    if system.config.detector_type == "gigafrost":
        with h5py.File(tmp_path / "run_Meta.h5") as file:
            rows = file[f"{system.config.detector_name}/metadata"]
            assert rows["image_id"].tolist() == list(range(7, 27))
        writer = next(s for s in system.plan.stages if s.tango_class == "StdDaqMetaWriter")
        assert system.device(writer).images == 20
        check_interface(system.device(writer))
    else:
        assert not (tmp_path / "run_Meta.h5").exists()


def check_interface(device: tango.DeviceProxy) -> None:
    """As `test_interface.py` asks of the classes that an Eiger has."""
    infos = [i for i in device.attribute_list_query_ex() if i.name not in ("State", "Status")]
    assert not [info.name for info in infos if info.description in ("", "No description")]
    assert not [info.name for info in infos if not info.label]
    assert not [r.name for r in device.read_attributes([i.name for i in infos]) if r.has_failed]
    assert device.info().version_info["tango_stddaq"] == device.version


def test_faults_pause_and_restart_on_command(
    system: System, simulator: tango.DeviceProxy, tmp_path: Path
) -> None:
    if system.config.detector_type == "pco":
        assert simulator.dropFraction == 0
        for name, value in (("dropFraction", 0.1), ("dropPatterns", ["*:*:1"]), ("dropEvery", 5),
                            ("deadModules", [0]), ("cycle", 4)):  # fmt: skip
            with refused("a camera sends whole images"):
                simulator.write_attribute(name, value)
        return
    daq = system.facade
    daq.Reset()
    daq.outputPath, daq.filePrefix, daq.imageCount = str(tmp_path), "run_", 15
    daq.Start()
    simulator.dropFraction = 0.02
    simulator.imageCount, simulator.imageRate, simulator.firstId = 0, 50.0, 1
    simulator.Pause()
    simulator.Start()
    wait_until(lambda: "Paused" in simulator.status(), 5)
    simulator.Resume()
    wait_until(lambda: not daq.acquiring, 30, daq.Status())
    assert (daq.imagesComplete + daq.imagesIncomplete, daq.imagesLost) == (15, 0)
    assert daq.imagesIncomplete > 0
    assert simulator.missingPackets > 0
    sent = simulator.images
    simulator.RestartIds()
    wait_until(lambda: simulator.images > sent + 2, 5)
    simulator.Stop()
    receiver = next(s for s in system.plan.stages if s.tango_class == "StdDaqUdpReceiver")
    wait_until(lambda: system.device(receiver).restarts > 0, 5, "the receiver saw the restart")
    simulator.dropFraction = 0
    with pytest.raises(tango.DevFailed):
        simulator.dropFraction = 2


def receiver_of(system: System) -> tango.DeviceProxy:
    server = next(s for s in system.plan.stages if s.tango_class == "StdDaqUdpReceiver")
    return system.device(server)


FAULTS: dict[str, dict[str, object]] = {
    "dropFraction": {"dropFraction": 0.02, "faultSeed": 5},
    "dropEvery": {"dropEvery": 70},
    "dropPatterns": {"dropPatterns": ["103:*:0", "/4:0:1"]},
    "duplicateFraction": {"duplicateFraction": 0.1},
    "reorderFraction": {"reorderFraction": 0.1},
    "corruptFraction": {"corruptFraction": 0.02},
    "truncateFraction": {"truncateFraction": 0.02},
    "nothing": {},
}


@pytest.mark.parametrize("system", ["eiger"], indirect=True)  # test_faults.py has all detectors
@pytest.mark.parametrize("cycle", [0, 3])
def test_each_fault_of_the_device_is_found_by_the_receiver(
    system: System, simulator: tango.DeviceProxy, tmp_path: Path, cycle: int
) -> None:
    daq, receiver = system.facade, receiver_of(system)
    time.sleep(1.5)  # the last image of before, if incomplete, comes late: not into this acquisition
    for number, (fault, settings) in enumerate(FAULTS.items()):
        daq.Reset()
        receiver.Reset()
        wait_until(lambda: receiver.packets == 0, 5, "the receiver's counters are reset")
        daq.outputPath, daq.filePrefix, daq.imageCount = str(tmp_path), f"run{number}_", 8
        daq.Start()
        simulator.cycle = cycle
        simulator.imageCount, simulator.imageRate = 8, 40.0
        simulator.firstId = 100 * (number + 1)
        for name, value in settings.items():
            simulator.write_attribute(name, value)
        simulator.Start()
        wait_until(lambda: simulator.state() == DevState.STANDBY, 20, "all images are sent")
        wait_until(lambda: not daq.acquiring, 30, daq.Status())
        counts = (daq.imagesComplete + daq.imagesIncomplete, daq.imagesLost)
        assert counts == (8, 0), (fault, daq.Status(), daq.ledger, list(daq.log)[-4:])

        def found(receiver: tango.DeviceProxy = receiver) -> list[int]:
            return [receiver.missingPackets, receiver.duplicate, receiver.badHeader, receiver.badSize]

        said = [simulator.missingPackets, simulator.duplicated, simulator.corrupted, simulator.truncated]
        wait_until(lambda said=said: found() == said, 5, f"{fault}: {found()} is {said}")
        done = [any(said), simulator.reordered > 0]
        assert done == [fault not in ("nothing", "reorderFraction"), fault == "reorderFraction"]
        for name in ("dropFraction", "duplicateFraction", "reorderFraction", "corruptFraction",
                     "truncateFraction", "dropEvery"):  # fmt: skip
            simulator.write_attribute(name, 0)
        simulator.dropPatterns = []
    with h5py.File(daq.lastFile) as file:
        for at, image_id in enumerate(file["entry/data/image_id"][()].tolist()):
            expected = SimulatedDetector(system.config, cycle=cycle).truth(image_id)
            assert np.array_equal(file["entry/data/data"][at], expected)


def test_faults_that_make_no_sense_are_refused(system: System, simulator: tango.DeviceProxy) -> None:
    if system.config.detector_type == "pco":
        return
    with refused("'1:2'", "IMAGES:MODULES:PACKETS"):
        simulator.dropPatterns = ["1:2"]
    with refused("[99]", "not of this detector"):
        simulator.deadModules = [99]
    with refused("cycle 1000000000", "MiB"):
        simulator.cycle = 10**9
    assert not simulator.dropPatterns
    assert simulator.cycle in (0, 3)
    assert simulator.state() == DevState.STANDBY


def test_the_system_works_without_its_simulator(system: System, simulator: tango.DeviceProxy) -> None:
    """Last: it is killed. The facade does not miss it."""
    daq = system.facade
    assert simulator.state() == DevState.STANDBY
    assert simulator.dev_name() not in [stage.lower() for stage in _stage_devices(system)]
    assert system.plan.simulator is not None
    process = system._processes[system.plan.simulator.server]
    process.kill()
    process.wait(10)
    system.check_alive()
    daq.Reset()
    wait_until(lambda: daq.state() == DevState.STANDBY, 10, daq.Status())


def _stage_devices(system: System) -> list[str]:
    database = tango.Database(*system.tango_host.rsplit(":", 1))
    found = database.get_device_property(system.plan.facade.device, "StageDevices")
    return list(found["StageDevices"])
