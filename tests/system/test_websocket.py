"""WebSocket control: whatever a client sends or does, it gets an answer and harms nobody else."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tango_stddaq.config import DaqConfig
from tango_stddaq.control.websocket_server import WebSocketServer
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.writer_driver import WriterDriver

pytestmark = [pytest.mark.system, pytest.mark.expects_errors]


@pytest.fixture
def server(config: DaqConfig) -> Iterator[WebSocketServer]:
    writer, driver = FileWriter(config, 0), WriterDriver(config)
    with WebSocketServer(driver, 0) as running:
        writer.start()
        driver.start()
        yield running
        driver.stop()
        writer.stop()


@pytest.fixture
def client(server: WebSocketServer) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{server.port}") as connection:
        yield connection


Wanted = Callable[[dict[str, Any]], bool]


def read(client: ClientConnection, wanted: Wanted, timeout_s: float = 30) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        message: dict[str, Any] = json.loads(client.recv(timeout=timeout_s))
        if wanted(message):
            return message
        assert time.monotonic() < deadline, message


def answer(client: ClientConnection, text: str | bytes) -> dict[str, Any]:
    client.send(text)
    return read(client, lambda message: "reason" in message)


def status(client: ClientConnection, wanted: str) -> dict[str, Any]:
    return read(client, lambda message: message["status"] == wanted)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"start"', b"\xff\xfe", "[" * 50_000, "9" * 5000, '{"command":}'],
    ids=lambda text: repr(text[:10]),
)
def test_what_is_no_command_is_an_error(client: ClientConnection, text: str | bytes) -> None:
    message = answer(client, text)
    assert message["status"] == "error"
    assert "not a command" in message["reason"]
    status(client, "idle")


@pytest.mark.parametrize("command", ["go", None, 3, [], {"command": "start"}, "START"])
def test_unknown_command_is_an_error_that_names_it(client: ClientConnection, command: object) -> None:
    message = answer(client, json.dumps({"command": command}))
    assert message["status"] == "error"
    assert repr(command) in message["reason"]
    assert "start and stop" in message["reason"]
    status(client, "idle")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"path": 3}, "path 3"),
        ({"path": None}, "path None"),
        ({"path": ""}, "empty"),
        ({"path": "/no/such/directory"}, "/no/such/directory"),
        ({"path": "relative"}, "absolute"),
        ({"path": "/dev/null"}, "not a directory"),
        ({"path": "/tmp/\x00"}, "does not exist"),
        ({"path": "/" + "a" * 5000}, "does not exist"),
        ({"path": "\ud800"}, "absolute"),
        ({"file_prefix": 1}, "file_prefix 1"),
        ({"file_prefix": "../up"}, "../up"),
        ({"file_prefix": ""}, "filePrefix"),
        ({"file_prefix": "\ud800"}, "UTF-8"),
        ({"n_image": "10"}, "n_image '10'"),
        ({"n_image": 1.5}, "n_image 1.5"),
        ({"n_image": True}, "n_image True"),
        ({"n_image": 0}, "0"),
        ({"n_image": -1}, "-1"),
        ({"n_image": 2**80}, "free"),
        ({"start_id": -1}, "-1"),
        ({"start_id": []}, "start_id []"),
        ({"writer_id": 2**40}, str(2**40)),
        ({"overwrite": 1}, "overwrite 1"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_start_that_cannot_work_is_rejected_with_the_reason(
    client: ClientConnection, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    start = {"command": "start", "path": str(tmp_path), "file_prefix": "run", "n_image": 5, **change}
    message = answer(client, json.dumps(start))
    assert message["status"] == "rejected"
    assert word in message["reason"]
    status(client, "idle")
    assert not list(tmp_path.glob("*.h5"))


def test_files_are_overwritten_only_on_request(client: ClientConnection, tmp_path: Path) -> None:
    start = {"command": "start", "path": str(tmp_path), "file_prefix": "run"}
    for name in ("run0.h5", "run_master.h5"):
        (tmp_path / name).write_text("old")
    message = answer(client, json.dumps(start))
    assert message["status"] == "rejected"
    assert "exists already" in message["reason"]
    assert (tmp_path / "run0.h5").read_text() == "old"
    client.send(json.dumps({**start, "overwrite": True}))
    status(client, "waiting_for_first_image")
    client.send('{"command":"stop"}')
    status(client, "file_saved")
    for name in ("run0.h5", "run_master.h5"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89HDF")


def test_second_start_is_rejected_and_the_first_goes_on(
    client: ClientConnection, tmp_path: Path
) -> None:
    start = json.dumps({"command": "start", "path": str(tmp_path)})
    client.send(start)
    status(client, "waiting_for_first_image")
    message = answer(client, start)
    assert message["status"] == "rejected"
    assert "under way" in message["reason"]
    status(client, "waiting_for_first_image")
    client.send('{"command":"stop"}')
    status(client, "file_saved")


def test_stop_of_nothing_is_harmless(client: ClientConnection) -> None:
    client.send('{"command":"stop"}')
    for _ in range(3):
        assert json.loads(client.recv(timeout=10)) == {"status": "idle"}


def test_status_comes_ten_times_a_second(client: ClientConnection) -> None:
    started = time.monotonic()
    for _ in range(11):
        client.recv(timeout=10)
    assert time.monotonic() - started > 0.8


def test_all_clients_hear_of_every_change(
    server: WebSocketServer, client: ClientConnection, tmp_path: Path
) -> None:
    with connect(f"ws://127.0.0.1:{server.port}") as other:
        client.send(json.dumps({"command": "start", "path": str(tmp_path)}))
        for word in ("started", "creating_file", "file_created", "waiting_for_first_image"):
            status(other, word)
        other.send('{"command":"stop"}')
        for word in ("stop", "saving_file", "file_saved", "idle"):
            status(client, word)


def test_client_that_floods_still_gets_the_status(client: ClientConnection) -> None:
    deadline = time.monotonic() + 10
    seen = 0
    while seen < 5:
        assert time.monotonic() < deadline
        client.send('{"command":"stop"}')
        try:
            seen += json.loads(client.recv(timeout=0.01))["status"] == "idle"
        except TimeoutError:
            continue


def test_client_that_vanishes_harms_nobody(
    server: WebSocketServer, client: ClientConnection, tmp_path: Path
) -> None:
    with connect(f"ws://127.0.0.1:{server.port}") as gone:
        gone.send(json.dumps({"command": "start", "path": str(tmp_path)}))
        status(client, "waiting_for_first_image")
        gone.socket.shutdown(socket.SHUT_RDWR)  # no closing handshake
    status(client, "waiting_for_first_image")
    client.send('{"command":"stop"}')
    status(client, "file_saved")
    assert (tmp_path / "file_master.h5").exists()


def test_client_that_never_reads_does_not_hold_up_the_driver(
    server: WebSocketServer, client: ClientConnection, tmp_path: Path
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as frozen:
        frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        frozen.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        asked = b"\x81\xfe\xea\x60\0\0\0\0" + b"x" * 60_000  # a masked text frame: an error each
        frozen.settimeout(1)
        try:
            for _ in range(200):
                frozen.sendall(asked)
        except TimeoutError:
            pass
        client.send(json.dumps({"command": "start", "path": str(tmp_path)}))
        status(client, "waiting_for_first_image")
        client.send('{"command":"stop"}')
        status(client, "file_saved")


def test_end_does_not_wait_for_a_client_that_does_not_answer(config: DaqConfig) -> None:
    server = WebSocketServer(WriterDriver(config), 0)
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        silent.recv(4096)
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 5
