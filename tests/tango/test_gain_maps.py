"""A converted Jungfrau as Tango devices: gain maps changed by a client, the mask of missing packets."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from tango import DevState

from tango_stddaq import config as config_module
from tango_stddaq.control.plan import plan
from tango_stddaq.devices.system import System
from tango_stddaq.sim import demo_config
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults

from ..system.test_detectors import write_gain_maps
from .conftest import refused, wait_until

pytestmark = pytest.mark.tango

N_IMAGES = 5


def test_a_client_changes_gain_maps_and_sees_which_packets_are_missing(
    detector_name: str, tmp_path: Path
) -> None:
    files = [str(tmp_path / name) for name in ("first.h5", "second.h5")]
    maps = [write_gain_maps(Path(path), seed) for seed, path in enumerate(files)]
    data = {**demo_config.build("jungfrau", detector_name, 16, 1), "gains_file": files[0]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**data, "detector_type": "jungfrau-converted"}))
    config = config_module.load(path)
    simulator = SimulatedDetector(config)
    with System(config, plan(config, path), tmp_path / "logs") as system:
        devices = {entry.tango_class: system.device(entry) for entry in system.plan.stages}
        receiver, sync = devices["StdDaqUdpReceiver"], devices["StdDaqModuleSync"]
        daq = system.facade
        for number, (gains, pedestals) in enumerate(maps):
            assert receiver.gainsFile == files[number]
            first_id = 1 + 100 * number
            daq.outputPath, daq.filePrefix = str(tmp_path), f"run{number}_"
            daq.imageCount = N_IMAGES
            daq.Start()
            simulator.run(N_IMAGES, 40, first_id=first_id)
            wait_until(lambda: not daq.acquiring, 30, daq.Status())
            assert (daq.imagesComplete, daq.imagesLost) == (N_IMAGES, 0)
            with h5py.File(daq.lastFile) as file:
                raw = simulator.raw(first_id).astype(np.float32)
                expected = (raw - pedestals[0]) * gains[0]
                assert np.array_equal(file["entry/data/data"][0], expected)
            with refused("nothing.h5"):
                receiver.gainsFile = str(tmp_path / "nothing.h5")
            assert receiver.state() != DevState.FAULT
            receiver.gainsFile = files[1]
            receiver.ReloadGainMaps()
        assert sync.lastIncompleteId == -1
        faults = simulator.run(3, 40, first_id=300, faults=Faults(drop_every=100))
        wait_until(lambda: sync.lastIncompleteId == 302, 5)
        missing = {packet for image_id, _, packet in faults.dropped if image_id == 302}
        assert sync.packetMask.shape == (1, 128)
        assert set(np.flatnonzero(sync.packetMask[0]).tolist()) == missing
