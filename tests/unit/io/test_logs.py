"""The text log: its form, its levels, floods of messages, files of bounded size, and what gets lost."""

import logging
import os
import re
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tango_stddaq import __version__
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import logs
from tango_stddaq.io.log_flood import FloodGate, Kind
from tango_stddaq.io.log_output import LogOutput, old_file, rotate
from tango_stddaq.io.logs import LineFormatter

HEAD = (
    r"\[(0[1-9]|1[0-2])-([0-2]\d|3[01]) ([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}\]"
    rf"\[([^\[\]]+)\]\[v{re.escape(__version__)}\]\[([a-z]+)\] (.*)"
)


class Log:
    """A logger that writes to a file."""

    def __init__(self, to: Path, **options: object) -> None:
        self.path = to
        self.descriptor = os.open(to, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        self.output = LogOutput(self.descriptor, **options)
        self.output.setFormatter(LineFormatter("service"))
        self.logger = logging.Logger("test", logs.TRACE)
        self.logger.addHandler(self.output)

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    @property
    def messages(self) -> list[str]:
        return [re.fullmatch(HEAD, line)[6] for line in self.lines]

    def close(self) -> None:
        self.output.close()
        os.close(self.descriptor)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "a.log")
    yield log
    log.close()


@pytest.mark.parametrize("level", ["trace", "debug", "info", "warning", "error", "critical"])
def test_a_line_is_as_the_contract_says(log: Log, level: str) -> None:
    log.logger.log(logs._LEVELS[level], "number %d", 5, extra={"service": "udp-recv 0-3"})
    found = re.fullmatch(HEAD, log.lines[0])
    assert found, log.lines
    assert (found[4], found[5], found[6]) == ("udp-recv 0-3", level, "number 5")


def test_a_message_of_several_lines_stays_one_line_and_moves_no_cursor(log: Log) -> None:
    log.logger.info("first\nsecond \x1b[31mred\x1b[0m \r\u2028end")
    assert log.messages == [r"first | second \x1b[31mred\x1b[0m \x0d\x2028end"]


def test_every_line_of_a_traceback_is_complete(log: Log) -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        log.logger.exception("it failed")
    assert len(log.messages) >= 4
    assert log.messages[-1] == "ValueError: odd"


def test_a_service_with_brackets_does_not_end_its_field(log: Log) -> None:
    log.logger.info("x", extra={"service": "live-stream tcp://[::1]:2000"})
    assert re.fullmatch(HEAD, log.lines[0])[4] == "live-stream tcp://(::1):2000"


def test_an_unprintable_name_of_a_file_is_written_all_the_same(log: Log) -> None:
    log.logger.info("file %s", b"\xff.h5".decode(errors="surrogateescape"))
    assert log.messages == [r"file \udcff.h5"]


@pytest.fixture
def _level() -> Iterator[None]:
    before = logging.getLogger(logs.ROOT).level
    yield
    logging.getLogger(logs.ROOT).setLevel(before)


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("spelling", [*logs.LEVELS, "Warn", "ERR", "OFF", "Info"])
def test_the_level_can_be_set_in_any_spelling_and_read_back(spelling: str) -> None:
    logs.set_level(spelling)
    assert logs.level() == {"Warn": "warning", "ERR": "error"}.get(spelling, spelling.lower())


def test_a_level_that_is_none_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"'loud': allowed are trace, debug, info"):
        logs.set_level("loud")


def test_warnings_that_are_alike_are_written_a_few_times_then_counted(log: Log) -> None:
    for number in range(100):
        log.logger.warning("image %d dropped", number)
    log.logger.warning("another")
    log.logger.info("image 7 dropped")
    assert log.messages == [f"image {n} dropped" for n in range(5)] + ["another", "image 7 dropped"]
    log.output.close()
    assert log.messages[-1] == "came 95 times more, with other numbers: image # dropped"
    assert "][warning] came 95" in log.lines[-1]


def test_the_count_comes_by_itself_when_the_flood_is_over(tmp_path: Path) -> None:
    log = Log(tmp_path / "a.log", gate=FloodGate(1, window_s=0.05))
    try:
        for number in range(4):
            log.logger.error("fault %d", number)
        timer = log.output._timer
        timer.join(30)
        assert log.messages == ["fault 0", "came 3 times more, with other numbers: fault #"]
    finally:
        log.close()


def test_events_are_never_held_back(log: Log) -> None:
    for _ in range(20):
        log.logger.error("[event] the same")
    assert len(log.lines) == 20


def test_a_gate_counts_each_kind_for_itself_and_forgets() -> None:
    gate = FloodGate(2, 10.0)
    a, b = Kind.of("a", 30, "x 1"), Kind.of("b", 30, "x 1")
    assert a == Kind.of("a", 30, "x 22")
    assert [gate.admit(a, 0.0) for _ in range(4)] == [True, True, False, False]
    assert gate.admit(b, 5.0)
    assert gate.due(9.0) == []
    assert gate.due(10.0) == [(a, 2)]
    assert gate.admit(a, 11.0)
    for number in range(5000):
        gate.due(12.0)
        gate.admit(Kind("c", 30, str(number)), 12.0)
    assert len(gate._windows) <= 1001


def test_a_file_is_bounded_and_older_lines_are_kept_in_numbered_files(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.touch()
    log = Log(path, path=path, file_bytes=2000)
    try:
        for number in range(100):
            log.logger.info("line %d", number)
    finally:
        log.close()
    files = sorted(tmp_path.iterdir())  # a.log, a.log.1, ...
    assert len(files) >= 3
    assert all(file.stat().st_size < 2200 for file in files)
    found = [
        int(number)
        for file in reversed(files)
        for number in re.findall(r"\] line (\d+)$", file.read_text(), re.MULTILINE)
    ]
    assert found == list(range(100))
    assert (
        path.read_text().splitlines()[0].endswith("[event] a new file; what came before is in a.log.1")
    )


def test_at_most_four_old_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for number in range(7):
        path.write_text(str(number))
        rotate(path)
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {
        "a.log.1": "6", "a.log.2": "5", "a.log.3": "4", "a.log.4": "3",
    }  # fmt: skip


def test_a_file_that_is_not_its_output_is_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_text("x" * 5000)
    log = Log(tmp_path / "a.log", path=other, file_bytes=10)
    try:
        log.logger.info("a")
        log.logger.info("b")
    finally:
        log.close()
    assert other.stat().st_size == 5000
    assert len(log.lines) == 2


FULL_DISK = """
    import logging, os, resource, signal
    from tango_stddaq.io import logs
    logs.configure("full")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = logging.getLogger("tango_stddaq.x")
    log.info("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    log.info("lost one")
    log.info("lost two")
    log.info("lost three")
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(1).st_size + 20, hard))
    log.info("torn: four is lost with the rest")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.info("after")
"""


def run(code: str, output: Path, **environment: str) -> None:
    with output.open("ab") as file:
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=file, stderr=subprocess.STDOUT, check=False, timeout=60,
            env={**os.environ, **environment},
        )  # fmt: skip


def test_lines_that_do_not_fit_on_the_disk_are_counted_and_said_afterwards(tmp_path: Path) -> None:
    run(FULL_DISK, tmp_path / "log")
    before, torn, note, after = (tmp_path / "log").read_text().splitlines()
    messages = [re.fullmatch(HEAD, line)[6] for line in (before, note, after)]
    assert messages == ["before", "4 log lines were lost: File too large", "after"]
    assert len(torn) == 20
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1


UNCAUGHT = """
    import logging, threading, warnings
    from tango_stddaq.io import logs
    logs.configure("crash", "error")
    warnings.warn("deprecated thing")
    logging.getLogger("some.library").error("of a library")
    logging.getLogger("some.library").info("not shown")
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
    raise KeyError("gone")
"""


def test_what_nobody_caught_and_what_libraries_say_has_the_same_form(tmp_path: Path) -> None:
    run(UNCAUGHT, tmp_path / "log")
    lines = (tmp_path / "log").read_text().splitlines()
    assert all(re.fullmatch(HEAD, line) for line in lines), lines
    text = "\n".join(lines)
    for expected in (
        "[crash]", "deprecated thing", "[error] of a library", "ZeroDivisionError: division by zero",
        "[critical] uncaught in thread worker", "[critical] uncaught: KeyError: 'gone'",
    ):  # fmt: skip
        assert expected in text
    assert "not shown" not in text


MANY = """
    import logging, os
    from tango_stddaq.io import logs
    logs.configure("many")
    log = logging.getLogger("tango_stddaq.x")
    log.info("first")
    logging.getLogger("tango_stddaq").handlers[0]._file_bytes = 300
    for number in range(12):
        log.info("line %d", number)
    os.write(2, b"from a library in C\\n")
"""


def test_a_program_bounds_the_file_it_was_started_with_and_its_errors_go_there_too(
    tmp_path: Path,
) -> None:
    path = tmp_path / "server.log"
    run(MANY, path, STDDAQ_LOG_FILE=str(path))
    assert old_file(path, 1).exists()
    assert path.stat().st_size < 800
    assert path.read_text().endswith("from a library in C\n")


def test_lines_of_many_threads_stay_whole(log: Log) -> None:
    def say(name: str) -> None:
        for number in range(200):
            log.logger.info("%s %d", name * 50, number)

    threads = [threading.Thread(target=say, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.messages) == 800
