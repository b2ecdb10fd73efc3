"""Compiled loops are never older than the sources that they were made of."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tango_stddaq import compiled_code

ROOT = Path(compiled_code.__file__).parent


def compiled_sources() -> list[Path]:
    found = [path for path in ROOT.rglob("*.py") if "processing.compiled import" in path.read_text()]
    assert len(found) > 10
    return found


def constants_of(path: Path) -> Iterator[Path]:
    """The modules of ours whose constants and enums a module uses."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("tango_stddaq."):
            continue
        module = ROOT.parent.joinpath(*str(node.module).split(".")).with_suffix(".py")
        if module.exists() and (module.stem == "model" or any(a.name.isupper() for a in node.names)):
            yield module


def test_the_cache_goes_by_all_that_is_compiled_in() -> None:
    known = [ROOT / part for part in compiled_code._COMPILED]
    assert all(path.exists() for path in known)
    for path in compiled_sources():
        for used in (path, *constants_of(path)):
            assert used in known or used.parent in known, f"{used}, in {path}"


@pytest.mark.parametrize("module", ["io.zmq_calls", "io.udp", "sim.send_loop", "stages.writer_driver"])
def test_whatever_is_imported_first_numba_knows_the_cache(module: str, tmp_path: Path) -> None:
    script = f"import tango_stddaq.{module}, numba; print(numba.config.CACHE_DIR)"
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT.parent)},
    )
    assert found.stdout.startswith(str(tmp_path / "tango_stddaq"))
