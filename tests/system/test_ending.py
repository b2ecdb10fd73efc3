"""Programs that are told to end: by Ctrl-C, by TERM, and by a terminal that is closed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tango_stddaq.config import DaqConfig

from ..conftest import free_tcp_port
from .programs import pids_with, running, save, wait_until
from .test_demo import answers, left_behind

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

ENDINGS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

IN_A_DESTRUCTOR = """
import os, sys, time
from tango_stddaq.cli.ending import end_in_order

class Old:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(1000):
            pass

end_in_order()
old = Old()
try:
    del old
    time.sleep(60)
finally:
    print("cleaned up")
"""


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_a_signal_in_a_destructor_is_not_lost(number: signal.Signals) -> None:
    result = subprocess.run(
        [sys.executable, "-c", IN_A_DESTRUCTOR, str(int(number))],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert result.stdout == "cleaned up\n"
    code = -number if number == signal.SIGINT else 128 + number  # Python itself ends so by Ctrl-C
    assert result.returncode == code, result.stderr
    assert "ignored" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_up_ends_with_all_it_started(config: DaqConfig, tmp_path: Path, number: int) -> None:
    path, log_dir = save(config, tmp_path / "config.json"), tmp_path / "logs"
    port = free_tcp_port()
    options = ["--simulate", "--rest", "--rest-port", port, "--websocket-port", free_tcp_port()]
    with running(tmp_path / "log", "up", path, "--log-dir", log_dir, *options) as program:
        program.wait_for("Ctrl-C ends it")
        wait_until(lambda: answers(port), "the REST service answers")
        code, _ = program.end(number, 40)
        assert code == 0, program.output
        assert program.output.splitlines()[-1] == "stopping"
    assert not left_behind(config.detector_name)


def test_up_ends_when_all_its_processes_are_told_at_once(config: DaqConfig, tmp_path: Path) -> None:
    """As systemd does it."""
    path, log_dir = save(config, tmp_path / "config.json"), tmp_path / "logs"
    with running(tmp_path / "log", "up", path, "--log-dir", log_dir) as program:
        program.wait_for("Ctrl-C ends it")
        children = pids_with(f"STDDAQ_PARENT_PID={program.process.pid}")
        assert len(children) >= 6  # the database and five kinds of servers
        for pid in [program.process.pid, *children]:
            os.kill(pid, signal.SIGTERM)
        assert program.process.wait(40) == 0, program.output
        assert "Traceback" not in program.output
    assert not left_behind(config.detector_name)


def test_up_ended_while_it_starts_leaves_nothing(config: DaqConfig, tmp_path: Path) -> None:
    path, log_dir = save(config, tmp_path / "config.json"), tmp_path / "logs"
    with running(tmp_path / "log", "up", path, "--log-dir", log_dir) as program:
        wait_until(lambda: list(log_dir.glob("StdDaqModuleSync*")), "servers start")
        assert program.end(signal.SIGTERM, 40)[0] == 143, program.output
        assert "Traceback" not in program.output
    assert not left_behind(config.detector_name)


def test_clients_of_a_system_end(
    config: DaqConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run until they are told to end: to be told is no failure."""
    path, port = save(config, tmp_path / "config.json"), free_tcp_port()
    with running(tmp_path / "log", "up", path, "--log-dir", tmp_path / "logs") as system:
        system.wait_for("Ctrl-C ends it")
        host = re.search(r"TANGO_HOST=(\S+)", system.output)
        assert host is not None
        monkeypatch.setenv("TANGO_HOST", host[1])
        for number in ENDINGS:
            call = ("rest", "--port", port, "--websocket-port", free_tcp_port())
            with (
                running(tmp_path / "rest", *call) as rest,
                # Into a file it would write only at its end.
                running(tmp_path / "watch", "watch", TERM="xterm", FORCE_COLOR="1") as watch,
            ):
                wait_until(lambda: answers(port), "the REST service answers")
                watch.wait_for("module-sync-0")
                for program in (rest, watch):
                    assert program.end(number)[0] == 0, program.output
                    assert "Traceback" not in program.output


def test_a_server_ends_when_told_although_its_parent_blocks_signals_as_starter_does() -> None:
    blocking = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    server = ["-m", "tango_stddaq.devices.live_stream", "x", "-nodb", "-port", str(free_tcp_port())]
    process = subprocess.Popen(
        [sys.executable, "-c", blocking, sys.executable, *server],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert any("Ready to accept request" in line for line in process.stdout)
        process.terminate()
        process.wait(20)
    finally:
        process.kill()
        process.communicate()
