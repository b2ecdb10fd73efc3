"""The programs on docs/own-stage.md, run as they stand there."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tango_stddaq import testing

from .test_live_stream import SHAPE, Source, picture, stream_config

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS: Final = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/own-stage.md").read_text(), re.M | re.S
)


def test_the_stage_of_the_page_works() -> None:
    space: dict[str, Any] = {}
    exec(PROGRAMS[0], space)  # noqa: S102, what the page says is what is tested
    image = np.arange(24, dtype=np.uint16).reshape(4, 6)
    space.update(image=image)
    exec(PROGRAMS[1], space)  # noqa: S102
    assert space["found"].values == [{"row": 3, "brightness": 23}, {"row": 3, "brightness": 24}]
    stage = space["BeamPosition"]
    with testing.running(stage, like=image, settings={"limit": 22.0}) as bench:
        bench.send(image)
        assert stage.brightness.is_alarming(bench.stage)


def test_the_program_without_our_package_reads_images(detector_name: str, tmp_path: Path) -> None:
    proto = ROOT / "proto"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"--python_out={tmp_path}"]
    subprocess.run([*protoc, str(proto / "std_daq_protocol.proto")], check=True, timeout=60)
    program = PROGRAMS[2]
    assert "tango_stddaq" not in program
    (tmp_path / "client.py").write_text(program)
    config = stream_config(detector_name)
    source, log = Source(config), tmp_path / "output"
    try:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, tmp_path / "client.py", detector_name, str(config.sizes.n_slots)],
                stdout=file, stderr=file, cwd=tmp_path,
            )  # fmt: skip
        try:
            source.wait_for_subscriber()
            for image_id in range(40):
                source.publish(image_id, picture(image_id, SHAPE, "uint32"))
                time.sleep(0.01)
            deadline = time.monotonic() + 20
            while len(lines := log.read_text().splitlines()) < 20:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    finally:
        source.close()
    for line in lines[:20]:
        image_id = int(line.split()[0])
        total = picture(image_id, SHAPE, "uint32").sum()
        assert line == f"{image_id} {SHAPE} uint32 {total}"
