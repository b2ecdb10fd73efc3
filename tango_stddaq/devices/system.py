"""Brings up a whole system: database, registration, servers; and takes it down without a trace."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import tango

from tango_stddaq.config import DaqConfig
from tango_stddaq.control.plan import ServerPlan, SystemPlan
from tango_stddaq.errors import StdDaqError
from tango_stddaq.io import processes, ring_segments
from tango_stddaq.io.log_output import FILE_VARIABLE, rotate

START_TIMEOUT_S: Final = 90.0
_STOP_TIMEOUT_S: Final = 8.0
_DATABASE_READY: Final = re.compile(r"host=(\S+?), port=(\d+)")

Progress = Callable[[str], None]


class System:
    """The embedded database and all servers of a plan, as child processes.

    Use it as a context manager: whatever happens inside, no process and no shared memory of it is
    left behind. If this process is killed, its children end by themselves.

    Parameters
    ----------
    log_dir
        Each server's output goes to a file there, of bounded size; older ones get a number.
    tango_host
        HOST:PORT of a Tango database to use; "" starts an embedded one.
    on_progress
        Called with what is being started.
    host
        Which of `hosts` this machine is: only its servers are started.
    """

    def __init__(
        self,
        config: DaqConfig,
        system_plan: SystemPlan,
        log_dir: Path,
        tango_host: str = "",
        on_progress: Progress = lambda _text: None,
        host: str = "",
    ) -> None:
        self.config = config
        self.plan = system_plan
        self.log_dir = log_dir
        self.tango_host = tango_host
        self.on_progress = on_progress
        self.host = host
        self.servers = tuple(server for server in system_plan.servers if server.host == host)
        """Those that run here."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: list[IO[bytes]] = []

    # -- start -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until every device answers.

        Raises
        ------
        StdDaqError
            If a server does not come up; its last lines are in the text.
        """
        self.log_dir.mkdir(parents=True, exist_ok=True)
        ring_segments.remove_abandoned(self.config.detector_name)
        if not self.tango_host:
            self.on_progress("database")
            self.tango_host = self._start_database()
        # Every Tango client of this process talks to that database from now on.
        os.environ["TANGO_HOST"] = self.tango_host
        self._register()
        facade, simulator = self.plan.facade, self.plan.simulator
        stages = [s for s in self.servers if s not in (facade, simulator)]
        for server in stages:
            self._start_server(server)
        for server in stages:
            self.on_progress(server.device)
            self._await(server)
        for last in (facade, simulator):
            if last is None or last not in self.servers:
                continue
            self._start_server(last)
            self.on_progress(last.device)
            self._await(last)
            if last == facade and not self.host:  # else other hosts may come later
                self._await_state(facade)

    def _start_database(self) -> str:
        executable = Path(sys.executable).parent / "PyDatabaseds"
        command = processes.leash_command(
            [str(executable), "--host", "127.0.0.1", "--port", "0", "--print-host-port", "2"]
        )
        environment = {**processes.leash_environment(), "PYTANGO_DATABASE_NAME": ":memory:"}
        self._spawn("database", command, environment)
        found: re.Match[str] | None = None
        deadline = time.monotonic() + START_TIMEOUT_S
        while found is None:
            self._check_alive("database")
            if time.monotonic() > deadline:
                raise StdDaqError(f"the Tango database did not start: {self._tail('database')}")
            time.sleep(0.05)
            text = self._log_path("database").read_text(errors="replace")
            if "Ready to accept request" in text:
                found = _DATABASE_READY.search(text)
        return f"{found[1]}:{found[2]}"

    def _register(self) -> None:
        database = tango.Database(*self.tango_host.rsplit(":", 1))
        for server in self.servers:
            info = tango.DbDevInfo()
            info.name, info._class, info.server = server.device, server.tango_class, server.server
            database.add_device(info)
            database.put_device_property(server.device, server.properties)

    def _start_server(self, server: ServerPlan) -> None:
        command = [sys.executable, "-m", server.module, *server.arguments, server.instance]
        if self.host:  # the address that clients on other hosts reach it by
            address = self.config.hosts[self.host].address
            command += ["-ORBendPoint", f"giop:tcp:{address}:0"]
        environment = {**processes.leash_environment(), "TANGO_HOST": self.tango_host}
        self._spawn(server.server, command, environment)

    def _spawn(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        path = self._log_path(name)
        rotate(path)  # what a server said before it was started again is kept
        log = path.open("ab")
        self._logs.append(log)
        environment = {**environment, FILE_VARIABLE: str(path)}
        with processes.uninterrupted():
            self._processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to us alone: we end them in order
            )

    def run_beside(self, name: str, arguments: list[str]) -> None:
        """Run a `stddaq` command as a client of the system, for as long as it runs."""
        command = processes.leash_command([sys.executable, "-m", "tango_stddaq.cli.main", *arguments])
        self._spawn(name, command, {**processes.leash_environment(), "TANGO_HOST": self.tango_host})

    def _await(self, server: ServerPlan) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._check_alive(server.server)
            with suppress(tango.DevFailed):
                tango.DeviceProxy(f"tango://{self.tango_host}/{server.device}").ping()
                return
            if time.monotonic() > deadline:
                raise StdDaqError(
                    f"{server.server} did not start within {START_TIMEOUT_S:.0f} s: "
                    f"{self._tail(server.server)}"
                )
            time.sleep(0.05)

    def _await_state(self, server: ServerPlan) -> None:
        """Wait until the facade sees all stages work; a stage in FAULT says why."""
        facade = self.device(server)
        deadline = time.monotonic() + START_TIMEOUT_S
        while facade.state() != tango.DevState.STANDBY:
            self.check_alive()
            for stage in self.plan.stages:
                proxy = self.device(stage)
                if proxy.state() == tango.DevState.FAULT:
                    raise StdDaqError(f"{stage.device}: {proxy.status()}")
            if time.monotonic() > deadline:
                raise StdDaqError(f"{server.device}: {facade.status()}")
            time.sleep(0.05)

    # -- while it runs -----------------------------------------------------------------------------

    def device(self, server: ServerPlan) -> tango.DeviceProxy:
        """Return a proxy of a server's device."""
        return tango.DeviceProxy(f"tango://{self.tango_host}/{server.device}")

    @property
    def facade(self) -> tango.DeviceProxy:
        """Proxy of the facade."""
        return self.device(self.plan.facade)

    def check_alive(self) -> None:
        """Check every process but the simulator, without which the system works.

        Raises
        ------
        StdDaqError
            If one has ended.
        """
        simulator = self.plan.simulator.server if self.plan.simulator is not None else None
        for name in self._processes:
            if name != simulator:
                self._check_alive(name)

    def pids(self) -> dict[str, int]:
        """Return the process id of every child."""
        return {name: process.pid for name, process in self._processes.items()}

    def _check_alive(self, name: str) -> None:
        code = self._processes[name].poll()
        if code is not None:
            raise StdDaqError(f"{name} ended with code {code}: {self._tail(name)}")

    def _log_path(self, name: str) -> Path:
        return self.log_dir / f"{name.replace('/', '-')}.log"

    def _tail(self, name: str) -> str:
        lines = self._log_path(name).read_text(errors="replace").splitlines()[-5:]
        return " | ".join(lines) + f" (all of it: {self._log_path(name)})"

    # -- end ---------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End all servers, the database last, and remove what a killed one left behind."""
        names = list(self._processes)
        servers = [name for name in reversed(names) if name != "database"]
        _end([self._processes[name] for name in servers])
        _end([self._processes[name] for name in names if name == "database"])
        self._processes.clear()
        for log in self._logs:
            log.close()
        self._logs.clear()
        ring_segments.remove_abandoned(self.config.detector_name)
        _remove_abandoned_channels(self.config.detector_name)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._stop_undisturbed()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_undisturbed()

    def _stop_undisturbed(self) -> None:
        """Stop, without letting an impatient second Ctrl-C, TERM or HUP leave processes behind."""
        if threading.current_thread() is not threading.main_thread():
            self.stop()
            return
        old = {number: signal.signal(number, signal.SIG_IGN) for number in processes.ENDINGS}
        try:
            self.stop()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _remove_abandoned_channels(detector_name: str) -> None:
    """Remove the names of ZeroMQ channels that killed servers left: those no process holds."""
    held = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    for path in Path("/tmp").glob(f"{detector_name}-*"):
        if path.is_socket() and str(path) not in held:
            path.unlink(missing_ok=True)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            child.terminate()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
