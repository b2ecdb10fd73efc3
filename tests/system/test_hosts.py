"""Forwarding between hosts over bad cables: images are accounted for, and links mend by themselves."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .hosts import Cable, Host, Network, needs_hosts
from .programs import Program, save, wait_until
from .rig import rig_config

pytestmark = [pytest.mark.system, needs_hosts]

_N = 2
_PORT = 7000
_HOST_PROGRAM = [sys.executable, "-m", "tests.system.host_programs"]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


class Forwarding:
    """One host that has images, others that get them."""

    def __init__(self, network: Network, directory: Path, n_targets: int = 1, **changes: Any) -> None:
        self.network, self.directory = network, directory
        self.config = rig_config(
            "FWD",  # the hosts share nothing: all have the same names
            **{
                "max_number_of_forwarders_spawned": _N,
                "use_all_forwarders": True,
                "ring_slots": 512,  # the reader by hand does not see that it is overtaken
                **changes,
            },
        )
        self.path = save(self.config, directory / "config.json")
        self.first = network.host(directory)
        self.targets = [network.host(directory) for _ in range(n_targets)]
        self.programs: dict[str, Program] = {}
        for i, host in enumerate(self.targets):
            whole = self.config.sender_sends_full_images
            sync = (
                ["sync-metadata", self.path, self._address(_N)] if whole else ["sync-stream", self.path]
            )
            self.stage(host, f"sync {i}", *sync)
            for part in range(_N):
                self.stage(
                    host, f"receive {i} {part}", "stream-receive", self.path, self._address(part), part
                )
            host.start(
                directory / f"target-{i}.log", *_HOST_PROGRAM, "target", self.path, self.output(i)
            )
        for part in range(_N):
            self.send(part)
        if self.config.sender_sends_full_images:
            self.stage(self.first, "order", "metadata-stream", self.path, f"tcp://*:{_PORT + _N}")
        for program in self.programs.values():
            program.wait_for("[event] started")

    def _address(self, part: int) -> str:
        return f"tcp://{self.first.address}:{_PORT + part}"

    def send(self, part: int) -> None:
        self.stage(self.first, f"send {part}", "stream-send", self.path, f"tcp://*:{_PORT + part}", part)

    def stage(self, host: Host, name: str, *arguments: object) -> None:
        self.programs[name] = host.stddaq(self.directory / f"{name}.log", "stage", *arguments)

    def output(self, target: int) -> Path:
        return self.directory / f"images-{target}"

    def images(self, target: int = 0) -> list[dict[str, Any]]:
        path = self.output(target)
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def source(self, hz: float) -> Program:
        """Send images from now on."""
        log = self.directory / "source.log"
        self.sending = self.first.start(log, *_HOST_PROGRAM, "source", self.path, hz)
        return self.sending

    def end_source(self) -> int:
        """End it and wait for the last image; returns how many there were."""
        assert self.sending.end()[0] == 0, self.sending.output
        last = int(self.sending.output.split()[-1])
        for target in range(len(self.targets)):
            wait_until(
                lambda target=target: any(image["id"] == last for image in self.images(target)),
                f"image {last} arrives",
            )
        return last

    def wait_more(self, n: int, status: int = 1, target: int = 0) -> None:
        """Wait for so many more images, all with this status."""
        before = len(self.images(target))

        def there() -> bool:
            return len([1 for i in self.images(target)[before:] if i["status"] == status]) >= n

        wait_until(
            there, f"{n} images of status {status} more; last came {self.images(target)[-1:]}", 30
        )

    def counters(self, name: str) -> dict[str, int]:
        """End a stage; returns the counters of its last statistics line."""
        program = self.programs.pop(name)
        assert program.end()[0] == 0, program.output
        line = [line for line in program.output.splitlines() if ",detector=" in line][-1]
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)i", line)}

    def expect_accounted(self, count: int, target: int = 0) -> dict[str, int]:
        """Every image has one bin; what was published is right, and in order."""
        images = self.images(target)
        ids = [image["id"] for image in images]
        assert ids == sorted(set(ids))
        assert all(image["same"] for image in images if image["status"] == 1)
        assert all(image["or_zero"] for image in images)
        found = self.counters(f"sync {target}")
        bins = ("complete", "incomplete", "lost", "skipped_ids", "overwritten")
        assert sum(found[name] for name in bins) + ids[0] - 1 == count, found
        assert found["complete"] == sum(image["status"] == 1 for image in images)
        assert found["incomplete"] == sum(image["status"] == 2 for image in images)
        return found


def test_parts_to_two_hosts_over_bad_cables(network: Network, tmp_path: Path) -> None:
    forwarding = Forwarding(network, tmp_path, n_targets=2, detector_type="eiger")
    forwarding.source(40)
    forwarding.wait_more(10)

    # Loss, delay and another order: TCP makes up for it, no image is the worse for it.
    network.cable = Cable(loss=0.03, delay_s=0.003, jitter_s=0.004)
    for target in range(2):
        forwarding.wait_more(60, target=target)
    assert network.n_lost > 10
    assert network.n_reordered > 10
    assert all(image["status"] == 1 for image in forwarding.images())
    network.cable = Cable()

    # A sender is killed: the images of that time are half, and it is found again.
    program = forwarding.programs.pop("send 1")
    program.process.kill()
    program.process.wait()
    forwarding.wait_more(3, status=2)
    forwarding.send(1)
    forwarding.wait_more(5)

    # A cable is cut for a moment, and for longer than the heartbeats: then the connections die.
    first, second = forwarding.targets
    first.set_link(up=False)
    time.sleep(1)
    first.set_link(up=True)
    forwarding.wait_more(20)
    second.set_link(up=False)
    time.sleep(6.5)
    second.set_link(up=True)
    forwarding.wait_more(5, target=1)

    count = forwarding.end_source()
    found = [forwarding.expect_accounted(count, target) for target in range(2)]
    assert all(entry["incomplete"] > 0 for entry in found)
    assert (found[0]["skipped_ids"], found[0]["lost"], found[0]["overwritten"]) == (0, 0, 0)
    assert found[1]["skipped_ids"] > 0  # what was under way when the connections died
    receivers = [forwarding.counters(f"receive 1 {part}") for part in range(_N)]
    assert all(entry["connections"] >= 2 for entry in receivers), receivers


def test_whole_images_over_bad_cables(network: Network, tmp_path: Path) -> None:
    forwarding = Forwarding(network, tmp_path, detector_type="eiger", sender_sends_full_images=True)
    network.cable = Cable(loss=0.03, delay_s=0.003, jitter_s=0.004)
    forwarding.source(40)
    forwarding.wait_more(60)
    (target,) = forwarding.targets
    target.set_link(up=False)
    time.sleep(1)
    target.set_link(up=True)
    forwarding.wait_more(20)
    network.cable = Cable()
    found = forwarding.expect_accounted(forwarding.end_source())
    # An image whose pixels are held up longer than the queue waits is lost, and named so; none is half.
    assert found["incomplete"] == 0, found
    assert found["complete"] >= 80, found
