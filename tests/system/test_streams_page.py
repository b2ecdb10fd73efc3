"""The programs on docs/streams.md, run as they stand there."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tango_stddaq.stages.metadata_stream import MetadataStream

from .stages import running
from .test_camera_receivers import wait_until
from .test_live_stream import SHAPE, Bench, bench, picture, stream_config

pytestmark = pytest.mark.system

PAGE = Path(__file__).resolve().parents[2] / "docs" / "streams.md"
PROGRAMS: Final = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
)


def test_every_program_is_tried() -> None:
    tried = {"Receive array-1.0", "Only the newest image", "Receive bsread", "Receive metadata"}
    assert set(PROGRAMS) == tried
    assert PAGE.read_text().count("```python") == len(tried)


def printed(run: Bench, program: str, address: str, tmp_path: Path, n_lines: int = 5) -> list[str]:
    """Run a program of the page and publish images until it has printed so many lines."""
    path, log = tmp_path / "client.py", tmp_path / "output"
    path.write_text(program)
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, path, address], stdout=file, stderr=file)
    try:
        deadline, image_id = time.monotonic() + 30, 0
        while len(lines := log.read_text().splitlines()) < n_lines:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            run.source.publish(image_id, picture(image_id, SHAPE, "uint32"))
            image_id += 1
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    return lines[:n_lines]


def expected(line: str) -> str:
    image_id = int(line.split(maxsplit=1)[0])
    return f"{image_id} {SHAPE} uint32 {picture(image_id, SHAPE, 'uint32').max()}"


@pytest.mark.parametrize("name", ["Receive array-1.0", "Only the newest image"])
def test_array10_clients(detector_name: str, tmp_path: Path, name: str) -> None:
    with bench(stream_config(detector_name)) as run:
        lines = printed(run, PROGRAMS[name], run.stage.endpoint, tmp_path)
        assert lines == [expected(line) for line in lines]


@pytest.mark.parametrize("compression", ["none", "bitshuffle_lz4"])
def test_bsread_client(detector_name: str, tmp_path: Path, compression: str) -> None:
    with bench(stream_config(detector_name), protocol="bsread", compression=compression) as run:
        lines = printed(run, PROGRAMS["Receive bsread"], run.stage.endpoint, tmp_path)
        assert lines == [expected(line) for line in lines]


def test_metadata_client(detector_name: str, tmp_path: Path) -> None:
    config = stream_config(detector_name)
    stage = MetadataStream(config, "tcp://127.0.0.1:*")
    with bench(config) as run, running(stage):
        lines = printed(run, PROGRAMS["Receive metadata"], stage.endpoint, tmp_path)
        ids = [int(line.split()[0]) for line in lines]
        assert ids == list(range(ids[0], ids[0] + len(ids)))
        assert lines[0] == f"{ids[0]} {SHAPE} 1 {SHAPE[0] * SHAPE[1] * 4}"
        wait_until(lambda: stage.counters["n_active_connections"] == 0)
