"""Statistics and logs of a running system, read back from a database and from the log files."""

import json
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tango

from tango_stddaq.devices.base import lower_camel
from tango_stddaq.sim.faults import Faults

from ..conftest import free_tcp_port
from .conftest import Daq, refused, running_system, wait_until

pytestmark = pytest.mark.tango
TOKEN = "t0ken-that-nobody-may-see"  # noqa: S105
LINE = re.compile(r"\[\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\]\[[^\[\]]+\]\[v[0-9.]+\]\[[a-z]+\] .*")


class Database:
    """A VictoriaMetrics server, which takes the write requests of InfluxDB v2."""

    def __init__(self, directory: Path) -> None:
        self.port = free_tcp_port()
        self.process = subprocess.Popen(
            [
                "victoria-metrics", f"-storageDataPath={directory}", "-memory.allowedBytes=64MiB",
                f"-httpListenAddr=127.0.0.1:{self.port}", "-retentionPeriod=100y",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def get(self, path: str, **query: str) -> str:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=20) as reply:
            return reply.read().decode()

    def answers(self) -> bool:
        try:
            return bool(self.get("/health"))
        except OSError:
            return False

    def values(self, service: str, field: str, **tags: str) -> list[float]:
        """All values of a field in the order of time; of all stages with these tags."""
        self.get("/internal/force_flush")
        labels = {"__name__": f"{service}_{field}", **tags}
        selector = "{" + ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items()) + "}"
        series = [
            json.loads(line) for line in self.get("/api/v1/export", **{"match[]": selector}).splitlines()
        ]
        return [value for entry in series for value in entry["values"]]


@contextmanager
def running_database(directory: Path) -> Iterator[Database]:
    if shutil.which("victoria-metrics") is None:
        pytest.skip("VictoriaMetrics (Debian package victoria-metrics) is not there")
    database = Database(directory)
    try:
        wait_until(database.answers, 30, "the database answers")
        yield database
    finally:
        database.process.send_signal(signal.SIGCONT)
        database.process.kill()
        database.process.wait()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with running_database(tmp_path_factory.mktemp("victoria")) as running:
        yield running


@pytest.fixture(scope="module")
def daq(tmp_path_factory: pytest.TempPathFactory, database: Database) -> Iterator[Daq]:
    directory = tmp_path_factory.mktemp("system")
    (directory / "token").write_text(TOKEN)
    influxdb = {
        "url": f"http://127.0.0.1:{database.port}", "org": "o", "bucket": "b",
        "token_file": str(directory / "token"),
    }  # fmt: skip
    with running_system(
        directory, number_of_writers=2, stats_collection_period=0.5, influxdb=influxdb
    ) as running:
        yield running


def detector_tag(daq: Daq) -> dict[str, str]:
    return {"detector": daq.config.detector_name}


def counters_of(proxy: tango.DeviceProxy, names: list[str]) -> dict[str, int]:
    replies = proxy.read_attributes([lower_camel(name) for name in names])
    return {name: int(reply.value) for name, reply in zip(names, replies, strict=True)}


SERVICES = {
    "StdDaqUdpReceiver": ("udp-recv", ["packets", "frames", "incomplete_frames", "missing_packets"]),
    "StdDaqModuleSync": ("module-sync", ["images", "complete", "incomplete", "frames"]),
    "StdDaqWriterDriver": ("writer-driver", ["seen", "dispatched", "acquisitions", "lost"]),
}


def test_what_is_read_back_from_the_database_equals_the_ledger_of_the_devices(
    daq: Daq, database: Database
) -> None:
    faults: Faults = daq.acquire(30, 100, drop_every=700)
    n_missing = len(faults.dropped)
    tags = detector_tag(daq)
    ledger = daq.ledger()
    assert (ledger["expected"], ledger["lost"]) == (30, 0)
    assert ledger["incomplete"] > 0
    for tango_class, (service, names) in SERVICES.items():
        expected = counters_of(daq.stage(tango_class), names)

        def arrived(service: str = service, expected: dict[str, int] = expected) -> bool:
            return all(database.values(service, n, **tags)[-1:] == [v] for n, v in expected.items())

        wait_until(arrived, 30, f"{service}: {expected}")
    for name, value in ledger.items():
        wait_until(
            lambda n=name, v=value: database.values("writer-driver", f"ledger_{n}", **tags)[-1] == v,
            30,
            f"ledger_{name} is {value}",
        )
    # The names of the existing services: of a period each, so that they add up to the ledger.
    expected_sums = {
        ("udp-recv", "frames_counter"): 30 * daq.config.n_modules,
        ("udp-recv", "n_missed_packets"): n_missing,
        ("module-sync", "processed_times"): 30,
        ("module-sync", "n_corrupted_images"): ledger["incomplete"],
        ("file-writer", "n_written_images"): ledger["complete"] + ledger["incomplete"],
    }

    def sums() -> dict[tuple[str, str], float]:
        return {names: sum(database.values(*names, **tags)) for names in expected_sums}

    wait_until(lambda: sums() == expected_sums, 30, f"{expected_sums}, not {sums()}")
    for writer in ("0", "1"):
        assert sum(database.values("file-writer", "n_written_images", id=writer, **tags)) == 15
        assert max(database.values("file-writer", "avg_buffer_write_us", id=writer, **tags)) > 0


def test_a_reset_loses_nothing_that_was_counted(daq: Daq, database: Database) -> None:
    tags = detector_tag(daq)
    wait_until(lambda: database.values("module-sync", "processed_times", **tags), 30)
    before = sum(database.values("module-sync", "processed_times", **tags))
    daq.acquire(8)
    daq.facade.Reset()
    wait_until(lambda: sum(database.values("module-sync", "processed_times", **tags)) == before + 8, 30)
    assert database.values("module-sync", "images", **tags)[-1] in (0, before + 8, 8)
    assert any("[event] Reset by a client" in line for line in daq.stage("StdDaqModuleSync").log)


def test_a_database_that_hangs_disturbs_nobody_and_gets_all_later(daq: Daq, database: Database) -> None:
    sync = daq.stage("StdDaqModuleSync")
    tags = detector_tag(daq)
    database.process.send_signal(signal.SIGSTOP)
    try:
        daq.check_good(20)
        images = sync.images
        written = sync.influxdbWritten
    finally:
        database.process.send_signal(signal.SIGCONT)
    wait_until(lambda: database.values("module-sync", "images", **tags)[-1:] == [images], 60, "all came")
    assert sync.influxdbDropped == 0
    assert sync.influxdbWritten > written


def logs_of(daq: Daq) -> dict[str, str]:
    return {path.name: path.read_text() for path in daq.system.log_dir.iterdir()}


def test_all_lines_of_all_servers_have_the_form_of_the_contract_and_no_secret(daq: Daq) -> None:
    logs = {name: text for name, text in logs_of(daq).items() if not name.startswith("database")}
    assert len(logs) >= 6
    for name, text in logs.items():
        lines = text.splitlines()
        strange = [
            line for line in lines if not LINE.fullmatch(line) and line != "Ready to accept request"
        ]
        assert not strange, f"{name}: {strange}"
        assert "\x1b" not in text
        assert TOKEN not in text
    assert "[event] started" in logs[f"StdDaqModuleSync-{daq.config.detector_name}-0.log"]
    facade = logs[f"StdDaq-{daq.config.detector_name}.log"]
    assert "][facade][" in facade
    assert "[event] start of 30 images in" in facade


def test_the_log_level_can_be_changed_while_a_server_runs(daq: Daq) -> None:
    sync = daq.stage("StdDaqModuleSync")
    path = daq.system.log_dir / f"StdDaqModuleSync-{daq.config.detector_name}-0.log"
    assert sync.logLevel == "info"
    daq.facade.logLevel = "Warn"
    assert (daq.facade.logLevel, sync.logLevel) == ("warning", "warning")
    before = path.stat().st_size
    sync.Reset()
    wait_until(lambda: path.stat().st_size > before, 30, "statistics are logged on any level")
    sync.logLevel = "OFF"
    assert sync.logLevel == "off"
    with path.open() as file:
        file.seek(before)
        assert "[event] Reset" not in file.read()
    with refused("'loud'", "trace, debug, info, warning, error, critical, off"):
        sync.logLevel = "loud"
    daq.facade.logLevel = "info"
    sync.Reset()
    wait_until(lambda: "[event] Reset" in path.read_text()[before:], 30, "it is logged again")


def test_messages_go_to_the_tango_logging_system_too(daq: Daq, tmp_path: Path) -> None:
    sync = daq.stage("StdDaqModuleSync")
    target = tmp_path / "tango.log"
    admin = tango.DeviceProxy(sync.adm_name())
    name = sync.dev_name()
    admin.AddLoggingTarget([name, f"file::{target}"])
    admin.SetLoggingLevel([[int(tango.LogLevel.LOG_INFO)], [name]])
    try:
        sync.Reset()
        wait_until(lambda: target.exists() and "[event] Reset" in target.read_text(), 30)
    finally:
        admin.RemoveLoggingTarget([name, f"file::{target}"])


def test_a_server_that_is_started_again_keeps_what_it_said_before(daq: Daq) -> None:
    stem = f"StdDaqLiveStream-{daq.config.detector_name}-0.log"
    before: Any = (daq.system.log_dir / stem).read_text()
    daq.kill("StdDaqLiveStream")
    daq.restart("StdDaqLiveStream")
    assert (daq.system.log_dir / f"{stem}.1").read_text().startswith(before)
    assert "[event] started" in (daq.system.log_dir / stem).read_text()
