"""One acquisition over three hosts: `stddaq up --host`, one Tango database, one master file."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tango_stddaq.config import DaqConfig
from tango_stddaq.sim.detector import SimulatedDetector

from ..conftest import eiger_config
from ..system.hosts import Host, Network, needs_hosts
from ..system.programs import save, wait_until

pytestmark = [pytest.mark.tango, needs_hosts, pytest.mark.timeout(200)]

_CLIENT = """
import json, sys, tango
for line in sys.stdin:
    device, name, value = json.loads(line)
    proxy = tango.DeviceProxy(device)
    if name == "state":
        answer = proxy.state().name
    elif name == "run":
        try:
            answer = proxy.command_inout(value)
        except tango.DevFailed as error:
            answer = {"error": error.args[0].desc}
    elif name == "write":
        answer = [proxy.write_attribute(*pair) for pair in value.items()]
    else:
        answer = proxy.read_attribute(value).value
    print(json.dumps(answer, default=list), flush=True)
"""


class Hosts:
    def __init__(self, network: Network, directory: Path) -> None:
        self.network, self.directory = network, directory
        self.hosts = [network.host(directory) for _ in range(3)]
        addresses = [host.address for host in self.hosts]
        self.output = directory / "output"
        self.output.mkdir()
        self.config: DaqConfig = eiger_config(
            "HOSTS",
            n_modules=1,
            bit_depth=8,
            image_pixel_height=256,
            image_pixel_width=514,
            module_positions={"0": [0, 0, 513, 255]},
            start_udp_port=50100,
            number_of_writers=3,
            ring_slots=200,
            use_all_forwarders=True,
            max_number_of_forwarders_spawned=2,
            hosts={
                "recv": {"address": addresses[0], "writers": [0]},
                "disk1": {"address": addresses[1], "writers": [1]},
                "disk2": {"address": addresses[2], "writers": [2]},
            },
        )
        path = save(self.config, directory / "config.json")
        tango_host = f"{addresses[0]}:11000"
        database = self.hosts[0].start(
            directory / "database.log",
            Path(sys.executable).parent / "PyDatabaseds",
            *("--host", addresses[0], "--port", "11000", "2"),
            PYTANGO_DATABASE_NAME=":memory:",
        )
        database.wait_for("Ready to accept request")
        self.tango_host = tango_host
        self.programs = [
            host.stddaq(
                directory / f"{name}.log", "up", path, "--host", name, "--tango-host", tango_host,
                "--output-root", self.output, "--log-dir", directory / f"logs-{name}",
            )
            for host, name in zip(self.hosts, self.config.hosts, strict=True)
        ]  # fmt: skip
        for program in self.programs:
            program.wait_for("Ctrl-C ends it", 100)  # a cold start compiles
        self.config_path = path
        inside = ["nsenter", "-t", str(self.hosts[0].pid), "-n", "-m", "--"]
        self.client = subprocess.Popen(
            [*inside, sys.executable, "-c", _CLIENT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: self.ask("facade", "state") == "STANDBY", "the facade is ready", 40)

    def ask(self, device: str, what: str, value: Any = None) -> Any:
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        name = f"tango://{self.tango_host}/HOSTS/stddaq/{device}"
        self.client.stdin.write(json.dumps([name, what, value]) + "\n")
        self.client.stdin.flush()
        return json.loads(self.client.stdout.readline())

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.communicate(timeout=10)
        for program in self.programs:
            program.process.send_signal(signal.SIGINT)
        for program in self.programs:
            program.process.wait(90)

    def acquire(self, n_images: int, during: Any = None) -> dict[str, Any]:
        prefix = f"run{time.monotonic_ns()}_"
        self.ask(
            "facade", "write",
            {"outputPath": str(self.output), "filePrefix": prefix, "imageCount": n_images},
        )  # fmt: skip
        self.ask("facade", "run", "Start")
        log = self.directory / f"{prefix}.log"
        self.hosts[0].stddaq(log, "simulate", self.config_path, "--images", n_images, "--rate", 20)
        if during is not None:
            during()
        wait_until(lambda: not self.read("acquiring"), "the acquisition ends", 40)
        return {"file": self.read("lastFile"), **json.loads(self.read("ledger"))}

    def read(self, name: str) -> Any:
        return self.ask("facade", "read", name)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Network() as network:
        made = Hosts(network, tmp_path_factory.mktemp("hosts"))
        try:
            yield made
        finally:
            made.close()


def check_file(hosts: Hosts, path: str, ids: list[int]) -> None:
    detector = SimulatedDetector(hosts.config)
    with h5py.File(path) as file:
        assert file["entry/data/image_id"][()].tolist() == ids
        for at, image_id in enumerate(ids):
            np.testing.assert_array_equal(file["entry/data/data"][at], detector.truth(image_id))


def test_one_acquisition_over_three_hosts(hosts: Hosts) -> None:
    ledger = hosts.acquire(30)
    assert (ledger["expected"], ledger["complete"], ledger["lost"]) == (30, 30, 0), ledger
    check_file(hosts, ledger["file"], list(range(1, 31)))


def test_it_is_not_ready_while_a_receiver_waits_for_its_sender(hosts: Hosts) -> None:
    """And says so: the images of its host would be lost."""
    address = hosts.hosts[0].address
    waits = [
        f"HOSTS/stddaq/{device} of host {host}: Waits for the sender at tcp://{address}"
        for device, host in (("stream-receive-1", "disk1"), ("stream-receive-3", "disk2"))
    ]
    hosts.ask("stream-send-1", "run", "Stop")
    try:
        wait_until(lambda: all(text in hosts.read("Status") for text in waits), "both wait", 20)
        assert hosts.ask("facade", "state") == "INIT"
        assert "stream-receive-0" not in hosts.read("Status")
        refused = hosts.ask("facade", "run", "Start")
        assert "stream-receive-3 of host disk2: Waits for" in refused["error"]
    finally:  # the tests that follow need it
        hosts.ask("stream-send-1", "run", "Start")
    wait_until(lambda: hosts.ask("facade", "state") == "STANDBY", "it is ready", 20)
    ledger = hosts.acquire(12)
    assert (ledger["complete"], ledger["lost"]) == (12, 0), ledger


def test_ids_that_start_again_do_not_bring_old_images(hosts: Hosts) -> None:
    ledger = hosts.acquire(12)
    assert (ledger["complete"], ledger["lost"]) == (12, 0), ledger
    check_file(hosts, ledger["file"], list(range(1, 13)))


def test_a_cable_that_is_cut_costs_images_that_the_ledger_names(hosts: Hosts) -> None:
    """And the next acquisition is whole again."""
    victim: Host = hosts.hosts[2]

    def cut() -> None:
        time.sleep(2.0)
        victim.set_link(up=False)
        time.sleep(3.0)
        victim.set_link(up=True)

    ledger = hosts.acquire(120, cut)
    assert ledger["expected"] == 120
    assert ledger["complete"] + ledger["incomplete"] + ledger["lost"] == 120
    assert ledger["complete"] >= 60, ledger
    wait_until(lambda: hosts.ask("facade", "state") != "FAULT", "all stages answer", 20)
    ledger = hosts.acquire(12)
    assert (ledger["complete"], ledger["lost"]) == (12, 0), ledger
