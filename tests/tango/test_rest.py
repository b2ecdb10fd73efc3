"""The REST and WebSocket service of a running system, used by the existing client package unchanged."""

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import requests
import tango
from PIL import Image
from std_daq_client import StdDaqClient
from std_daq_client.client import StdDaqAdminException
from tango import DevState
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ..conftest import free_tcp_port
from ..system.programs import Program
from ..system.programs import running as program_running
from .conftest import Daq, running_system, wait_until

pytestmark = pytest.mark.tango

BIN = Path(sys.executable).parent
N_IMAGES = 12


@dataclass
class Service:
    """The service of a system."""

    daq: Daq
    port: int
    websocket_port: int
    program: Program

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> StdDaqClient:
        return StdDaqClient(self.url)

    @property
    def simulator(self) -> tango.DeviceProxy:
        assert self.daq.system.plan.simulator is not None
        return self.daq.system.device(self.daq.system.plan.simulator)

    def send_images(self, n_images: int, after_s: float = 0.0) -> None:
        """Let the simulator send, once images are awaited."""

        def send() -> None:
            with tango.EnsureOmniThread():
                facade = self.daq.system.facade
                status = ""
                while status != "waiting_for_first_image":
                    status = facade.acquisitionStatus
                    time.sleep(0.02)
                time.sleep(after_s)
                simulator = self.simulator
                simulator.imageCount = n_images
                simulator.Start()

        threading.Thread(target=send, daemon=True).start()

    def get(self, path: str, **query: object) -> requests.Response:
        return requests.get(self.url + path, params=query, timeout=20)  # type: ignore[arg-type]

    def post(self, path: str, body: object = None, **query: object) -> requests.Response:
        return requests.post(self.url + path, json=body, params=query, timeout=60)  # type: ignore[arg-type]


@contextmanager
def served(daq: Daq, log: Path, *options: object) -> Iterator[Service]:
    port, websocket_port = free_tcp_port(), free_tcp_port()
    call = ("rest", daq.system.plan.facade.device, "--port", port, "--websocket-port", websocket_port)
    with program_running(log, *call, "--output-root", daq.output, *options) as program:
        service = Service(daq, port, websocket_port, program)

        def answers() -> bool:
            assert program.process.poll() is None, program.output
            try:
                return service.get("/openapi.json").ok
            except requests.ConnectionError:
                return False

        wait_until(answers, 30, "the service answers")
        yield service


@pytest.fixture(scope="module")
def daq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daq]:
    with running_system(tmp_path_factory.mktemp("rest"), simulate=True, number_of_writers=2) as running:
        yield running


@pytest.fixture(scope="module")
def service(daq: Daq, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(daq, tmp_path_factory.mktemp("service") / "log") as running:
        yield running


@pytest.fixture(autouse=True)
def _idle(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begin and end with nothing under way."""
    yield
    if "service" in request.fixturenames:
        used: Service = request.getfixturevalue("service")
        wait_until(lambda: used.simulator.state() != DevState.RUNNING, 20, "the simulator is done")
        wait_until(lambda: used.client.get_status()["state"] == "READY", 20, "the writer is ready")


def check_file(daq: Daq, path: Path, n_images: int) -> None:
    detector = daq.detector
    with h5py.File(path) as file:
        data = file["entry/data"]
        ids = data["image_id"][()].tolist()
        assert len(ids) == n_images
        assert ids == list(range(ids[0], ids[0] + n_images))
        for at, image_id in enumerate(ids):
            np.testing.assert_array_equal(data["data"][at], detector.truth(image_id))
        ledger = file["entry/ledger"]
        assert int(ledger["complete"][()]) == n_images


def test_the_existing_client_takes_images_and_waits_for_them(service: Service) -> None:
    client, path = service.client, service.daq.output / "sync.h5"
    assert client.get_status()["state"] == "READY"
    service.send_images(N_IMAGES)
    wanted = {"output_file": str(path), "n_images": N_IMAGES, "run_id": "20261124_1"}
    status = client.start_writer_sync(wanted)
    assert status["state"] == "READY"
    acquisition = status["acquisition"]
    assert acquisition["info"] == wanted
    assert (acquisition["state"], acquisition["message"]) == ("FINISHED", "Completed.")
    stats = acquisition["stats"]
    assert (stats["n_write_requested"], stats["n_write_completed"]) == (N_IMAGES, N_IMAGES)
    assert stats["start_time"] < stats["stop_time"] < time.time()
    check_file(service.daq, path, N_IMAGES)
    assert sorted(p.name for p in service.daq.output.glob("sync*")) == [
        "sync.h5", "sync_0.h5", "sync_1.h5",
    ]  # fmt: skip
    assert client.get_logs(1) == [acquisition]
    assert client.get_status()["acquisition"] == acquisition


def test_the_existing_client_starts_looks_and_stops(service: Service) -> None:
    client, path = service.client, service.daq.output / "async.h5"
    status = client.start_writer_async({"output_file": str(path), "n_images": 1000})
    assert status["state"] == "WRITING"
    assert status["acquisition"]["state"] == "WAITING_IMAGES"
    assert isinstance(status["acquisition"]["info"]["run_id"], int)
    service.send_images(N_IMAGES)

    def written() -> int:
        return int(client.get_status()["acquisition"]["stats"]["n_write_completed"])

    wait_until(lambda: written() == N_IMAGES, 20, "all are written")
    assert client.get_status()["acquisition"]["state"] == "ACQUIRING_IMAGES"
    wait_until(lambda: "detector" in client.get_stats(), 5, "statistics")
    status = client.stop_writer()
    assert status["state"] == "READY"
    assert status["acquisition"]["message"].startswith("Interrupted.")
    check_file(service.daq, path, N_IMAGES)
    newest = client.get_logs(5)
    assert newest[0]["info"]["output_file"] == str(path)
    # A second one of the same name is refused, and harms nothing.
    with pytest.raises(StdDaqAdminException, match="exists already"):
        client.start_writer_async({"output_file": str(path), "n_images": 1})
    check_file(service.daq, path, N_IMAGES)


def test_statistics_tell_rates_while_images_come(service: Service) -> None:
    path = service.daq.output / "stats.h5"
    simulator = service.simulator
    simulator.imageRate = 50
    service.client.start_writer_async({"output_file": str(path), "n_images": 1000})
    service.send_images(150)

    def rates() -> tuple[float, float]:
        stats = service.client.get_stats()
        for values in stats.values():
            n_bytes = service.daq.config.sizes.slot_bytes
            assert values["bytes_per_second"] == values["images_per_second"] * n_bytes
        return stats["detector"]["images_per_second"], stats["writer"]["images_per_second"]

    wait_until(lambda: min(rates()) > 1, 10, "both rates")
    service.client.stop_writer()
    simulator.Stop()
    wait_until(lambda: max(rates()) == 0, 20, "nothing comes any more")


def test_the_configuration_is_read_changed_and_refused_with_the_reason(service: Service) -> None:
    client = service.client
    before = client.get_config()
    assert before["detector_name"] == service.daq.config.detector_name
    changed = client.set_config({"module_sync_queue_size": 77})
    assert changed == {**before, "module_sync_queue_size": 77} == client.get_config()
    deployment = client.get_deployment_status()
    assert deployment["status"] == "SUCCESS"
    assert list(deployment["servers"].values()) == ["Done"]
    assert deployment["stats"]["start_time"] <= deployment["stats"]["stop_time"]
    with pytest.raises(StdDaqAdminException, match=r"bit_depth.*12"):
        client.set_config({"bit_depth": 12})
    assert client.get_deployment_status()["status"] == "FAILED"
    with pytest.raises(StdDaqAdminException, match="other device servers"):
        client.set_config({"number_of_writers": 5})
    assert client.get_config() == changed
    client.set_config(before)
    service.daq.check_good()


def command(service: Service, name: str, *arguments: object) -> Any:
    done = subprocess.run(
        [BIN / f"std_cli_{name}", *map(str, arguments), "-b", service.url],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_every_command_of_the_existing_client_works(service: Service, tmp_path: Path) -> None:
    config = command(service, "get_config")
    file = tmp_path / "changes.json"
    file.write_text(json.dumps({"module_sync_queue_size": config["module_sync_queue_size"]}))
    assert command(service, "set_config", file) == config
    assert command(service, "get_deploy_status")["status"] == "SUCCESS"
    assert set(command(service, "get_stats")) == {"detector", "writer"}
    path = service.daq.output / "commands.h5"
    service.send_images(5)
    assert command(service, "write_sync", path, 5)["acquisition"]["stats"]["n_write_completed"] == 5
    check_file(service.daq, path, 5)
    later = service.daq.output / "commands_later.h5"
    assert command(service, "write_async", later, 5)["state"] == "WRITING"
    assert command(service, "get_status")["state"] == "WRITING"
    assert command(service, "write_stop")["state"] == "READY"
    assert [entry["info"]["output_file"] for entry in command(service, "get_logs", "-n", 1)] == [
        str(later)
    ]


def test_an_acquisition_of_another_client_is_in_the_records(service: Service) -> None:
    service.daq.acquire(5)
    file = service.daq.facade.lastFile
    wait_until(lambda: service.client.get_logs(1)[0]["info"]["output_file"] == file, 5, "its record")
    assert service.client.get_logs(1)[0]["stats"]["n_write_completed"] == 5


def test_the_live_image_is_a_picture_of_what_the_detector_sent(service: Service) -> None:
    service.daq.acquire(3)
    facade = service.daq.facade
    wait_until(lambda: facade.previewId >= 1, 10, "a preview")
    with requests.get(service.url + "/daq/live", stream=True, timeout=10) as reply:
        assert reply.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        data = b""
        for chunk in reply.iter_content(65536):
            data += chunk
            head, _, rest = data.partition(b"\r\n\r\n")
            fields = dict(line.split(": ") for line in head.decode().splitlines()[1:] if ": " in line)
            if fields and len(rest) >= int(fields["Content-Length"]):
                break
    picture = np.asarray(Image.open(io.BytesIO(rest[: int(fields["Content-Length"])])))
    preview = facade.preview
    assert picture.shape == preview.shape
    # Bright where the image is bright: JPEG changes single pixels, not the picture.
    low, high = float(preview.min()), float(np.percentile(preview, 99.5))
    wanted = np.clip((preview - low) * 255 / (high - low), 0, 255)
    assert np.corrcoef(picture.ravel(), wanted.ravel())[0, 1] > 0.95


def test_the_second_family_reads_and_sets_the_configuration(service: Service) -> None:
    bare = service.get("/api/config/get", user="me").json()
    assert bare == service.client.get_config()
    reply = service.post("/api/config/set", {"module_sync_queue_size": 60}, user="me")
    assert (reply.status_code, reply.json()["config"]["module_sync_queue_size"]) == (200, 60)
    wrong = service.post("/api/config/set", {"n_modules": 0}, user="me")
    assert wrong.status_code == 400
    assert "n_modules" in wrong.json()["message"]
    service.post("/api/config/set", bare)


def test_files_are_described_and_joined(service: Service) -> None:
    service.daq.acquire(6)
    master = Path(service.daq.facade.lastFile)
    prefix = master.name.removesuffix("master.h5")
    found = service.get("/api/h5/read_metadata", filename=master).json()
    height, width = service.daq.config.sizes.shape
    assert (found["status"], found["shape"], found["n_images"]) == ("ok", [6, height, width], 6)
    assert found["metadata"] == {"image_id": [1, 2, 3, 4, 5, 6], "status": [1] * 6}
    writer = service.get("/api/h5/read_metadata", filename=master.parent / f"{prefix}0.h5").json()
    assert writer["metadata"]["image_id"] == [1, 3, 5]
    status = service.get("/api/h5/get_metadata_status", filename=master).json()["reading"]
    assert (status["state"], status["message"]) == ("done", "6 images")
    other = service.get("/api/h5/get_metadata_status", filename=master.parent / "none.h5").json()
    assert other["reading"]["state"] == "unknown"
    wanted = {"base_path": str(master.parent), "file_prefix": prefix, "output_file": "joined.h5"}
    made = service.post("/api/h5/create_interleaved_vds", wanted)
    assert (made.status_code, made.json()["n_images"]) == (200, 6)
    with h5py.File(master.parent / "joined.h5") as file:
        assert file["entry/data/image_id"][()].tolist() == [1, 2, 3, 4, 5, 6]
    again = service.post("/api/h5/create_interleaved_vds", wanted)
    assert again.status_code == 400
    assert "exists" in again.json()["message"]


def test_the_simulator_is_driven(service: Service) -> None:
    assert service.get("/simulation/status").json()["simulation"]["state"] == "STANDBY"
    started = service.post("/simulation/start", {"n_images": 0, "rate": 100}).json()
    assert started["simulation"]["state"] == "RUNNING"
    wait_until(lambda: service.get("/simulation/status").json()["simulation"]["images"] > 0, 10)
    assert service.post("/simulation/stop").json()["simulation"]["state"] == "STANDBY"
    wrong = service.post("/api/test/tomcat/pco/simulator/start")
    assert wrong.status_code == 400
    assert "'eiger', not 'pco'" in wrong.json()["message"]
    assert service.post("/api/test/tomcat/lamp/simulator/start").status_code == 400
    ready = service.post("/api/test/tomcat/server-setup").json()
    assert ready["status"] == "ok"
    assert any("module-sync-0: RUNNING" in line for line in ready["stages"])


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/writer/write_async", {"output_file": "relative.h5", "n_images": 1}, ["absolute"]),
        ("/writer/write_async", {"output_file": "/", "n_images": 1}, ["output_file '/'"]),
        ("/writer/write_async", {"output_file": "/etc/x.h5", "n_images": 1}, ["outside the allowed"]),
        ("/writer/write_async", {"output_file": "/no/x.h5", "n_images": 1}, ["does not exist"]),
        ("/writer/write_async", {"n_images": 1}, ["output_file: Field required"]),
        ("/writer/write_async", {"output_file": "/tmp/x.h5", "n_images": 0}, ["n_images '0'"]),
        ("/writer/write_async", {"output_file": "/tmp/x.h5", "n_images": "1"}, ["n_images '1'"]),
        ("/writer/write_async", {"output_file": "/tmp/x.h5", "n_images": 2**70}, ["n_images"]),
        ("/writer/write_sync", [], ["the body"]),
        ("/writer/write_sync", None, ["body"]),
        ("/daq/config", [1], ["the body"]),
        ("/daq/config", {"detector_name": "other"}, ["detector_name", "cannot change"]),
        ("/daq/config", {"start_udp_port": "x" * 5000}, ["start_udp_port"]),
        ("/simulation/start", {"rate": -1}, ["rate '-1'"]),
    ],
)
def test_bad_requests_are_answered_with_the_reason(
    service: Service, path: str, body: object, words: list[str]
) -> None:
    reply = service.post(path, body)
    answer = reply.json()
    assert (reply.status_code, answer["status"]) == (200, "error"), answer
    assert not [word for word in words if word not in answer["message"]], answer
    assert service.client.get_status()["state"] == "READY"


@pytest.mark.parametrize("name", ["/etc/passwd", "relative.h5", "/no/such/file.h5", "/", "/tmp/\0"])
def test_files_outside_the_roots_are_not_read(service: Service, name: str) -> None:
    reply = service.get("/api/h5/read_metadata", filename=name)
    assert reply.status_code == 400
    assert name[:4] in reply.json()["message"]


def test_a_link_does_not_lead_out_of_the_roots(service: Service) -> None:
    link = service.daq.output / "link.h5"
    link.symlink_to("/etc/passwd")
    try:
        reply = service.get("/api/h5/read_metadata", filename=link)
        assert reply.status_code == 400
        assert "outside" in reply.json()["message"]
    finally:
        link.unlink()


def test_what_no_endpoint_takes_leaves_the_service_usable(service: Service) -> None:
    assert service.get("/nothing").status_code == 404
    assert service.get("/writer/stop").status_code == 405
    assert service.get("/daq/logs/-1").json()["status"] == "error"
    assert service.get("/daq/logs/1000000").json()["status"] == "error"
    for data in (b"{", b"\xff\xfe", b"[" * 100_000, b""):
        reply = requests.post(
            service.url + "/daq/config",
            data=data,
            headers={"Content-Type": "application/json"},
            timeout=20,
        )
        assert (reply.status_code, reply.json()["status"]) == (200, "error"), data[:5]
    large = requests.post(service.url + "/daq/config", data=b"[" * 2_000_000, timeout=20)
    assert "allowed are 1048576" in large.json()["message"]
    assert service.client.get_status()["state"] == "READY"


def test_the_api_describes_itself(service: Service) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    assert {"/daq/config", "/writer/write_sync", "/api/h5/create_interleaved_vds"} <= set(paths)
    for path, methods in paths.items():
        for entry in methods.values():
            assert entry["description"], path
    assert "swagger" in service.get("/docs").text


# -- WebSocket -------------------------------------------------------------------------------------


def statuses(client: ClientConnection, until: str) -> list[dict[str, Any]]:
    """Each status that differs from the one before, up to and with `until`."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["status"] != until:
        message = json.loads(client.recv(timeout=30))
        if not found or found[-1]["status"] != message["status"]:
            found.append(message)
    return found


def test_a_websocket_client_has_the_documented_conversation(service: Service) -> None:
    with (
        connect(f"ws://127.0.0.1:{service.websocket_port}") as one,
        connect(f"ws://127.0.0.1:{service.websocket_port}") as two,
    ):
        assert json.loads(one.recv(timeout=10)) == {"status": "idle"}
        start = {
            "command": "start", "path": str(service.daq.output), "file_prefix": "ws_",
            "n_image": N_IMAGES, "writer_id": 0, "start_id": 0,
        }  # fmt: skip
        service.send_images(N_IMAGES)
        one.send(json.dumps(start))
        for client in (one, two):
            heard = statuses(client, "file_saved")
            words = [message["status"] for message in heard if message["status"] != "idle"]
            assert words == [
                "started", "creating_file", "file_created", "waiting_for_first_image", "recording",
                "saving_file", "file_saved",
            ]  # fmt: skip
            assert heard[-1]["count"] == N_IMAGES
            assert statuses(client, "idle")
        check_file(service.daq, service.daq.output / "ws_master.h5", N_IMAGES)
        one.send(json.dumps(start))  # the file exists
        rejected = statuses(one, "rejected")[-1]
        assert "exists already" in rejected["reason"]
        one.send("nonsense")
        assert "not a command" in statuses(one, "error")[-1]["reason"]
        one.send('{"command": "stop"}')
        one.close()
        assert statuses(two, "idle")


def test_a_websocket_client_stops_an_acquisition(service: Service) -> None:
    with connect(f"ws://127.0.0.1:{service.websocket_port}") as client:
        start = {"command": "start", "path": str(service.daq.output), "file_prefix": "wsstop_"}
        client.send(json.dumps(start))
        statuses(client, "waiting_for_first_image")
        service.send_images(N_IMAGES)
        while json.loads(client.recv(timeout=30)).get("count", 0) < N_IMAGES:
            pass
        client.send('{"command": "stop"}')
        heard = [message["status"] for message in statuses(client, "idle")]
        assert heard[-2:] == ["file_saved", "idle"], heard
    check_file(service.daq, service.daq.output / "wsstop_master.h5", N_IMAGES)


# -- token, and a system that has gone -------------------------------------------------------------


def test_without_the_token_nobody_gets_in(daq: Daq, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    with served(daq, tmp_path / "log", "--token-file", file) as service:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secrets"}):
            for path in ("/daq/config", "/api/config/get", "/daq/live"):
                reply = requests.get(service.url + path, headers=headers, timeout=10)
                assert reply.status_code == 401
                assert "Authorization: Bearer" in reply.json()["message"]
        right = {"Authorization": "Bearer secret"}
        assert requests.get(service.url + "/daq/config", headers=right, timeout=10).ok
        url = f"ws://127.0.0.1:{service.websocket_port}"
        with pytest.raises(InvalidStatus), connect(url):
            pass
        with connect(url, additional_headers=right) as client:
            assert json.loads(client.recv(timeout=10))["status"] == "idle"
        assert "secret" not in service.program.output


def test_a_facade_that_is_gone_is_said_and_one_that_comes_back_is_found(service: Service) -> None:
    daq = service.daq
    daq.kill("StdDaq")
    try:
        wait_until(lambda: service.get("/writer/status").json()["status"] == "error", 20)
        message = service.get("/writer/status").json()["message"]
        assert daq.system.plan.facade.device in message
        assert "does not answer" in message
        assert service.get("/daq/config").json()["status"] == "error"
        assert service.get("/api/config/get").status_code == 400
        reply = service.post("/writer/write_async", {"output_file": "/tmp/x.h5", "n_images": 1})
        assert reply.json()["status"] == "error"
    finally:
        daq.restart("StdDaq")
    wait_until(lambda: service.get("/writer/status").json()["status"] == "ok", 20)
    daq.check_good()
