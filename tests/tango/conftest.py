"""A running system for the tests of one file, and what a client does with it."""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tango
from tango import DevState

from tango_stddaq.config import DaqConfig
from tango_stddaq.control.plan import ServerPlan, plan
from tango_stddaq.devices.system import System
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults

from ..conftest import eiger_config

_prefixes = count(1)


def wait_until(predicate: Callable[[], Any], timeout_s: float, what: str = "") -> None:
    """Poll until `predicate` is true; fail with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or predicate}"
        time.sleep(0.02)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """The block raises a Tango error whose text holds all `words`, within the 3 s of a command."""
    started = time.monotonic()
    with pytest.raises(tango.DevFailed) as info:
        yield
    text = info.value.args[0].desc
    assert time.monotonic() - started < 3
    assert not [word for word in words if word not in text], text
    assert "Traceback" not in text


@dataclass
class Daq:
    """A running system and the detector that sends to it."""

    system: System
    config_path: Path
    output: Path

    @property
    def config(self) -> DaqConfig:
        return self.system.config

    @property
    def facade(self) -> tango.DeviceProxy:
        return self.system.facade

    @property
    def detector(self) -> SimulatedDetector:
        return SimulatedDetector(self.config)

    def server(self, tango_class: str) -> ServerPlan:
        return next(s for s in self.system.plan.servers if s.tango_class == tango_class)

    def stage(self, tango_class: str) -> tango.DeviceProxy:
        return self.system.device(self.server(tango_class))

    def process(self, tango_class: str) -> subprocess.Popen[bytes]:
        return self.system._processes[self.server(tango_class).server]

    def kill(self, tango_class: str) -> None:
        self.process(tango_class).kill()
        self.process(tango_class).wait(10)

    def restart(self, tango_class: str) -> None:
        """Start a killed server again and wait until the facade is ready."""
        server = self.server(tango_class)
        self.system._start_server(server)
        self.system._await(server)
        self.wait_ready()

    def wait_ready(self) -> None:
        wait_until(lambda: self.facade.state() == DevState.STANDBY, 20, "the facade is in STANDBY")

    def start(self, n_images: int) -> str:
        """Start an acquisition under a new name; returns the prefix."""
        prefix = f"run_{next(_prefixes):03d}_"
        facade = self.facade
        facade.outputPath = str(self.output)
        facade.filePrefix = prefix
        facade.imageCount = n_images
        facade.Start()
        return prefix

    def wait_end(self, timeout_s: float = 30) -> None:
        wait_until(lambda: not self.facade.acquiring, timeout_s, "the acquisition ends")

    def acquire(self, n_images: int, rate_hz: float = 100, drop_every: int = 0) -> Faults:
        """Take images from start to end; what is missing at the end is given up."""
        self.start(n_images)
        faults = self.detector.run(n_images, rate_hz, faults=Faults(drop_every))
        self.wait_end()
        return faults

    def check_good(self, n_images: int = 5) -> None:
        """The system works: an acquisition gives all images, pixel by pixel."""
        self.wait_ready()
        self.acquire(n_images)
        good = {"expected": n_images, "complete": n_images, "incomplete": 0, "lost": 0}
        assert self.ledger() == good, list(self.facade.log)[-5:]
        self.check_pixels(range(1, n_images + 1))

    def ledger(self) -> dict[str, int]:
        ledger = json.loads(self.facade.ledger)
        return {name: ledger[name] for name in ("expected", "complete", "incomplete", "lost")}

    def check_pixels(self, image_ids: Any) -> None:
        """The master file of the last acquisition holds exactly these images."""
        detector = self.detector
        with h5py.File(self.facade.lastFile) as file:
            data = file["entry/data"]
            assert data["image_id"][()].tolist() == list(image_ids)
            for at, image_id in enumerate(image_ids):
                np.testing.assert_array_equal(data["data"][at], detector.truth(image_id))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def running_system(directory: Path, simulate: bool = False, **changes: object) -> Iterator[Daq]:
    """Run a system of its own; afterwards nothing of it may be left."""
    name = f"T{os.getpid()}-{uuid.uuid4().hex[:8]}"
    config = eiger_config(name, **{"ring_slots": 200, **changes})
    config_path, output = directory / "config.json", directory / "output"
    config_path.write_text(config.model_dump_json(exclude_unset=True))
    output.mkdir()
    tango_host = os.environ.get("TANGO_HOST")
    system = System(config, plan(config, config_path, (str(output),), simulate), directory / "logs")
    try:
        with system:
            pids = system.pids()
            yield Daq(system, config_path, output)
            pids |= system.pids()
    finally:
        os.environ.pop("TANGO_HOST")
        if tango_host is not None:
            os.environ["TANGO_HOST"] = tango_host
    assert not [server for server, pid in pids.items() if is_alive(pid)]
    assert not [*Path("/dev/shm").glob(f"*{name}*"), *Path("/tmp").glob(f"{name}*")]


@pytest.fixture(scope="module")
def daq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daq]:
    """One system for all tests of a file."""
    with running_system(tmp_path_factory.mktemp("system"), number_of_writers=2) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_acquisition_goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """End what a failed test has left running."""
    yield
    if "daq" in request.fixturenames:
        facade = request.getfixturevalue("daq").facade
        if facade.acquiring:
            facade.Abort()
            wait_until(lambda: not facade.acquiring, 30)
