"""One running system, and everybody who may drive it: each takes images to a file whose counts close."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from websockets.sync.client import connect

from .conftest import Daq, running_system, wait_until
from .test_gui import Gui, window
from .test_rest import Service, served
from .test_sardana import Door, open_door

pytestmark = [pytest.mark.tango, pytest.mark.timeout(300)]

N_IMAGES = 10


@dataclass
class Clients:
    """All that talk to the system."""

    daq: Daq
    service: Service
    door: Door
    gui: Gui


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("all")
        system = running_system(directory, simulate=True, number_of_writers=2)
        daq = stack.enter_context(system)
        service = stack.enter_context(served(daq, directory / "rest.log"))
        door = stack.enter_context(open_door(daq, tmp_path_factory.mktemp("servers")))
        device = f"tango://{daq.system.tango_host}/{daq.system.plan.facade.device}"
        gui = stack.enter_context(window(device))
        gui.wait(lambda found: found["can_start"], "the window is ready")
        yield Clients(daq, service, door, gui)


def check(daq: Daq, master: Path) -> None:
    """The file has what the detector sent, and its counts close."""
    with h5py.File(master) as file:
        data, ledger = file["entry/data"], file["entry/ledger"]
        ids = data["image_id"][()].tolist()
        assert len(ids) == N_IMAGES
        for at, image_id in enumerate(ids):
            np.testing.assert_array_equal(data["data"][at], daq.detector.truth(image_id))
        counts = {name: int(ledger[name][()]) for name in ("expected", "complete", "incomplete", "lost")}
    assert counts == {"expected": N_IMAGES, "complete": N_IMAGES, "incomplete": 0, "lost": 0}


def test_every_client_ends_in_a_good_file(clients: Clients) -> None:
    daq, service = clients.daq, clients.service

    def ready() -> None:
        daq.wait_ready()
        wait_until(lambda: service.simulator.state().name == "STANDBY", 20, "the detector is done")

    # A plain Tango client.
    service.send_images(N_IMAGES)
    prefix = daq.start(N_IMAGES)
    daq.wait_end()
    check(daq, daq.output / f"{prefix}master.h5")

    # std_daq_client over REST.
    ready()
    service.send_images(N_IMAGES)
    path = daq.output / "rest.h5"
    service.client.start_writer_sync({"output_file": str(path), "n_images": N_IMAGES})
    check(daq, path)

    # A WebSocket client.
    ready()
    with connect(f"ws://127.0.0.1:{service.websocket_port}") as websocket:
        service.send_images(N_IMAGES)
        start = {"command": "start", "path": str(daq.output), "file_prefix": "ws_", "n_image": N_IMAGES}
        websocket.send(json.dumps(start))
        while json.loads(websocket.recv(timeout=30))["status"] != "file_saved":
            pass
    check(daq, daq.output / "ws_master.h5")

    # A Sardana macro.
    ready()
    service.send_images(N_IMAGES)
    clients.door.run("stddaq_acquire", N_IMAGES, daq.output, "macro_")
    check(daq, daq.output / "macro_master.h5")

    # Somebody at the window, who has seen all the others as well.
    ready()
    clients.gui.wait(lambda found: found["file"].endswith("macro_master.h5"), "the others' last file")
    clients.gui.ask("set", directory=str(daq.output), prefix="gui_", n_images=N_IMAGES)
    service.send_images(N_IMAGES)
    clients.gui.ask("click", button="start")
    clients.gui.wait(lambda found: found["file"].endswith("gui_master.h5"), "its file")
    clients.gui.wait(lambda found: found["can_start"], "the end")
    check(daq, daq.output / "gui_master.h5")

    # The service remembers all five, the newest first.
    wait_until(lambda: len(service.client.get_logs(10)) == 5, 10, "five records")
    names = [Path(entry["info"]["output_file"]).name for entry in service.client.get_logs(10)]
    assert names == ["gui_master.h5", "macro_master.h5", "ws_master.h5", "rest.h5", f"{prefix}master.h5"]
