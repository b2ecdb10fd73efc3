"""Stages of one's own: made by the command, installed as packages, run as stages and Tango devices."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tango
from tango import AttrQuality, AttrWriteType, DevState

from ..conftest import eiger_config
from ..system.programs import save, stddaq
from .conftest import Daq, refused, running_system, wait_until

pytestmark = [pytest.mark.tango, pytest.mark.timeout(240)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
N_IMAGES = 10


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the examples and two packages of the command, installed as any other."""
    root = tmp_path_factory.mktemp("packages")
    for name, kind in (("made-images", "image"), ("made-values", "value")):
        assert stddaq("new-stage", name, "--kind", kind, "--output", root).returncode == 0
    sources = [*EXAMPLES.iterdir(), root / "made-images", root / "made-values"]
    target = root / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), *map(str, sources)], check=True, timeout=200)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(target)
    yield root
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def test_a_package_brings_its_device_server(installed: Path) -> None:
    done = subprocess.run(
        [sys.executable, installed / "site" / "bin" / "StdDaqRoiSum", "-?"],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "TANGO_HOST": "127.0.0.1:1"},
    )  # fmt: skip
    assert "StdDaqRoiSum" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_packages_pass_their_own_tests(installed: Path) -> None:
    for source in (*EXAMPLES.iterdir(), installed / "made-images", installed / "made-values"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(source / "tests")],
            capture_output=True, text=True, timeout=100, check=False, cwd=source,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "passed" in done.stdout


@pytest.fixture(scope="module")
def daq(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daq]:
    stages = [
        {"stage": "roi-sum", "settings": {"x": 10, "y": 20, "width": 30, "height": 40}},
        {"stage": "dark-subtraction"},
        {"stage": "made-images", "source": "dark-subtraction"},
    ]
    directory = tmp_path_factory.mktemp("own")
    with running_system(directory, stages=stages, writer_source="made-images") as running:
        yield running


def test_a_chain_of_own_stages_ends_in_the_file(daq: Daq) -> None:
    dark = daq.stage("StdDaqDarkSubtraction")
    assert dark.state() == DevState.RUNNING
    assert dark.get_attribute_config("darkImages").writable == AttrWriteType.READ_WRITE
    dark.darkImages = N_IMAGES
    daq.detector.run(N_IMAGES, 100)
    wait_until(lambda: dark.darkImages == 0, 10, "the dark is taken")
    wait_until(lambda: dark.dropped == N_IMAGES, 5, "all are counted")
    truth = [daq.detector.truth(image_id) for image_id in range(1, N_IMAGES + 1)]
    taken = np.rint(np.mean(truth, axis=0)).astype(np.uint16)
    daq.acquire(N_IMAGES)
    good = {"expected": N_IMAGES, "complete": N_IMAGES, "incomplete": 0, "lost": 0}
    assert daq.ledger() == good, list(daq.facade.log)[-5:]
    with h5py.File(daq.facade.lastFile) as file:
        data = file["entry/data"]
        assert data["image_id"][()].tolist() == list(range(1, N_IMAGES + 1))
        for at, image in enumerate(truth):
            wanted = image - np.minimum(image, taken)
            np.testing.assert_array_equal(data["data"][at], wanted - np.minimum(wanted, 10))


def test_values_are_attributes_with_limits_and_events(daq: Daq) -> None:
    device = daq.stage("StdDaqRoiSum")
    seen: list[tuple[float, AttrQuality]] = []

    def heard(event: tango.EventData) -> None:
        if not event.err and event.attr_value.value is not None:
            seen.append((event.attr_value.value, event.attr_value.quality))

    subscription = device.subscribe_event("roiSum", tango.EventType.CHANGE_EVENT, heard)
    try:
        daq.detector.run(5, 50)
        wanted = float(daq.detector.truth(5)[20:60, 10:40].sum())
        wait_until(lambda: device.roiSum == wanted, 5, "the sum of the last image")
        assert device.roiMean == pytest.approx(wanted / 1200)
        wait_until(lambda: (wanted, AttrQuality.ATTR_VALID) in seen, 5, "its event")
        device.highLimit = wanted - 1
        assert device.read_attribute("roiSum").quality == AttrQuality.ATTR_ALARM
        wait_until(lambda: (wanted, AttrQuality.ATTR_ALARM) in seen, 5, "the event of the alarm")
        device.highLimit = wanted + 1
        assert device.read_attribute("roiSum").quality == AttrQuality.ATTR_VALID
    finally:
        device.unsubscribe_event(subscription)
    with refused("width", "1 or more"):
        device.width = 0
    assert device.width == 30
    assert device.state() == DevState.RUNNING


def test_wrong_names_and_settings_are_named(installed: Path, tmp_path: Path) -> None:
    config = eiger_config("T-own")
    path = save(config, tmp_path / "config.json")
    for words, said in (
        (("new-stage", "Roi"), "lower case"),
        (("new-stage", "made-images", "--output", installed), "exists already"),
        (("stage", "roi-sum", path, "--set", "colour=3"), "NAME=VALUE"),
        (("stage", "roi-sum", path, "--set", "width=wide"), "'wide' is no int"),
        (("stage", "roi-sum", path, "--set", "width=0"), "1 or more"),
        (("stage", "dark-subtraction", path, "-s", "dark-subtraction"), "own stream"),
    ):
        done = stddaq(*words)
        assert done.returncode != 0
        assert said in done.stderr.replace("\n", " "), done.stderr
