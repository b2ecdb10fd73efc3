"""Several hosts on one machine: a network, /dev/shm and /tmp of its own each, and cables that are bad.

A host is a process that holds its namespaces; they vanish with it, whatever happens to the test. The
network between hosts is a hub in this process, with a TAP device for each: it loses, delays and reorders
frames as a test says. (`tc netem` would do the same, but not every kernel has it.)
"""

import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tango_stddaq.closing import Closing
from tango_stddaq.io import processes

from .programs import STDDAQ, Program

ROOT = Path(__file__).resolve().parents[2]
_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x1002
_FRAME_BYTES = 65536
_LIFE_S = 300
"""A host ends by itself: nothing of a test that was killed stays."""


def why_not() -> str:
    """Return why there can be no hosts here; "" if there can."""
    missing = [name for name in ("ip", "unshare", "nsenter", "mount") if shutil.which(name) is None]
    if missing:
        return f"hosts need {', '.join(missing)}: apt-get install iproute2 util-linux"
    if os.geteuid():
        return "hosts need root, for network namespaces"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "hosts need /dev/net/tun"
    probe = subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else ""


@dataclass
class Cable:
    """What happens to a frame between two hosts."""

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Delays differ by up to this: frames overtake each other."""
    cut: bool = False


class Network(Closing):
    """A hub: what one host sends all others receive, if the cable lets it through."""

    def __init__(self, seed: int = 1) -> None:
        self.cable = Cable()
        self.n_frames = self.n_lost = self.n_reordered = 0
        self._random = random.Random(seed)
        self._ports: dict[int, str] = {}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._stop = threading.Event()
        self._stack = ExitStack()
        self.hosts: list[Host] = []
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def host(self, shared: Path) -> "Host":
        """Add a host; all see the directory `shared` under the same name."""
        address = f"10.83.7.{len(self.hosts) + 1}"
        name = f"t{uuid.uuid4().hex[:10]}"
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER))
        self._stack.callback(os.close, fd)
        host = self._stack.enter_context(Host(name, address, shared))
        self.hosts.append(host)
        self._ports[fd] = name
        return host

    def _run(self) -> None:
        number = 0
        newest_s = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                _, _, source, frame = heapq.heappop(self._waiting)
                for fd in list(self._ports):
                    if fd != source:
                        self._write(fd, frame)
            wait_s = min(0.02, max(0.0, self._waiting[0][0] - now)) if self._waiting else 0.02
            for fd in select.select(list(self._ports), [], [], wait_s)[0]:
                try:
                    frame = os.read(fd, _FRAME_BYTES)
                except OSError:  # its host has just gone, or the link is down
                    continue
                cable = self.cable
                self.n_frames += 1
                if cable.cut or self._random.random() < cable.loss:
                    self.n_lost += 1
                    continue
                due_s = time.monotonic() + cable.delay_s + self._random.random() * cable.jitter_s
                self.n_reordered += due_s < newest_s
                newest_s = max(newest_s, due_s)
                number += 1
                heapq.heappush(self._waiting, (due_s, number, fd, frame))

    @staticmethod
    def _write(fd: int, frame: bytes) -> None:
        with suppress(OSError):  # the link is down, or its queue full: a cable loses it
            os.write(fd, frame)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._stack.close()


class Host(Closing):
    """A machine: `run` starts programs on it."""

    def __init__(self, link: str, address: str, shared: Path) -> None:
        self.address, self.link = address, link
        self.n_programs = 0
        self._programs: list[subprocess.Popen[bytes]] = []
        # What lies below /tmp and is needed there is seen through the new /tmp.
        kept = {ROOT, Path(sys.prefix), Path(sys.base_prefix), shared.resolve()}
        lines = [
            "set -e",
            "mount --make-rprivate /",
            "mount --rbind /tmp /mnt",
            "mount -t tmpfs -o mode=1777 tmpfs /tmp",
            *(
                f"mkdir -p '{path}'; mount --bind '/mnt/{path.relative_to('/tmp')}' '{path}'"
                for path in sorted(kept)
                if path.is_relative_to("/tmp")
            ),
            "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
            "ip link set lo up",
            "echo ready",
            f"exec sleep {_LIFE_S}",
        ]
        command = ["unshare", "-n", "-m", "sh", "-c", "\n".join(lines)]
        self._process = subprocess.Popen(
            processes.leash_command(command),
            env=processes.leash_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        try:
            said = self._process.stdout.readline()
            assert said == b"ready\n", said + self._process.stdout.read()
            run(["ip", "link", "set", link, "netns", str(self.pid)])
            self.call("ip", "link", "set", link, "mtu", 9000)
            self.call("ip", "address", "add", f"{address}/24", "dev", link)
            self.set_link(up=True)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def _inside(self, *command: object) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "--", *map(str, command)]

    def call(self, *command: object) -> str:
        """Run a command on the host to its end; returns what it prints."""
        return run(self._inside(*command))

    def set_link(self, up: bool) -> None:
        """Pull the plug, or put it in again."""
        self.call("ip", "link", "set", self.link, "up" if up else "down")

    def start(self, log: Path, *command: object, **environment: str) -> Program:
        """Start a program; it ends with the host."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._inside(*command),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "TERM": "dumb", "COLUMNS": "200", **environment},
                cwd=ROOT,
            )
        self._programs.append(process)
        return Program(process, log)

    def stddaq(self, log: Path, *arguments: object, **environment: str) -> Program:
        return self.start(log, *STDDAQ, *arguments, **environment)

    def close(self) -> None:
        for process in self._programs:
            if process.poll() is None:
                process.terminate()
        for process in self._programs:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._process.terminate()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()


def run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == 0, (command, result.stdout, result.stderr)
    return result.stdout


needs_hosts = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
