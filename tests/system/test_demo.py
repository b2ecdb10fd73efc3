"""`stddaq demo` and `stddaq up`: a whole system, and nothing left behind however it ends."""

import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import pytest
import requests
from PIL import Image as PilImage

from ..conftest import eiger_config, free_tcp_port
from .programs import Program, pids_with, running, save, stddaq, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

KEYS = {"images", "complete", "incomplete", "lost", "files", "master", "image_rate_hz", "bytes_per_s"}


def left_behind(name: str) -> list[str]:
    """Shared memory, sockets and processes of a system."""
    paths = [*Path("/dev/shm").glob(f"{name}-*"), *Path("/tmp").glob(f"{name}-*")]
    return [*map(str, paths), *map(str, pids_with(f"{name}-")), *map(str, pids_with(f"{name}/"))]


def test_demo_takes_all_images_and_leaves_files_and_nothing_else(tmp_path: Path) -> None:
    result = stddaq("demo", "--json", "--images", 60, "--output", tmp_path, timeout_s=200)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 1
    said = json.loads(lines[-1])
    assert set(said) >= KEYS
    assert {name: said[name] for name in ("images", "complete", "incomplete", "lost")} == {
        "images": 60, "complete": 60, "incomplete": 0, "lost": 0,
    }  # fmt: skip
    assert said["image_rate_hz"] > 0
    assert said["bytes_per_s"] > 0
    assert len(said["files"]) == 2
    assert all(Path(path).stat().st_size for path in said["files"])
    with h5py.File(said["master"]) as file:
        assert file["entry/data/data"].shape == (60, 514, 1030)
    with PilImage.open(said["picture"]) as picture:
        darkest, brightest = picture.convert("L").getextrema()
    assert darkest != brightest
    name = json.loads((tmp_path / "demo.json").read_text())["detector_name"]
    assert not left_behind(name)


def test_demo_with_lost_packets_says_so(tmp_path: Path) -> None:
    arguments = ["--images", 20, "--drop-every", 500, "--output", tmp_path]
    result = stddaq("demo", "--json", *arguments, timeout_s=200)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    # 4 modules of 64 packets: 5120 packets, 10 of them left out, each of another image
    assert (said["complete"], said["incomplete"], said["lost"]) == (10, 10, 0)


def acquiring(program: Program, output: Path) -> bool:
    assert program.process.poll() is None, program.output
    return bool(list(output.glob("*.h5")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_ended_in_the_middle_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    output = tmp_path / "output"
    with running(tmp_path / "log", "demo", "--images", 2000, "--output", output) as program:
        name = f"DEMO-{program.process.pid}"
        wait_until(lambda: acquiring(program, output), "the acquisition runs", 100)
        code, _ = program.end(number, 40)
        assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
        assert "Traceback" not in program.output
    # Children of a killed one end by themselves.
    wait_until(lambda: not left_behind(name), "everything is gone", 20)


def test_demo_interrupted_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with running(tmp_path / "log", "demo", "--output", output) as program:
        name = f"DEMO-{program.process.pid}"
        wait_until(lambda: list(output.glob("logs/StdDaqModuleSync*")), "servers start", 100)
        assert program.end(signal.SIGINT, 40)[0] == 130
        assert "Traceback" not in program.output
    wait_until(lambda: not left_behind(name), "everything is gone", 20)


CLIENT = """
import sys, time, tango
daq = tango.DeviceProxy(sys.argv[1])
daq.outputPath, daq.filePrefix, daq.imageCount = sys.argv[2], "run_", 20
daq.Start()
print("started", flush=True)
while daq.acquiring:
    time.sleep(0.05)
print(daq.lastFile)
"""


def test_up_serves_a_plain_tango_client_until_it_is_interrupted(
    detector_name: str, tmp_path: Path
) -> None:
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    streams = {address: {"type": "forward"}}
    config = eiger_config(detector_name, live_stream_configs=streams)
    path = save(config, tmp_path / "config.json")
    log_dir = tmp_path / "logs"
    with running(tmp_path / "log", "up", path, "--log-dir", log_dir) as program:
        program.wait_for("Ctrl-C ends it")
        text = program.output
        assert f"{detector_name}/stddaq/facade" in text
        assert address in text
        facade = re.search(r"tango://\S+/stddaq/facade", text)
        assert facade is not None
        with (tmp_path / "client").open("w+") as said:
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, facade[0], str(tmp_path)], stdout=said
            )
            wait_until(lambda: "started" in (tmp_path / "client").read_text(), "the start")
            sent = json.loads(stddaq("simulate", path, "--images", 20).stdout)
            assert sent["sent"] == 20
            assert client.wait(60) == 0
        master = (tmp_path / "client").read_text().split()[-1]
        with h5py.File(master) as file:
            assert file["entry/ledger/complete"][()] == 20
        code, _ = program.end(signal.SIGINT, 40)
        assert code == 0, program.output
        assert "Traceback" not in program.output
    assert not left_behind(detector_name)


SIMULATOR_CLIENT = """
import sys, time, tango
host, name, output = sys.argv[1:]
daq = tango.DeviceProxy(f"tango://{host}/{name}/stddaq/facade")
simulator = tango.DeviceProxy(f"tango://{host}/{name}/stddaq/simulator")
assert simulator.state() == tango.DevState.STANDBY
daq.outputPath, daq.filePrefix, daq.imageCount = output, "run_", 10
daq.Start()
simulator.Start()
while daq.acquiring:
    time.sleep(0.05)
simulator.Stop()
print(daq.imagesComplete, daq.imagesLost)
"""


def answers(port: int) -> bool:
    with suppress(requests.ConnectionError):
        reply = requests.get(f"http://127.0.0.1:{port}/writer/status", timeout=10)
        return bool(reply.json()["status"] == "ok")
    return False


def test_up_with_a_simulator_needs_no_detector(detector_name: str, tmp_path: Path) -> None:
    path = save(eiger_config(detector_name), tmp_path / "config.json")
    port = free_tcp_port()
    rest = ["--rest", "--rest-port", port, "--websocket-port", free_tcp_port()]
    arguments = ["up", path, "--simulate", "--log-dir", tmp_path / "logs", *rest]
    with running(tmp_path / "log", *arguments) as program:
        program.wait_for("Ctrl-C ends it")
        wait_until(lambda: answers(port), "the REST service answers")
        status = requests.get(f"http://127.0.0.1:{port}/writer/status", timeout=10).json()
        assert status["writer"]["state"] == "READY"
        device = f"{detector_name}/stddaq/simulator"
        line = next(line for line in program.output.splitlines() if line.startswith(device))
        assert line.split() == [device, "StdDaqSimulator", "STANDBY"]
        assert f"DeviceProxy('{device}').Start()" in program.output
        host = re.search(r"TANGO_HOST=(\S+)", program.output)
        assert host is not None
        client = subprocess.run(
            [sys.executable, "-c", SIMULATOR_CLIENT, host[1], detector_name, str(tmp_path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert client.stdout.split() == ["10", "0"], client.stderr
        code, _ = program.end(signal.SIGINT, 40)
        assert code == 0, program.output
    assert not left_behind(detector_name)
