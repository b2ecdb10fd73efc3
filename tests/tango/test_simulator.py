"""The simulator as a Tango device: every kind of source, driven and told to misbehave by a client."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tango
from tango import DevState

from tango_stddaq import config as config_module
from tango_stddaq.control.plan import ServerPlan, plan
from tango_stddaq.devices.system import System
from tango_stddaq.sim import demo_config
from tango_stddaq.sim.camera import SimulatedCamera
from tango_stddaq.sim.detector import SimulatedDetector

from .conftest import wait_until

pytestmark = pytest.mark.tango


@pytest.fixture(scope="module", params=demo_config.DETECTORS)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp(request.param)
    path = directory / "config.json"
    path.write_text(json.dumps(demo_config.build(request.param, f"SIM-{request.param}", 16, 1)))
    config = config_module.load(path)
    system_plan = plan(config, path)
    simulator = ServerPlan(
        "StdDaqSimulator", "tango_stddaq.devices.simulator", config.detector_name,
        f"{config.detector_name}/stddaq/simulator", {"ConfigFile": [str(path)]},
    )  # fmt: skip
    with System(
        config, replace(system_plan, stages=(*system_plan.stages, simulator)), directory / "logs"
    ) as running:
        yield running


@pytest.fixture
def simulator(system: System) -> tango.DeviceProxy:
    return system.device(system.plan.stages[-1])


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


def test_faults_pause_and_restart_on_command(
    system: System, simulator: tango.DeviceProxy, tmp_path: Path
) -> None:
    if system.config.detector_type == "pco":
        assert simulator.dropFraction == 0  # a camera has no packets
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
