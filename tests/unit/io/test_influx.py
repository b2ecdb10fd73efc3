"""Statistics to an InfluxDB server: batches, drops that are counted, and servers that misbehave."""

import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tango_stddaq.config_entries import InfluxConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io.influx import TOKEN_VARIABLE, InfluxSink, read_token, sink

from ...conftest import free_tcp_port

SECRET = "s3cr3t-token"  # noqa: S105


def wait_until(predicate: Callable[[], Any], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Server(ThreadingHTTPServer):
    """Takes what is written and answers as it is told to."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.status = 204
        self.requests: list[tuple[str, str, list[str]]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def lines(self) -> list[str]:
        return [line for _path, _token, lines in self.requests for line in lines]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.go_on.wait(60)
        if self.server.status < 300:
            self.server.requests.append((self.path, self.headers["Authorization"], body.split("\n")))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
        server.go_on.set()
        server.shutdown()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    return path


def settings(server: Server, token_file: Path, **more: object) -> InfluxConfig:
    return InfluxConfig(
        url=f"http://127.0.0.1:{server.server_port}", org="psi", bucket="daq",
        token_file=str(token_file), **more,
    )  # fmt: skip


def test_lines_arrive_in_order_in_batches_with_the_token(server: Server, token_file: Path) -> None:
    influx = InfluxSink(settings(server, token_file))
    lines = [f"m n={n}i {n}" for n in range(2500)]
    for line in lines:
        influx.write(line)
    wait_until(lambda: influx.n_written == 2500, "all are written")
    influx.close()
    assert server.lines == lines
    assert len(server.requests) <= 10
    path, token, _ = server.requests[0]
    assert path == "/api/v2/write?org=psi&bucket=daq&precision=ns"
    assert token == f"Token {SECRET}"
    assert (influx.n_dropped, influx.n_waiting) == (0, 0)


def test_what_waits_is_sent_at_the_end(server: Server, token_file: Path) -> None:
    influx = InfluxSink(settings(server, token_file))
    influx.write("m n=1i 1")
    influx.close(30)
    assert server.lines == ["m n=1i 1"]


def test_a_server_that_hangs_costs_the_oldest_lines_and_no_time(
    server: Server, token_file: Path
) -> None:
    server.go_on.clear()
    influx = InfluxSink(settings(server, token_file, timeout_s=60), queue_lines=100)
    influx.write("m n=0i 0")
    wait_until(lambda: influx._sending == 1, "the first is under way")
    started = time.monotonic()
    for number in range(1, 1000):
        influx.write(f"m n={number}i {number}")
    assert time.monotonic() - started < 20  # the server would take 60
    assert influx.n_dropped == 899
    server.go_on.set()
    wait_until(lambda: influx.n_waiting == 0, "the rest is written")
    influx.close()
    assert server.lines == [f"m n={n}i {n}" for n in (0, *range(900, 1000))]
    assert influx.n_written + influx.n_dropped == 1000


def test_lines_wait_for_a_server_that_comes_back(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tango_stddaq.influxdb")
    port = free_tcp_port()
    influx = InfluxSink(
        InfluxConfig(url=f"http://127.0.0.1:{port}", bucket="daq", token_file=str(token_file))
    )
    influx.write("m n=1i 1")
    wait_until(lambda: influx.error, "it is refused")
    assert influx.n_waiting == 1
    with Server(port) as server:
        wait_until(lambda: influx.n_written == 1, "it is written")
        influx.close()
        server.shutdown()
        assert server.lines == ["m n=1i 1"]
    assert influx.n_dropped == 0
    messages = [record.getMessage() for record in caplog.records]
    assert sum("lines wait" in message for message in messages) == 1, messages
    assert sum("takes lines again; 0 were dropped" in message for message in messages) == 1


@pytest.mark.parametrize(("status", "waits"), [(400, False), (413, False), (401, True), (503, True)])
def test_only_lines_that_the_server_will_never_take_are_given_up(
    server: Server, token_file: Path, status: int, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = status
    influx = InfluxSink(settings(server, token_file))
    influx.write("m n=1i 1")
    wait_until(lambda: influx.error, "it is refused")
    assert f"HTTP {status}" in influx.error
    assert (influx.n_dropped, influx.n_waiting) == ((0, 1) if waits else (1, 0))
    server.status = 204
    influx.write("m n=2i 2")
    wait_until(lambda: server.lines[-1:] == ["m n=2i 2"], "the next is written")
    influx.close()
    assert server.lines == (["m n=1i 1"] if waits else []) + ["m n=2i 2"]
    assert SECRET not in caplog.text


def test_a_process_that_ends_does_not_wait_for_a_server_that_hangs(
    server: Server, token_file: Path
) -> None:
    server.go_on.clear()
    influx = InfluxSink(settings(server, token_file, timeout_s=60))
    influx.write("m n=1i 1")
    wait_until(lambda: influx._sending, "it is under way")
    influx.close(0.05)
    assert influx.n_dropped == 1


def test_the_token_comes_from_a_file_or_the_environment(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"url": "http://127.0.0.1:1", "bucket": "b"}
    assert read_token(InfluxConfig(**base, token_file=str(token_file))) == SECRET
    monkeypatch.setenv(TOKEN_VARIABLE, "from-environment")
    assert read_token(InfluxConfig(**base)) == "from-environment"
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert read_token(InfluxConfig(**base)) == ""


@pytest.mark.parametrize("content", ["", "two words", "a\nb", "x" * 5000, "\N{SNOWMAN}"])
def test_a_file_that_holds_no_token_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"token_file .*token") as caught:
        read_token(InfluxConfig(url="http://a:1", bucket="b", token_file=str(path)))
    assert not content or content not in str(caught.value)


def test_a_token_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(ConfigError, match=f"{path}: cannot be read: No such file"):
        read_token(InfluxConfig(url="http://a:1", bucket="b", token_file=str(path)))


def test_all_stages_of_a_process_share_a_sink() -> None:
    one = InfluxConfig(url="http://127.0.0.1:9", bucket="shared")
    assert sink(one) is sink(InfluxConfig(url="http://127.0.0.1:9", bucket="shared"))
    assert sink(None) is None


AT_EXIT = """
    import sys, time
    from tango_stddaq.config_entries import InfluxConfig
    from tango_stddaq.io import influx
    sink = influx.sink(InfluxConfig(url=sys.argv[1], bucket="b", timeout_s=60))
    sink.write("m n=1i 1")
    while not (sink.n_written or sink._client):
        time.sleep(0.01)
    sink.write("m n=2i 2")
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_a_program_that_ends_sends_the_last_line_and_ends_quietly(server: Server, hangs: bool) -> None:
    if hangs:
        server.go_on.clear()
    url = f"http://127.0.0.1:{server.server_port}"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AT_EXIT), url],
        capture_output=True, text=True, timeout=50, check=True,
    )  # fmt: skip
    if hangs:
        assert result.stderr == f"InfluxDB at {url}: 2 lines were dropped\n"
    else:
        assert result.stderr == ""
        assert server.lines == ["m n=1i 1", "m n=2i 2"]
    assert result.stdout == ""
