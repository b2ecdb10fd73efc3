"""`stddaq stage ...` as processes, called and driven like the programs they replace."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zmq
from websockets.sync.client import ClientConnection, connect

from tango_stddaq.config import DaqConfig
from tango_stddaq.sim.detector import SimulatedDetector

from ..conftest import eiger_config, free_tcp_port
from .programs import PATIENCE_S, Program, refused, running, save, stddaq, wait_until

pytestmark = pytest.mark.system

END_S = 2.0
SLACK_S = 2.0
"""A shared machine may stand still for a while."""


@pytest.fixture
def config(detector_name: str) -> DaqConfig:
    return eiger_config(detector_name, stats_collection_period=0.3)


@pytest.fixture
def config_path(config: DaqConfig, tmp_path: Path) -> Path:
    return save(config, tmp_path / "config.json")


def talk(client: ClientConnection, status: str) -> list[dict[str, Any]]:
    """Read messages up to the one with this status."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + PATIENCE_S
    while not found or found[-1]["status"] != status:
        assert time.monotonic() < deadline, f"no {status} in {found[-5:]}"
        found.append(json.loads(client.recv(timeout=PATIENCE_S)))
    return found


@contextmanager
def connected(port: int) -> Iterator[ClientConnection]:
    """Connect as soon as the driver listens."""

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, "the driver listens")
    with connect(f"ws://127.0.0.1:{port}") as client:
        yield client


class Stages:
    """The five stages of a small system, in the order given."""

    def __init__(self, stack: ExitStack, config_path: Path, order: tuple[str, ...]) -> None:
        self.port = free_tcp_port()
        arguments: dict[str, list[object]] = {
            "module-sync": [config_path],
            "udp-recv": [config_path, "all", "--direct"],
            "live-stream": [config_path, f"tcp://127.0.0.1:{free_tcp_port()}"],
            "writer-driver": [config_path, "-p", self.port],
            "file-writer": [config_path, 0],
        }
        self.programs = {
            name: stack.enter_context(
                running(config_path.parent / f"{name}.log", "stage", name, *arguments[name])
            )
            for name in order
        }

    def wait_ready(self) -> None:
        for program in self.programs.values():
            program.wait_for("[event] started")
        wait_until(lambda: self.counts("udp-recv") is not None, "the receiver's statistics")
        time.sleep(0.7)  # reconnections take half a second at most

    def counts(self, name: str) -> str | None:
        lines = [
            line for line in self.programs[name].output.splitlines() if f" {name},detector=" in line
        ]
        return lines[-1] if lines else None


ORDERS = [
    ("module-sync", "udp-recv", "live-stream", "writer-driver", "file-writer"),
    ("file-writer", "writer-driver", "udp-recv", "live-stream", "module-sync"),
]


@pytest.mark.parametrize("order", ORDERS, ids=["forward", "backward"])
def test_stages_started_in_any_order_write_good_files_and_end_cleanly(
    config: DaqConfig, config_path: Path, tmp_path: Path, order: tuple[str, ...]
) -> None:
    detector = SimulatedDetector(config)
    with ExitStack() as stack:
        stages = Stages(stack, config_path, order)
        stages.wait_ready()
        with connected(stages.port) as client:
            assert json.loads(client.recv(timeout=10))["status"] == "idle"
            client.send(
                json.dumps(
                    {
                        "command": "start",
                        "path": str(tmp_path),
                        "file_prefix": "file",
                        "n_image": 10,
                        "writer_id": 0,
                        "start_id": 0,
                    }
                )
            )
            seen = talk(client, "waiting_for_first_image")
            words = [message["status"] for message in seen]
            assert [word for word in dict.fromkeys(words) if word != "idle"] == [
                "started", "creating_file", "file_created", "waiting_for_first_image",
            ]  # fmt: skip
            detector.run(10, 50.0)
            seen = talk(client, "file_saved")
            words = list(dict.fromkeys(message["status"] for message in seen))
            counting = ["recording", "saving_file", "file_saved"]
            assert [word for word in words if word != "waiting_for_first_image"] == counting
            for message in seen:
                assert ("count" in message) == (message["status"] in counting)
            assert seen[-1]["count"] == 10
            assert talk(client, "idle")
        with h5py.File(tmp_path / "file0.h5") as file:
            group = file[config.detector_name]
            assert group["metadata"]["image_id"].tolist() == list(range(1, 11))
            assert group["metadata"]["status"].tolist() == [1] * 10
            for at, image in enumerate(group["data"][()]):
                np.testing.assert_array_equal(image, detector.truth(at + 1))
        number = signal.SIGTERM if order is ORDERS[0] else signal.SIGINT
        for name, program in stages.programs.items():
            code, seconds = program.end(number)
            assert code == 0, program.output
            assert seconds < END_S + SLACK_S, name
            assert f"{name},detector={config.detector_name},host=" in program.output
            assert "Traceback" not in program.output
        texts = {name: program.output for name, program in stages.programs.items()}
    assert sum_of(texts["udp-recv"], "std_udp_recv_eg", "frames_counter") == 40
    assert sum_of(texts["module-sync"], "std_data_sync_module", "processed_times") == 10
    assert sum_of(texts["file-writer"], "std_det_writer", "n_written_images") == 10
    assert sum_of(texts["live-stream"], "std_live_stream", "processed_times") == 10


def sum_of(text: str, program: str, field: str) -> int:
    """What the statistics in the words of the existing program add up to."""
    lines = re.findall(rf"\[{program}\]\[v[0-9.]+\]\[info\] (detector=\S+) \d+$", text, re.MULTILINE)
    assert lines, text
    return sum(int(dict(pair.split("=", 1) for pair in line.split(","))[field]) for line in lines)


def test_stop_saves_what_came(config: DaqConfig, config_path: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stages = Stages(stack, config_path, ORDERS[0])
        stages.wait_ready()
        with connected(stages.port) as client:
            client.send(json.dumps({"command": "start", "path": str(tmp_path)}))
            talk(client, "waiting_for_first_image")
            SimulatedDetector(config).run(4, 50.0)
            while talk(client, "recording")[-1]["count"] < 4:
                pass
            client.send('{"command":"stop"}')
            assert talk(client, "file_saved")[-1]["count"] == 4
        with h5py.File(tmp_path / "file0.h5") as file:
            assert file[config.detector_name]["data"].shape == (4, 514, 1030)


# -- frames mode: a reader that knows the contract, not our code --------------------------------------


def raw_frame(image: np.ndarray, position: list[int]) -> np.ndarray:
    """Cut a half module out of an image: (256, 512), the gap between the chips left out."""
    x0, y0, x1, y1 = position
    rows = image[min(y0, y1) : max(y0, y1) + 1, x0 : x1 + 1][:: 1 if y1 > y0 else -1]
    return np.delete(rows, [256, 257], axis=1)


@pytest.fixture
def subscriber() -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context.instance().socket(zmq.SUB) as handle:
        handle.setsockopt(zmq.LINGER, 0)
        handle.setsockopt(zmq.SUBSCRIBE, b"")
        yield handle


def test_receiver_in_frames_mode_serves_an_existing_converter(
    config: DaqConfig, config_path: Path, tmp_path: Path, subscriber: "zmq.Socket[bytes]"
) -> None:
    module, n_images = 2, 5
    name = f"{config.detector_name}-{module}"
    subscriber.connect(f"ipc:///tmp/{name}")
    detector = SimulatedDetector(config)
    with running(tmp_path / "log", "stage", "udp-recv", config_path, module) as program:
        program.wait_for("[event] started")
        first_id = 1
        while not subscriber.poll(100):  # until its subscription has arrived
            assert first_id < 200
            detector.run(1, 50.0, first_id)
            first_id += 1
        detector.run(n_images, 50.0, first_id)
        ring = Path("/dev/shm", name)
        frame_bytes = 512 * 256 * 2
        assert ring.stat().st_size == -(-1000 * frame_bytes // 2**21) * 2**21
        for image_id in range(first_id, first_id + n_images):
            header = bytes(8)
            while int(np.frombuffer(header, "<u8", 1)[0]) < image_id:
                assert subscriber.poll(10_000)
                header = subscriber.recv()
            assert len(header) == 64
            assert np.frombuffer(header, "<u8", 2).tolist() == [image_id, 0]
            found_module, bit_depth = np.frombuffer(header, "<u2", 2, 16).tolist()
            assert (found_module, bit_depth) == (module, 16)
            with ring.open("rb") as file:
                file.seek(image_id % 1000 * frame_bytes)
                pixels = np.frombuffer(file.read(frame_bytes), "<u2").reshape(256, 512)
            expected = raw_frame(detector.truth(image_id), list(config.module_positions[str(module)]))
            np.testing.assert_array_equal(pixels, expected)
        assert not subscriber.poll(200)
        assert program.end()[0] == 0
    assert not ring.exists()


# -- calls ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["module-sync"], ["udp-recv", "CONFIG"], ["file-writer", "CONFIG", "x"], ["no-such-stage"],
        ["module-sync", "CONFIG", "--bogus"], ["writer-driver", "CONFIG", "-p", "70000"],
        ["live-stream", "CONFIG", "tcp://127.0.0.1:5555", "-t", "video"],
        ["metadata-stream", "CONFIG"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_call_prints_usage(config_path: Path, arguments: list[str]) -> None:
    given = [str(config_path) if part == "CONFIG" else part for part in arguments]
    refused("stage", *given, words=("Usage:",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["udp-recv", "CONFIG", "9"], ("[9]", "allowed", "[0, 1, 2, 3]")),
        (["udp-recv", "CONFIG", "some"], ("'some'", "allowed")),
        (["live-stream", "CONFIG", "here"], ("'here'", "allowed", "live_stream_configs")),
        (["live-stream", "CONFIG", "tcp://127.0.0.1:70000"], ("70000", "allowed")),
        (["module-sync", "missing.json"], ("missing.json", "cannot be read")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_argument_that_cannot_be_used_is_named(
    config_path: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    refused("stage", *[str(config_path) if p == "CONFIG" else p for p in arguments], words=words)


def test_surplus_file_writer_ends_at_once(config_path: Path) -> None:
    result = stddaq("stage", "file-writer", config_path, 1)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(("before", "option"), [(True, "-p"), (False, "--port")])
def test_options_stand_before_or_after_arguments(
    config_path: Path, tmp_path: Path, before: bool, option: str
) -> None:
    port = free_tcp_port()
    options, arguments = [option, port], [config_path]
    given = [*options, *arguments] if before else [*arguments, *options]
    with running(tmp_path / "log", "stage", "writer-driver", *given) as program:
        with connected(port) as client:
            assert json.loads(client.recv(timeout=10)) == {"status": "idle"}
        assert program.end()[0] == 0


def test_port_in_use_is_named(config: DaqConfig, config_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused("stage", "writer-driver", config_path, "-p", port, words=(str(port), "in use"))
        address = f"tcp://127.0.0.1:{port}"
        refused("stage", "live-stream", config_path, address, words=(address, "in use"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", config.start_udp_port + 1))
        words = (str(config.start_udp_port + 1), "in use")
        refused("stage", "udp-recv", config_path, "all", words=words)


def test_stage_ends_while_it_still_starts(config_path: Path, tmp_path: Path) -> None:
    """Also when the compiler runs: nobody waits for it."""
    log = tmp_path / "log"
    with running(log, "stage", "udp-recv", config_path, "all") as program:
        wait_until(lambda: list(Path("/dev/shm").glob(f"{load_name(config_path)}*")), "its ring")
        code, seconds = program.end()
        assert code == 0, program.output
        assert seconds < END_S + SLACK_S


def load_name(config_path: Path) -> str:
    return str(json.loads(config_path.read_text())["detector_name"])


def test_second_synchronizer_is_refused(config_path: Path, tmp_path: Path) -> None:
    with running(tmp_path / "log", "stage", "module-sync", config_path) as first:
        first.wait_for("[event] started")
        refused("stage", "module-sync", config_path, words=("owned by process", "stop it first"))
        assert isinstance(first, Program)
        assert first.end()[0] == 0


def test_all_threads_of_a_stage_keep_to_its_cpus(config_path: Path, tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with running(tmp_path / "log", "stage", "module-sync", config_path, "--cpus", cpu) as sync:
        sync.wait_for("[event] started")
        threads = [int(path.name) for path in Path(f"/proc/{sync.process.pid}/task").iterdir()]
        assert len(threads) > 1
        # Those that libraries started while they were loaded wait for work that a stage has not.
        assert os.sched_getaffinity(sync.process.pid) == {cpu}
        assert sum(os.sched_getaffinity(thread) == {cpu} for thread in threads) > 1


@pytest.mark.parametrize("cpus", ["4000", "0-4000", "two", "1-0"])
@pytest.mark.parametrize(
    "arguments",
    [["module-sync"], ["file-writer", "0"], ["compress-blosc2", "-t", "1"]],
    ids=lambda a: a[0],
)
def test_cpus_that_are_not_there_are_refused_by_every_stage(
    config_path: Path, arguments: list[str], cpus: str
) -> None:
    stage, *rest = arguments
    refused("stage", stage, config_path, *rest, "--cpus", cpus, words=("--cpus", cpus, "out of"))
