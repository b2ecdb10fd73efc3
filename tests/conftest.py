"""Fixtures for all tests: logged errors fail, names are unique, shared memory is left clean."""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import ring_segments
from tango_stddaq.sim.demo_config import free_tcp_port, free_udp_ports

__all__ = ["eiger_config", "free_tcp_port", "free_udp_ports"]

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "eiger-0.5M-32bit"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expects_errors: the test provokes errors that are logged")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests of whole systems a second try.

    Several run at a time, on as few cores as there are. A process that got no core for half a second
    looks to the others like a detector that stopped: they say so, as they should, and the test fails.
    """
    for item in items:
        if item.get_closest_marker("system") or item.get_closest_marker("tango"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True)
def _no_logged_errors(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Fail a test in which the package logged an error, unless it says that it provokes one."""
    yield
    if request.node.get_closest_marker("expects_errors"):
        return
    errors = [
        record.getMessage()
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.ERROR and record.name.startswith("tango_stddaq")
    ]
    assert not errors, f"errors were logged: {errors}"


@pytest.fixture
def detector_name() -> Iterator[str]:
    """A detector name that no other test uses; afterwards nothing of it may be left behind."""
    name = f"T{os.getpid()}-{uuid.uuid4().hex[:8]}"
    yield name
    left = [*Path("/dev/shm").glob(f"{name}*"), *Path("/tmp").glob(f"{name}*")]
    for path in left:
        path.unlink()
    ring_segments.remove_abandoned(name)
    assert not left, f"left behind: {left}"


EIGER_POSITIONS = {
    "0": [0, 0, 513, 255],
    "1": [516, 0, 1029, 255],
    "2": [0, 513, 513, 258],
    "3": [516, 513, 1029, 258],
}


def eiger_config(detector_name: str, **changes: object) -> DaqConfig:
    """An Eiger of four half modules, the lower two upside down, with a small ring."""
    data: dict[str, object] = {
        "detector_name": detector_name,
        "detector_type": "eiger",
        "n_modules": 4,
        "bit_depth": 16,
        "image_pixel_height": 514,
        "image_pixel_width": 1030,
        "start_udp_port": free_udp_ports(4),
        "module_positions": EIGER_POSITIONS,
        "number_of_writers": 1,
        "ring_slots": 50,
    }
    return config_module.from_dict({**data, **changes})


@pytest.fixture
def config(detector_name: str) -> DaqConfig:
    """The configuration most tests use."""
    return eiger_config(detector_name)


@pytest.fixture
def shared_data() -> Path:
    """The recorded Eiger packets; a test that needs them is skipped where they are not there."""
    if not SHARED_DATA.is_dir():
        pytest.skip("recorded Eiger packets (../shared/data/eiger-0.5M-32bit) are not there")
    return SHARED_DATA


@pytest.fixture
def expected_images(shared_data: Path) -> dict[int, str]:
    """Image id to the SHA-256 of its pixels, as the recording's description says."""
    expected = json.loads((shared_data / "expected.json").read_text())
    return {int(image_id): entry["sha256"] for image_id, entry in expected.items()}
