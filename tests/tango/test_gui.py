"""The window of a running system, off screen: what it shows is what the devices say."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tango
from PIL import Image

from ..system.programs import stddaq
from .conftest import Daq, running_system, wait_until

pytestmark = [pytest.mark.tango, pytest.mark.timeout(240)]

N_IMAGES = 40
DRIVER = Path(__file__).with_name("gui_driver.py")


class Gui:
    """A window in another process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, do: str = "look", **more: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the window has gone"
        return json.loads(line)

    def wait(self, wanted: Any, what: str, timeout_s: float = 20) -> Any:
        wait_until(lambda: wanted(self.ask()), timeout_s, f"{what}: {self.ask()}")
        return self.ask()


@contextmanager
def window(device: str) -> Iterator[Gui]:
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), device],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        yield Gui(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="module")
def daq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daq]:
    with running_system(tmp_path_factory.mktemp("gui"), number_of_writers=2) as running:
        yield running


@pytest.fixture(scope="module")
def gui(daq: Daq) -> Iterator[Gui]:
    with window(f"tango://{daq.system.tango_host}/{daq.system.plan.facade.device}") as shown:
        shown.wait(lambda found: found["stages"], "the stages are shown")
        yield shown


def send_later(daq: Daq, n_images: int, rate_hz: float, drop_every: int = 0) -> threading.Thread:
    """Send as soon as images are awaited."""
    from tango_stddaq.sim.faults import Faults

    def send() -> None:
        with tango.EnsureOmniThread():
            facade = daq.system.facade
            while facade.acquisitionStatus != "waiting_for_first_image":
                time.sleep(0.02)
            daq.detector.run(n_images, rate_hz, faults=Faults(drop_every))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_an_acquisition_from_the_window_to_the_file(daq: Daq, gui: Gui, tmp_path: Path) -> None:
    found = gui.wait(lambda found: found["can_start"], "the facade is ready")
    assert not found["can_stop"]
    assert set(found["stages"].values()) == {"RUNNING"}
    assert {line.split(": ")[0].rsplit("/", 1)[1] for line in daq.facade.stageStates} == set(
        found["stages"]
    )
    gui.ask("set", directory=str(daq.output), prefix="gui_", n_images=N_IMAGES)
    sending = send_later(daq, N_IMAGES, 20)
    gui.ask("click", button="start")
    gui.wait(lambda found: found["can_stop"], "it acquires")
    gui.wait(lambda found: found["counts"]["complete"] >= 5, "images come")
    found = gui.wait(lambda found: "images/s" in found["detector"], "a rate")
    assert "<b>RUNNING</b>" in found["banner"]
    sending.join()
    found = gui.wait(lambda found: found["can_start"], "it has ended")
    assert found["counts"] == {"expected": N_IMAGES, "complete": N_IMAGES, "incomplete": 0, "lost": 0}
    assert found["verdict"] == "every image is accounted for"
    assert found["progress"] == "100.0 %"
    found = gui.wait(lambda found: found["file"] != "-", "the file")
    assert found["file"] == daq.facade.lastFile
    daq.check_pixels(range(1, N_IMAGES + 1))
    # The picture is the preview, the first row on top.
    wait_until(lambda: np.array_equal(gui.ask("pixels"), daq.facade.preview), 10, "the last preview")
    wait_until(lambda: f"image {daq.facade.previewId} " in gui.ask()["title"], 5, "its id")
    path = tmp_path / "window.png"
    gui.ask("shot", path=str(path))
    with Image.open(path) as picture:
        assert picture.size == (1200, 820)
        assert len(picture.convert("L").getcolors(256) or ()) > 30  # not an empty window


def test_losses_are_seen(daq: Daq, gui: Gui) -> None:
    gui.wait(lambda found: found["can_start"], "it is ready")
    gui.ask("set", directory=str(daq.output), prefix="gui_lost_", n_images=20)
    send_later(daq, 20, 50, drop_every=301)
    gui.ask("click", button="start")
    gui.wait(lambda found: found["can_stop"], "it acquires")
    found = gui.wait(lambda found: found["can_start"], "it has ended")
    assert found["counts"] == {**daq.ledger()}
    assert found["counts"]["incomplete"] > 0


def test_a_refusal_says_why(daq: Daq, gui: Gui) -> None:
    gui.wait(lambda found: found["can_start"], "it is ready")
    gui.ask("set", directory="/no/such/directory", prefix="gui_", n_images=1)
    gui.ask("click", button="start")
    found = gui.wait(lambda found: "/no/such/directory" in found["message"], "the reason")
    assert "does not exist; create it first" in found["message"]
    assert found["can_start"]


def test_a_facade_that_goes_and_comes_back(daq: Daq, gui: Gui) -> None:
    daq.kill("StdDaq")
    try:
        found = gui.wait(lambda found: "does not answer" in found["banner"], "it is said", 60)
        assert not found["can_start"]
    finally:
        daq.restart("StdDaq")
    gui.wait(lambda found: "<b>STANDBY</b>" in found["banner"] and found["can_start"], "again", 60)
    gui.ask("set", directory=str(daq.output), prefix="gui_again_", n_images=5)
    send_later(daq, 5, 50)
    gui.ask("click", button="start")
    gui.wait(lambda found: found["counts"]["complete"] == 5 and found["can_start"], "all is well", 30)


def test_without_a_facade_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANGO_HOST", "127.0.0.1:1")
    done = stddaq("gui")
    assert done.returncode == 1
    assert "set TANGO_HOST" in done.stderr
