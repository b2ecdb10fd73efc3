"""`stddaq config`, `replay` and `simulate`: what they say of files, and what they send."""

import json
import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tango_stddaq.config import DaqConfig

from .programs import PATIENCE_S, refused, running, save, stddaq

pytestmark = pytest.mark.system

HEADER_BYTES = 48


@pytest.fixture
def config_path(config: DaqConfig, tmp_path: Path) -> Path:
    return save(config, tmp_path / "config.json")


def test_good_configuration_is_summed_up(config: DaqConfig, config_path: Path) -> None:
    result = stddaq("config", "check", config_path)
    assert result.returncode == 0, result.stderr
    for word in (config.detector_name, "514 x 1030 uint16", "1,058,840", str(config.start_udp_port)):
        assert word in result.stdout


def test_unknown_key_is_reported_and_not_fatal(config_path: Path) -> None:
    data = {**json.loads(config_path.read_text()), "colour": "blue"}
    config_path.write_text(json.dumps(data))
    result = stddaq("config", "check", config_path)
    assert result.returncode == 0
    assert "'colour'" in result.stdout + result.stderr


BAD: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"bit_depth": None}, ("bit_depth", "missing", "expected")),
    ({"bit_depth": 12}, ("bit_depth", "12", "8, 16 or 32")),
    ({"detector_type": "camera"}, ("detector_type", '"camera"', "'eiger'")),
    ({"detector_name": "a/b"}, ("detector_name", '"a/b"')),
    ({"image_pixel_height": "tall"}, ("image_pixel_height", '"tall"', "integer")),
    ({"start_udp_port": 65534}, ("start_udp_port", "65534", "65535")),
    ({"module_positions": {"0": [0, 0, 100, 100]}}, ("module_positions", "100")),
    ({"module_positions": {"9": [0, 0, 513, 255]}}, ("module_positions", "'9'", "0 to 3")),
    ({"live_stream_configs": {"udp://x": {"type": "forward"}}}, ("udp://x", "tcp://HOST:PORT")),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=lambda value: str(value)[:40])
def test_bad_configuration_names_key_value_and_what_is_allowed(
    config_path: Path, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    data = {**json.loads(config_path.read_text()), **change}
    config_path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    refused("config", "check", config_path, words=(str(config_path), *words)[-len(words) :])


def test_file_that_is_no_json_is_named_with_the_place(config_path: Path) -> None:
    config_path.write_text('{"detector_name": }')
    refused("config", "check", config_path, words=(str(config_path), "not valid JSON", "line 1"))


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    refused("config", "check", tmp_path, words=(str(tmp_path), "cannot be read"))
    refused("config", "check", tmp_path / "no", words=(str(tmp_path / "no"), "cannot be read"))


def test_schema_is_json_that_names_every_key(config: DaqConfig) -> None:
    result = stddaq("config", "schema")
    assert result.returncode == 0
    schema = json.loads(result.stdout)
    assert schema["type"] == "object"
    assert set(config.model_dump(exclude_none=True)) <= set(schema["properties"])
    assert "detector_name" in schema["required"]


def test_replay_without_its_directory_or_dumps_says_so(config_path: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    refused("replay", missing, "--config", config_path, words=(str(missing), "not a directory"))
    refused("replay", tmp_path, "--config", config_path, words=(str(tmp_path), ".dat.xz"))


def test_replay_of_something_else_says_so(config: DaqConfig, config_path: Path, tmp_path: Path) -> None:
    dump = tmp_path / f"{config.start_udp_port}.dat"
    dump.write_bytes(b"not a dump of packets")
    refused("replay", tmp_path, "--config", config_path, words=(str(dump), "cannot be replayed"))


LINE = r"\[\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\]\[%s\]\[v[^]]+\]\[%s\] %s"


def test_senders_log_like_all_others(config_path: Path, tmp_path: Path) -> None:
    """On standard error: standard output is the result."""
    stddaq("simulate", config_path, "-n", 2, "--record", tmp_path / "recording")
    data = {**json.loads(config_path.read_text()), "colour": "blue"}
    config_path.write_text(json.dumps(data))
    for service, *arguments in (
        ("simulate", config_path, "-n", 2, "--rate", 50),
        ("replay", tmp_path / "recording", "--config", config_path, "--rate", 50),
    ):
        result = stddaq(service, *arguments)
        assert json.loads(result.stdout)["sent"] == 2
        lines = result.stderr.splitlines()
        expected = [
            ("warning", "unknown configuration keys.*colour"),
            ("info", r"\[event\] start of 2 images to UDP of 127.0.0.1, at 50 images/s"),
            ("info", r"\[event\] end after 2 of 2 images"),
        ]
        assert len(lines) == len(expected), lines
        for line, (level, text) in zip(lines, expected, strict=True):
            assert re.fullmatch(LINE % (service, level, text), line)
        config_path.write_text(json.dumps({**data, "log_level": "off"}))
        assert stddaq(service, *arguments).stderr == ""
        config_path.write_text(json.dumps(data))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_senders_that_are_cut_short_say_what_they_sent(
    config: DaqConfig, config_path: Path, tmp_path: Path, number: int, code: int
) -> None:
    stddaq("simulate", config_path, "-n", 50, "--record", tmp_path / "recording")
    calls = (
        ("simulate", config_path, "-n", 50, "--rate", 1),
        ("replay", tmp_path / "recording", "--config", config_path, "--rate", 1),
    )
    for call in calls:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as module,
            running(tmp_path / "log", *call) as program,
        ):
            module.bind(("127.0.0.1", config.start_udp_port))
            program.wait_for("start of 50 images")
            module.settimeout(PATIENCE_S)  # it compiles before it sends
            while int(np.frombuffer(module.recv(65_536), "<u8", 1)[0]) < 2:
                pass  # when the second image comes the first one is counted
            assert program.end(number)[0] == code, program.output
            (line,) = [line for line in program.output.splitlines() if line.startswith("{")]
            sent = json.loads(line)["sent"]
            assert 1 <= sent < 50
            assert f"end after {sent} of 50 images" in program.output
            assert "Traceback" not in program.output


def test_unknown_host_is_named(config_path: Path) -> None:
    words = ("'no.such.host.invalid'",)
    refused("simulate", config_path, "--host", "no.such.host.invalid", words=words)


def test_simulator_sends_what_it_says(config: DaqConfig, config_path: Path) -> None:
    n_images, drop_every, packets_per_frame = 3, 100, 64
    with ExitStack() as stack:
        handles = []
        for module in range(4):
            handle = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
            handle.bind(("127.0.0.1", config.start_udp_port + module))
            handle.settimeout(0.5)
            handles.append(handle)
        result = stddaq(
            "simulate", config_path, "--images", n_images, "--rate", 20, "--first-id", 7,
            "--drop-every", drop_every,
        )  # fmt: skip
        received: set[tuple[int, int, int]] = set()
        for module, handle in enumerate(handles):
            while True:
                try:
                    packet = handle.recv(65_536)
                except TimeoutError:
                    break
                assert len(packet) == HEADER_BYTES + 4096
                assert packet[47] == 2
                (image_id,) = np.frombuffer(packet, "<u8", 1)
                (number,) = np.frombuffer(packet, "<u4", 1, 12)
                received.add((int(image_id), module, int(number)))
    said = json.loads(result.stdout)
    everything = {
        (image_id, module, number)
        for image_id in range(7, 7 + n_images)
        for module in range(4)
        for number in range(packets_per_frame)
    }
    dropped = everything - received
    assert said["sent"] == n_images
    assert said["dropped_packets"] == len(dropped) == len(everything) // drop_every
    assert said["incomplete_ids"] == sorted({image_id for image_id, _, _ in dropped})
