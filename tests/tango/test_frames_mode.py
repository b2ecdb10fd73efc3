"""Receiver in frames mode and converter as Tango devices, in place of the direct receiver."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from tango import DevState

from tango_stddaq import config as config_module
from tango_stddaq.control.plan import ServerPlan, plan
from tango_stddaq.devices.system import System
from tango_stddaq.sim import demo_config
from tango_stddaq.sim.detector import SimulatedDetector

from .conftest import wait_until

pytestmark = pytest.mark.tango


def test_an_acquisition_through_receiver_and_converter(detector_name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(demo_config.build("eiger", detector_name, 16, 1)))
    config = config_module.load(path)
    system_plan = plan(config, path)
    *others, receiver = system_plan.stages
    converter = ServerPlan(
        "StdDaqDataConvert", "tango_stddaq.devices.data_convert", receiver.instance,
        f"{detector_name}/stddaq/data-convert-0", {"ConfigFile": [str(path)]},
    )  # fmt: skip
    receiver = replace(receiver, properties={**receiver.properties, "Mode": ["frames"]})
    with System(config, replace(system_plan, stages=(*others, converter, receiver)), tmp_path) as system:
        daq = system.facade
        daq.outputPath, daq.filePrefix, daq.imageCount = str(tmp_path), "run_", 10
        daq.Start()
        simulator = SimulatedDetector(config)
        simulator.run(10, 40)
        wait_until(lambda: not daq.acquiring, 30, daq.Status())
        assert (daq.imagesComplete, daq.imagesLost) == (10, 0)
        device = system.device(converter)
        assert device.state() == DevState.RUNNING
        wait_until(lambda: device.frames == 40, 5)
        with h5py.File(daq.lastFile) as file:
            assert np.array_equal(file["entry/data/data"][9], simulator.truth(10))
