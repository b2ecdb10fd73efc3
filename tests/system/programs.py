"""The `stddaq` command as child processes, and what tests wait for."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tango_stddaq.config import DaqConfig

STDDAQ = [sys.executable, "-m", "tango_stddaq.cli.main"]
PATIENCE_S = 60.0
"""A cold start compiles code, on a machine that others use too."""


def wait_until(predicate: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def stddaq(*arguments: object, timeout_s: float = PATIENCE_S) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(
        [*STDDAQ, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
    )


def refused(*arguments: object, words: tuple[str, ...]) -> None:
    """The call ends with 1 and a text that holds all words, and is no traceback."""
    result = stddaq(*arguments)
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    assert not [word for word in words if word not in result.stderr], result.stderr


def save(config: DaqConfig, path: Path) -> Path:
    path.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    return path


@dataclass
class Program:
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        def seen() -> bool:
            assert self.process.poll() is None or text in self.output, self.output
            return text in self.output

        wait_until(seen, f"{text!r} in the output", timeout_s)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 20) -> tuple[int, float]:
        """Send a signal; returns the exit code and the seconds until the end."""
        started = time.monotonic()
        self.process.send_signal(number)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout_s:g} s: {self.output}") from None
        return code, time.monotonic() - started


@contextmanager
def running(log: Path, *arguments: object, **environment: str) -> Iterator[Program]:
    """The command as a child that is gone afterwards."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*STDDAQ, *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TERM": "dumb", "COLUMNS": "200", **environment},
        )
    try:
        yield Program(process, log)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pids_with(text: str) -> list[int]:
    """Living processes that have `text` in their command line or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in command:
            found.append(int(entry.name))
    return found
