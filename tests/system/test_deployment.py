"""The playbooks on this machine: the real Tango database, servers started by Tango's Starter."""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import pytest
import tango

from tango_stddaq import config as config_module
from tango_stddaq.sim.detector import SimulatedDetector

from ..conftest import eiger_config, free_tcp_port
from .ansible_host import (
    DATABASE,
    ROOT,
    STARTER,
    Host,
    build_wheel,
    database_answers,
    operator_environment,
    prepare_environment,
    running_service,
    running_starter,
    wait_until,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),  # a playbook takes half a minute on a busy machine
    pytest.mark.skipif(
        os.getuid() != 0 or not STARTER.exists() or not shutil.which("systemd-analyze"),
        reason="needs root, and the Debian packages of .ci/run",
    ),
]


CONFIGURATION = ("--tags", "config,tango,services")
"""Of the playbook, what a new configuration needs; to save time."""


def write_config(path: Path, name: str, n_writers: int, **changes: object) -> None:
    config = eiger_config(
        name, number_of_writers=n_writers, ring_slots=200,
        live_stream_configs={f"tcp://127.0.0.1:{free_tcp_port()}": {"type": "forward"}},
    )  # fmt: skip
    data = {**config.model_dump(mode="json", exclude_unset=True), **changes}
    path.write_text(json.dumps(data, indent=2) + "\n")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A deployed system; afterwards nothing of it runs."""
    base = tmp_path_factory.mktemp("deployment")
    host = Host(base / "host", base / "config.json", build_wheel(base / "dist"), base / "data")
    host.output.mkdir()
    write_config(host.config_file, f"A{os.getpid()}x{uuid.uuid4().hex[:6]}", n_writers=2)
    with ExitStack() as stack:
        for service in ("mariadb", "tango-db"):
            stack.enter_context(running_service(service))
        wait_until(database_answers, 60, "the Tango database answers")
        stack.enter_context(running_starter(base / "starter.log"))
        try:
            prepare_environment(host.release)
            played = host.play("site.yml")
            assert played.code == 0, played.text[-5000:]
            yield host
        finally:
            for pid in host.processes():
                os.kill(pid, signal.SIGTERM)  # they take their shared memory and sockets along
            wait_until(lambda: not host.processes(), 30, "the servers end")


def acquire(host: Host, n_images: int) -> None:
    """An acquisition of the deployed system closes its account, and the file holds the pixels."""
    config = config_module.load(host.config_file)
    facade = tango.DeviceProxy(f"tango://{DATABASE}/{host.detector}/stddaq/facade")
    wait_until(lambda: facade.state() == tango.DevState.STANDBY, 90, f"ready: {facade.status()}")
    facade.outputPath, facade.imageCount = str(host.output), n_images
    facade.filePrefix = f"run_{uuid.uuid4().hex[:6]}_"
    facade.Start()
    detector = SimulatedDetector(config)
    detector.run(n_images, 50)
    wait_until(lambda: not facade.acquiring, 30, "the acquisition ends")
    ledger = json.loads(facade.ledger)
    good = {"expected": n_images, "complete": n_images, "incomplete": 0, "lost": 0}
    assert {name: ledger[name] for name in good} == good
    with h5py.File(facade.lastFile) as file:
        np.testing.assert_array_equal(file["entry/data/data"][n_images - 1], detector.truth(n_images))


def test_the_deployed_system_acquires_to_a_file_whose_counts_close(host: Host) -> None:
    acquire(host, 10)


def test_starter_has_the_servers_in_its_hands(host: Host) -> None:
    starter = tango.DeviceProxy(f"tango://{DATABASE}/tango/admin/{host.name}")
    running = set(starter.DevGetRunningServers(True))
    assert set(host.registered()) <= running
    database = tango.Database(*DATABASE.split(":"))
    levels = {server.partition("/")[0]: database.get_server_info(server).level for server in running}
    assert (levels["StdDaqUdpReceiver"], levels["StdDaq"]) == (1, 2)


def test_a_second_run_changes_nothing(host: Host) -> None:
    before = host.files(), host.registered(), sorted(host.processes())
    played = host.play("site.yml")
    assert (played.code, played.changed) == (0, 0), played.text[-5000:]
    assert (host.files(), host.registered(), sorted(host.processes())) == before


def test_a_broken_configuration_is_refused_before_anything_changes(host: Host) -> None:
    good = host.config_file.read_text()
    before = host.files(), host.registered(), sorted(host.processes())
    write_config(host.config_file, host.detector, 2, bit_depth=13)
    try:
        played = host.play("site.yml", *CONFIGURATION)
    finally:
        host.config_file.write_text(good)
    assert played.code != 0
    assert "bit_depth" in played.text
    assert "13" in played.text
    assert (host.files(), host.registered(), sorted(host.processes())) == before


def test_a_check_shows_a_changed_configuration_as_a_diff(host: Host) -> None:
    good = host.config_file.read_text()
    before = host.files(), host.registered(), sorted(host.processes())
    host.config_file.write_text(good.replace('"number_of_writers": 2', '"number_of_writers": 1'))
    try:
        checked = host.play("site.yml", "--check", "--diff", *CONFIGURATION)
    finally:
        host.config_file.write_text(good)
    assert checked.code == 0, checked.text[-5000:]
    assert '-  "number_of_writers": 2' in checked.text
    assert '+  "number_of_writers": 1' in checked.text
    assert f"-StdDaqFileWriter/{host.detector}-1 runs" in checked.text
    assert (host.files(), host.registered(), sorted(host.processes())) == before


def test_a_server_that_is_not_needed_any_more_goes_and_the_others_take_the_change(host: Host) -> None:
    before = host.processes()
    text = host.config_file.read_text()
    host.config_file.write_text(text.replace('"number_of_writers": 2', '"number_of_writers": 1'))
    played = host.play("site.yml", *CONFIGURATION)
    assert played.code == 0, played.text[-5000:]
    writers = [server for server in host.registered() if server.startswith("StdDaqFileWriter")]
    assert writers == [f"StdDaqFileWriter/{host.detector}-0"]
    assert not set(host.processes()) & set(before)
    acquire(host, 5)


def test_units_are_what_systemd_understands(host: Host) -> None:
    units = host.prefix / "etc/systemd/system"
    assert (units / "stddaq-starter.service").is_file()
    played = host.play(
        "site.yml", "--tags", "config,services", stddaq_run_by="systemd", stddaq_cpu_affinity="0"
    )
    assert played.code == 0, played.text[-5000:]
    # What Starter had started was stopped: systemd would start it a second time.
    assert not host.processes()
    found = sorted(units.glob("*"))
    assert {path.suffix for path in found} == {".service", ".target"}
    assert len(found) == len(host.registered()) + 2
    checked = subprocess.run(
        ["systemd-analyze", "verify", *found], capture_output=True, text=True, check=False
    )
    said = [line for line in checked.stderr.splitlines() if str(units) in line or "stddaq" in line]
    assert (checked.returncode, said) == (0, [])
    text = (units / f"stddaq-StdDaq-{host.detector}.service").read_text()
    for setting in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "LimitMEMLOCK=infinity",
        "CPUAffinity=0",
    ):
        assert setting in text
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=50",
         units / "stddaq-starter.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert rated.returncode == 0, rated.stdout[-600:] + rated.stderr


def test_removal_leaves_nothing_but_the_data(host: Host) -> None:
    data = sorted(host.output.rglob("*.h5"))
    played = host.play("remove.yml")
    assert played.code == 0, played.text[-5000:]
    assert not host.registered()
    assert not host.processes()
    left = [path for path in host.prefix.rglob("*") if path.is_file() or path.is_symlink()]
    assert not [path for path in left if "var/log" not in str(path)]
    assert data
    assert sorted(host.output.rglob("*.h5")) == data


def test_the_playbooks_pass_ansible_lint() -> None:
    lint, playbooks = Path(sys.executable).parent / "ansible-lint", ROOT / "ansible"
    # By name: without, it also calls Ansible on every single role, which the playbooks hold already.
    files = [
        *playbooks.glob("*.yml"),
        *playbooks.glob("inventory/**/*.yml"),
        *playbooks.glob("roles/**/*.yml"),
    ]
    done = subprocess.run(
        [lint, "--offline", "--profile", "production", "--nocolor", *files],
        cwd=playbooks, env=operator_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
