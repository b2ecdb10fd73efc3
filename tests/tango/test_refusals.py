"""Bad input: a clear error each time, and the device works afterwards."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tango
from tango import DevState

from .conftest import Daq, refused, wait_until

pytestmark = pytest.mark.tango


@pytest.fixture(autouse=True)
def _works_afterwards(daq: Daq) -> Iterator[None]:
    yield
    daq.check_good(3)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", ("outputPath", "empty")),
        ("run1", ("outputPath 'run1'", "absolute")),
        ("/no/such/directory", ("/no/such/directory", "does not exist")),
        ("/usr", ("/usr", "outside the allowed directories")),
        ("/dev/null", ("/dev/null", "not a directory")),
    ],
)
def test_an_unusable_output_path_is_refused(daq: Daq, path: str, words: tuple[str, ...]) -> None:
    daq.facade.outputPath = path
    daq.facade.filePrefix = "x"
    with refused(*words):
        daq.facade.Start()
    assert daq.facade.state() == DevState.STANDBY


def test_a_path_that_leads_out_of_the_roots_is_refused(daq: Daq, tmp_path: Path) -> None:
    link = daq.output / "link"
    link.symlink_to(tmp_path)
    for path in (link, daq.output / ".."):
        daq.facade.outputPath = str(path)
        with refused("outside the allowed directories"):
            daq.facade.Start()
    link.unlink()


@pytest.mark.parametrize("prefix", ["", "a/b", "../up", ".hidden", "line\nbreak", "x" * 300])
def test_an_unusable_file_prefix_is_refused(daq: Daq, prefix: str) -> None:
    daq.facade.outputPath = str(daq.output)
    daq.facade.filePrefix = prefix
    with refused("filePrefix"):
        daq.facade.Start()


@pytest.mark.parametrize("name", ["old0.h5", "old1.h5", "old_master.h5"])
def test_an_existing_file_is_not_overwritten(daq: Daq, name: str) -> None:
    existing = daq.output / name
    existing.write_text("precious")
    daq.facade.outputPath = str(daq.output)
    daq.facade.filePrefix = "old"
    with refused(str(existing), "exists already", "another filePrefix"):
        daq.facade.Start()
    assert existing.read_text() == "precious"
    existing.unlink()
    assert not list(daq.output.glob("old*"))


def test_files_are_overwritten_on_request_and_only_by_that_one_acquisition(daq: Daq) -> None:
    facade = daq.facade
    for name in ("again_0.h5", "again_1.h5", "again_master.h5"):
        (daq.output / name).write_text("old")
    facade.outputPath, facade.filePrefix, facade.imageCount = str(daq.output), "again_", 4
    facade.overwrite = True
    facade.Start()
    assert not facade.overwrite
    assert not daq.stage("StdDaqWriterDriver").overwrite
    daq.detector.run(4, 100)
    daq.wait_end()
    assert daq.ledger() == {"expected": 4, "complete": 4, "incomplete": 0, "lost": 0}
    assert facade.lastFile == str(daq.output / "again_master.h5")
    daq.check_pixels(range(1, 5))
    with refused("exists already"):
        facade.Start()
    daq.check_pixels(range(1, 5))


def test_more_images_than_the_disk_holds_are_refused(daq: Daq) -> None:
    n_images = 10 * shutil.disk_usage(daq.output).free // daq.config.sizes.slot_bytes
    with refused(f"{n_images} images need", "GiB are free"):
        daq.start(n_images)


def test_an_image_count_of_0_is_refused(daq: Daq) -> None:
    with pytest.raises(tango.DevFailed, match="imageCount"):
        daq.facade.imageCount = 0


def test_start_with_a_stage_stopped_names_it(daq: Daq) -> None:
    stream = daq.stage("StdDaqLiveStream")
    stream.Stop()
    with refused("live-stream-0", "Start them"):
        daq.start(3)
    stream.Start()


def _write_config(daq: Daq, **changes: Any) -> None:
    daq.facade.config = json.dumps({**json.loads(daq.facade.config), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bit_depth": 12}, ("bit_depth", "12", "8, 16 or 32")),
        ({"start_udp_port": "many"}, ("start_udp_port", "many")),
        ({"n_modules": -1}, ("n_modules", "-1", "greater than or equal to 1")),
        ({"module_positions": {"9": [0, 0, 1, 1]}}, ("module_positions", "9", "0 to 3")),
        ({"detector_name": "OTHER"}, ("detector_name", "OTHER", "cannot change")),
    ],
)
def test_a_wrong_configuration_is_refused_and_not_stored(
    daq: Daq, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    before = daq.facade.config
    with refused(*words):
        _write_config(daq, **changes)
    assert daq.facade.config == before == daq.config_path.read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"n_modules": 1, "n_modules": 2}', "nonsense"])
def test_a_configuration_that_is_no_json_object_is_refused(daq: Daq, text: str) -> None:
    before = daq.facade.config
    with refused("config", "JSON"):
        daq.facade.config = text
    assert daq.facade.config == before


def test_a_missing_key_is_named(daq: Daq) -> None:
    with refused("bit_depth", "missing"):
        daq.facade.config = json.dumps({"detector_name": daq.config.detector_name})


def test_the_configuration_cannot_change_during_an_acquisition(daq: Daq) -> None:
    before = daq.facade.config
    daq.start(2)
    with refused("during an acquisition"):
        _write_config(daq, module_sync_queue_size=20)
    assert daq.facade.config == before
    daq.detector.run(2, 100)
    daq.wait_end()
    assert daq.ledger()["complete"] == 2


def test_a_new_configuration_is_stored_and_used_by_all_stages_at_once(daq: Daq) -> None:
    before = daq.facade.config
    started = time.monotonic()
    _write_config(daq, module_sync_queue_size=20, ring_slots=60)
    assert time.monotonic() - started < 3
    assert json.loads(daq.config_path.read_text())["module_sync_queue_size"] == 20
    assert daq.stage("StdDaqModuleSync").state() == DevState.RUNNING
    ring = Path("/dev/shm") / daq.config.segment("image")
    assert ring.stat().st_size >= 60 * daq.config.sizes.slot_bytes
    daq.check_good(70)
    daq.facade.config = before


def test_a_broken_configuration_file_is_repaired_through_the_facade(daq: Daq) -> None:
    good = daq.facade.config
    daq.config_path.write_text("{")
    with refused("not valid JSON"):
        daq.stage("StdDaqModuleSync").ReloadConfig()
    wait_until(lambda: daq.facade.state() == DevState.FAULT, 5)
    assert "module-sync-0" in daq.facade.status()
    assert "not valid JSON" in daq.stage("StdDaqModuleSync").status()
    daq.facade.config = good


def test_a_port_in_use_is_named_and_start_works_once_it_is_free(daq: Daq) -> None:
    receiver = daq.stage("StdDaqUdpReceiver")
    receiver.Stop()
    assert receiver.state() == DevState.STANDBY
    port = daq.config.start_udp_port + 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", port))
        with refused(str(port), "in use"):
            receiver.Start()
        assert receiver.state() != DevState.RUNNING
    receiver.Start()
    assert receiver.state() == DevState.RUNNING


def test_packets_of_another_kind_are_counted_and_do_no_harm(daq: Daq) -> None:
    receiver = daq.stage("StdDaqUdpReceiver")
    receiver.Reset()
    wait_until(lambda: receiver.badSize == 0, 5)
    detector = daq.detector
    packet = detector.detector.packets(detector.truth(1), 1, 0)[0]
    garbage = np.random.default_rng(1).integers(0, 256, packet.size, np.uint8).tobytes()
    daq.start(20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:

        def disturb(_image_id: int) -> None:
            for module in range(4):
                address = ("127.0.0.1", daq.config.start_udp_port + module)
                for data in (b"", b"x", packet.tobytes()[:-1], packet.tobytes() + b"x", garbage):
                    stranger.sendto(data, address)

        detector.run(20, 50, on_image=disturb)
    daq.wait_end()
    assert daq.ledger() == {"expected": 20, "complete": 20, "incomplete": 0, "lost": 0}
    daq.check_pixels(range(1, 21))
    wait_until(lambda: receiver.badSize == 4 * 4 * 20, 5)
    assert receiver.badHeader == 4 * 20
    assert receiver.state() == DevState.ALARM
    assert "bad_size" in receiver.status()


def test_garbage_before_the_detector_starts_does_no_harm(daq: Daq) -> None:
    daq.start(5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for n_bytes in (0, 1, 47, 48, 1500, 60_000):
            stranger.sendto(b"\xff" * n_bytes, ("127.0.0.1", daq.config.start_udp_port))
    daq.detector.run(5, 100)
    daq.wait_end()
    assert daq.ledger()["complete"] == 5


@pytest.mark.parametrize("tango_class", ["StdDaq", "StdDaqUdpReceiver", "StdDaqWriterDriver"])
@pytest.mark.parametrize(
    ("file", "words"),
    [("", ("ConfigFile", "empty")), ("/no/such/file.json", ("/no/such/file.json", "cannot be read"))],
)
def test_without_a_configuration_file_a_device_is_in_fault_and_says_why(
    daq: Daq, tango_class: str, file: str, words: tuple[str, ...]
) -> None:
    device = daq.stage(tango_class)
    device.put_property({"ConfigFile": [file]})
    device.Init()
    assert device.state() == DevState.FAULT
    assert not [word for word in words if word not in device.status()], device.status()
    replies = device.read_attributes([name for name in device.get_attribute_list() if name != "config"])
    assert not [reply.name for reply in replies if reply.has_failed]
    with refused(*words):
        device.Start()
    device.put_property({"ConfigFile": [str(daq.config_path)]})
    device.Init()
    assert device.state() != DevState.FAULT


def test_an_unknown_module_is_refused_by_the_receiver(daq: Daq) -> None:
    receiver = daq.stage("StdDaqUdpReceiver")
    modules = receiver.get_property("Modules")
    receiver.put_property({"Modules": ["0-7"]})
    receiver.Init()
    assert receiver.state() == DevState.FAULT
    assert "modules [4, 5, 6, 7]" in receiver.status()
    receiver.put_property(modules)
    receiver.Init()
