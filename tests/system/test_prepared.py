"""Nothing is compiled when images come: that takes longer than a ring of fast images lasts."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system


def test_all_loops_are_ready_before_the_first_image(detector_name: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.system.prepared", detector_name, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
