"""Real log lines go through a real log shipper, and the ingest pipeline takes them apart."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tango_stddaq import __version__
from tango_stddaq.config import DaqConfig
from tango_stddaq.io.log_output import old_file, rotate
from tango_stddaq.service_fields import SERVICES

from ..conftest import free_tcp_port
from .ingest import ingest
from .programs import running, save, wait_until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PIPELINE = json.loads((DEPLOY / "filebeat" / "ingest-pipeline.json").read_text())
TEMPLATE = json.loads((DEPLOY / "filebeat" / "index-template.json").read_text())
HEAD = "[07-03 15:50:52.977][%s][v0.13.33][info] "


def parsed(line: str) -> dict[str, Any]:
    return ingest(PIPELINE, {"message": line, "event": {"timezone": "+02:00"}})


# -- the pipeline ----------------------------------------------------------------------------------


def test_a_message_is_taken_apart() -> None:
    document = parsed("[11-24 08:00:00.123][live-stream tcp://*:5555][v0.1.0][warning] losing: a [b] 1")
    assert document["message"] == "losing: a [b] 1"
    assert document["service"] == {"name": "live-stream", "version": "0.1.0"}
    assert document["stddaq"] == {"label": "tcp://*:5555"}
    assert document["log"]["level"] == "warning"
    assert document["@timestamp"].endswith("-11-24T06:00:00.123000+00:00")
    assert document["event"]["original"].startswith("[11-24")


def test_an_event_is_marked() -> None:
    document = parsed(HEAD % "facade" + "[event] Reset by a client")
    assert (document["event"]["action"], document["message"]) == ("event", "Reset by a client")


def test_statistics_become_numbers_with_tags() -> None:
    tags = r"udp-recv,detector=a\,b\=c\ d,host=h,module=0-3"
    line = f"{tags} frames=12i,rate=-0.5,big=1e+20 1795514464087574236"
    document = parsed(HEAD % "udp-recv 0-3" + line)
    assert document["event"]["dataset"] == "udp-recv"
    assert document["stddaq"]["statistics"] == {"frames": "12", "rate": "-0.5", "big": "1e+20"}
    assert all(float(value) for value in document["stddaq"]["statistics"].values())
    assert document["stddaq"]["tags"] == {"detector": r"a\,b\=c\ d", "host": "h", "module": "0-3"}
    assert document["@timestamp"] == "2026-11-24T10:01:04.087000+00:00"


def test_statistics_of_the_existing_programs_are_understood_too() -> None:
    line = (
        "detector=gf-teststand,port=20001,type=array10,source=image,processed_times=3,"
        "repetition_rate_hz=0.30 13385001531304642"
    )
    document = parsed(HEAD % "std_live_stream" + line)
    assert document["stddaq"]["program"] == {
        "detector": "gf-teststand", "port": "20001", "type": "array10", "source": "image",
        "processed_times": "3", "repetition_rate_hz": "0.30",
    }  # fmt: skip


def test_a_line_of_somebody_else_is_kept_as_it_is() -> None:
    document = parsed("Segmentation fault")
    assert document["message"] == "Segmentation fault"
    assert document["tags"] == ["not_a_stddaq_line"]
    assert "error" not in document


def test_the_index_template_has_a_number_for_every_field_of_the_existing_services() -> None:
    properties = TEMPLATE["template"]["mappings"]["properties"]["stddaq"]["properties"]
    numbers = {
        name for name, entry in properties["program"]["properties"].items() if entry["type"] == "double"
    }
    assert numbers == {name for service in SERVICES.values() for name in service.fields}


# -- a real shipper --------------------------------------------------------------------------------


class Elasticsearch(ThreadingHTTPServer):
    """Takes `_bulk` requests as Elasticsearch does."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.documents: list[dict[str, Any]] = []
        self.actions: list[dict[str, Any]] = []
        self.n_requests = 0
        self.refuses = False
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def lines_of(self, path: Path) -> list[str]:
        files = {str(path), *(str(old_file(path, n)) for n in range(1, 5))}
        return [d["message"] for d in list(self.documents) if d["log"]["file"]["path"] in files]


class Handler(BaseHTTPRequestHandler):
    server: Elasticsearch
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(200, {})

    do_GET = do_HEAD  # noqa: N815

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).decode().splitlines()
        if self.server.refuses:
            self._answer(503, {"error": "unavailable"})
            return
        assert self.path.startswith("/_bulk"), self.path
        self.server.n_requests += 1
        self.server.actions += [json.loads(line) for line in lines[::2]]
        self.server.documents += [json.loads(line) for line in lines[1::2]]
        items = [{"create": {"status": 201}} for _ in lines[::2]]
        self._answer(200, {"took": 1, "errors": False, "items": items})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def rsyslog(directory: Path, logs: Path, port: int) -> Iterator[None]:
    """The daemon with our configuration, changed only in its paths and its server."""
    text = (DEPLOY / "rsyslog" / "stddaq.conf").read_text()
    for old, new in {
        "/var/log/stddaq": str(logs),
        "https://elasticsearch.example.org:9200": f"http://127.0.0.1:{port}",
        "/var/spool/rsyslog": str(directory),
        'action.resumeInterval="5"': 'action.resumeInterval="1"',
    }.items():
        assert old in text
        text = text.replace(old, new)
    config, work = directory / "rsyslog.conf", directory / "work"
    work.mkdir()
    config.write_text(f'global(workDirectory="{work}" debug.whitelist="off")\n{text}')
    with (directory / "rsyslog.log").open("wb") as output:
        process = subprocess.Popen(
            ["rsyslogd", "-n", "-f", config, "-i", directory / "pid"],
            stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        )  # fmt: skip
    try:
        yield
        assert process.poll() is None, (directory / "rsyslog.log").read_text()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def need_rsyslog() -> None:
    modules = [*Path("/usr/lib").glob("*/rsyslog/omelasticsearch.so")]
    if shutil.which("rsyslogd", path=f"{os.environ['PATH']}:/usr/sbin") is None or not modules:
        pytest.skip("rsyslog and rsyslog-elasticsearch (Debian packages) are not there")


@pytest.mark.system
def test_real_lines_arrive_whole_and_in_order_and_are_understood(
    config: DaqConfig, tmp_path: Path
) -> None:
    need_rsyslog()
    logs = tmp_path / "logs"
    logs.mkdir()
    changed = config.model_copy(update={"stats_collection_period": 0.3, "number_of_writers": 1})
    path = save(changed, tmp_path / "config.json")
    writer, stream = logs / "file-writer.log", logs / "live-stream.log"
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    port = free_tcp_port()
    with ExitStack() as stack:
        stack.enter_context(rsyslog(tmp_path, logs, port))
        with (
            running(writer, "stage", "file-writer", path, 0) as first,
            running(stream, "stage", "live-stream", path, address) as second,
        ):
            first.wait_for("n_written_images=0,")
            second.wait_for("port=")
            # Only now there is a database.
            elasticsearch = stack.enter_context(Elasticsearch(port))
            stack.callback(elasticsearch.shutdown)
            wait_until(lambda: elasticsearch.documents, "lines that waited arrive")
            first.end()
            second.end()
        for log in (writer, stream):
            wait_until(
                lambda log=log: elasticsearch.lines_of(log) == log.read_text().splitlines(),
                f"all lines of {log.name}, once, in order",
            )
        rotate(writer)
        writer.write_text(HEAD % "file-writer 0" + "in the new file\n")
        wait_until(
            lambda: any("in the new file" in d["message"] for d in list(elasticsearch.documents)),
            "a new file is followed",
        )
        elasticsearch.refuses = True
        with writer.open("a") as file:
            file.write(HEAD % "file-writer 0" + "refused by the server\n")
        refused = tmp_path / "stddaq-refused.json"
        wait_until(
            lambda: refused.exists() and "refused by the server" in refused.read_text(),
            "what the server refuses is kept",
        )
    assert elasticsearch.n_requests < len(elasticsearch.documents)
    ids = [action["create"].pop("_id") for action in elasticsearch.actions]
    assert len(set(ids)) == len(ids)
    wanted = {"create": {"_index": "logs-stddaq-default", "pipeline": "stddaq"}}
    assert all(action == wanted for action in elasticsearch.actions)
    documents = [ingest(PIPELINE, document) for document in elasticsearch.documents]
    assert not [d for d in documents if "tags" in d or "error" in d]
    ours = [d for d in documents if d["service"]["version"] == __version__]
    statistics = [d for d in ours if "statistics" in d["stddaq"]]
    for service, label in {"file-writer": ("id", "0"), "live-stream": ("source", address)}.items():
        found = [d for d in statistics if d["event"]["dataset"] == service]
        assert found
        tags = found[0]["stddaq"]["tags"]
        assert tags["detector"] == config.detector_name
        assert tags[label[0]] == label[1]
        fields = found[0]["stddaq"]["statistics"]
        assert set(SERVICES[service].fields) <= set(fields)
        assert all(re.fullmatch(r"-?[0-9.]+(e[+-]?\d+)?", value) for value in fields.values())
    programs = [d["stddaq"]["program"] for d in ours if "program" in d["stddaq"]]
    file_writer = {"source": "image", "id": "0", "n_written_images": "0"}
    assert any(file_writer.items() <= program.items() for program in programs), programs[:4]
    assert {d["message"] for d in ours if d["event"].get("action") == "event"} >= {"started", "stopped"}
