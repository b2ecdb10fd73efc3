"""`stddaq watch` on a running system: what it shows, and what it says where there is nothing to show."""

import os
import subprocess
import sys

import pytest
from rich.console import Console

from tango_stddaq.cli.watcher import Watcher, find_facade, proxy_of, sparkline
from tango_stddaq.errors import StdDaqError

from .conftest import Daq, wait_until

pytestmark = pytest.mark.tango


def drawn(watcher: Watcher) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        console.print(watcher.look())
    return capture.get()


def test_it_shows_ledger_states_and_rates(daq: Daq) -> None:
    daq.check_good(7)
    text = drawn(Watcher(daq.facade))
    assert daq.facade.dev_name() in text
    assert "expected 7  complete 7  incomplete 0  lost 0" in text
    assert daq.facade.lastFile in text
    for server in daq.system.plan.stages:
        line = next(line for line in text.splitlines() if server.device.rpartition("/")[2] in line)
        assert "RUNNING" in line or "ALARM" in line


def test_a_stage_that_is_down_and_one_that_loses_are_told(daq: Daq) -> None:
    watcher = Watcher(daq.facade)
    daq.acquire(10, drop_every=100)
    text = drawn(watcher)
    assert "missingPackets" in text or "missing_packets" in text
    daq.kill("StdDaqLiveStream")
    wait_until(
        lambda: any(
            "live-stream-0" in line and ("not running" in line or "no answer" in line)
            for line in drawn(watcher).splitlines()
        ),
        30,
    )
    daq.restart("StdDaqLiveStream")
    assert "live-stream-0" in drawn(watcher)


def test_the_command_finds_the_facade_and_ends(daq: Daq) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tango_stddaq.cli.main", "watch", "-n", "2", "--period", "0.2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TANGO_HOST": daq.system.tango_host, "TERM": "dumb", "COLUMNS": "160"},
    )
    assert result.returncode == 0, result.stderr
    assert daq.facade.dev_name() in result.stdout
    assert "module-sync-0" in result.stdout
    assert find_facade().lower() == daq.facade.dev_name().lower()


def test_a_facade_that_is_not_there_is_named(daq: Daq) -> None:
    with pytest.raises(StdDaqError, match="no/such/device"):
        proxy_of("no/such/device")


def test_a_facade_that_stops_answering_is_said_and_found_again(daq: Daq) -> None:
    watcher = Watcher(daq.facade)
    daq.kill("StdDaq")
    assert "does not answer" in drawn(watcher)
    daq.restart("StdDaq")
    assert "expected" in drawn(watcher)


def test_a_sparkline_goes_from_0_to_the_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([0, 50, 100]) == "▁▅█"
