"""This machine as a host that the playbooks deploy to, below a directory of the test's own."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tango

ROOT = Path(__file__).resolve().parents[2]
STARTER = Path("/usr/lib/tango/Starter")
DATABASE = "localhost:10000"
COMPILED_CODE = '''"""Compiled loops are kept with those of the checkout, whose sources are the same."""

from pathlib import Path

from numba.core.caching import InTreeCacheLocator

CHECKOUT = Path({root!r})


class WithTheCheckout(InTreeCacheLocator):
    def __init__(self, py_func, py_file):
        super().__init__(py_func, py_file)
        where = Path(py_file).parts
        inside = where[where.index("site-packages") + 1 : -1]
        self._cache_path = str(CHECKOUT.joinpath(*inside, "__pycache__"))
'''


@dataclass
class Host:
    """Paths of a deployment, and how to deploy to it."""

    prefix: Path
    config_file: Path
    wheel: Path
    output: Path

    @property
    def name(self) -> str:
        return socket.gethostname().partition(".")[0]

    @property
    def detector(self) -> str:
        return str(json.loads(self.config_file.read_text())["detector_name"])

    @property
    def release(self) -> Path:
        """Environment of the wheel, as the playbook calls it."""
        digest = hashlib.sha1(self.wheel.read_bytes(), usedforsecurity=False).hexdigest()[:8]
        return self.prefix / "opt/stddaq/releases" / f"{self.wheel.name.split('-')[1]}-{digest}"

    def play(self, playbook: str, *options: str, **variables: object) -> "Played":
        """Run a playbook against this host."""
        inventory = self.prefix.parent / "hosts.yml"
        local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        groups = {group: {"hosts": {self.name: local}} for group in ("tango_database", "stddaq")}
        inventory.write_text(json.dumps({"all": {"children": groups}}))
        given = {
            "stddaq_prefix": str(self.prefix),
            "stddaq_package": str(self.wheel),
            "stddaq_config_file": str(self.config_file),
            "stddaq_output_roots": [str(self.output)],
            "stddaq_user": "root", "stddaq_group": "root", "stddaq_create_user": False,
            "stddaq_kernel_apply": False, "stddaq_filebeat": True,
            **variables,
        }  # fmt: skip
        command = [
            Path(sys.executable).parent / "ansible-playbook", "-i", inventory, playbook,
            "-e", json.dumps(given), *options,
        ]  # fmt: skip
        environment = {
            **operator_environment(),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self.prefix.parent / "ansible"),
        }
        done = subprocess.run(
            command, cwd=ROOT / "ansible", env=environment, capture_output=True, text=True, check=False
        )
        with (self.prefix.parent / "played.txt").open("a") as log:
            log.write(f"$ {playbook} {' '.join(options)}\n{done.stdout}{done.stderr}\n")
        return Played(done.returncode, done.stdout + done.stderr)

    def files(self) -> dict[str, Any]:
        """Return what is installed, without what the running servers write."""
        own = [self.prefix / "etc", self.prefix / "opt/stddaq"]
        return {
            str(path): path.readlink() if path.is_symlink() else path.stat().st_mtime_ns
            for top in own
            for path in top.rglob("*")
            if "__pycache__" not in path.parts and "/releases/" not in str(path)
        }

    def registered(self) -> dict[str, dict[str, list[str]]]:
        """Return servers of the detector in the database, and the properties of their devices."""
        database = tango.Database(*DATABASE.split(":"))
        found: dict[str, dict[str, list[str]]] = {}
        for server in database.get_server_list():
            if re.search(rf"/{self.detector}(-\d+)?$", server):
                for device in list(database.get_device_class_list(server))[::2]:
                    if not device.startswith("dserver/"):
                        names = list(database.get_device_property_list(device, "*"))
                        values = database.get_device_property(device, names) if names else {}
                        found[server] = {name: list(value) for name, value in values.items()}
        return found

    def processes(self) -> list[int]:
        """Return the process ids of the servers that run from this deployment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes()
            except OSError:
                continue  # it has ended
            if str(self.prefix / "opt").encode() in command:
                found.append(int(path.parent.name))
        return found


@dataclass
class Played:
    """What a run of a playbook said."""

    code: int
    text: str

    @property
    def changed(self) -> int:
        return sum(int(n) for n in re.findall(r"changed=(\d+)", self.text))


def wait_until(predicate: Callable[[], Any], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)


def operator_environment() -> dict[str, str]:
    """Return the environment without what is set for the tests' own Python.

    With PYTHONPATH the servers would run from the checkout and not from the release; unbuffered, Python
    reads a module of Ansible byte by byte.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def build_wheel(directory: Path) -> Path:
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", directory, ROOT], check=True)
    return next(directory.glob("*.whl"))


def prepare_environment(path: Path) -> None:
    """Make an environment that sees what the tests' own holds, but for the package itself.

    The playbook then installs the wheel into it as it would into a new one, and nothing else has to be
    downloaded.
    """
    venv.create(path, with_pip=False, symlinks=True)
    here = next((path / "lib").glob("python3*/site-packages"))
    shared = path / "shared"
    shared.mkdir()
    for entry in Path(tango.__file__).parents[1].iterdir():
        if "tango_stddaq" not in entry.name:
            (shared / entry.name).symlink_to(entry)
    (here / "shared.pth").write_text(f"{shared}\n")
    (here / "compiled_code.py").write_text(COMPILED_CODE.format(root=str(ROOT)))
    # Programs of libraries that are there already: pip does not write them.
    for name, module in (("pip", "pip._internal.cli.main"), ("json2tango", "dsconfig.json2tango")):
        program = path / "bin" / name
        program.write_text(f"#!{path}/bin/python\nfrom {module} import main\nraise SystemExit(main())\n")
        program.chmod(0o755)


@contextmanager
def running_service(name: str) -> Iterator[None]:
    """Have a Debian service run, and stop it at the end if it did not run before."""
    status = subprocess.run(["service", name, "status"], capture_output=True, check=False)
    if status.returncode != 0:
        subprocess.run(["service", name, "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        if status.returncode != 0:
            subprocess.run(["service", name, "stop"], check=True, stdout=subprocess.DEVNULL)


def database_answers() -> bool:
    try:
        tango.Database(*DATABASE.split(":")).get_info()
    except tango.DevFailed:
        return False
    return True


@contextmanager
def running_starter(log: Path) -> Iterator[None]:
    """Run Tango's Starter, as the Debian service does, and stop the servers that it has started."""
    name = socket.gethostname().partition(".")[0]
    server, device = f"Starter/{name}", f"tango/admin/{name}"
    database = tango.Database(*DATABASE.split(":"))
    info = tango.DbDevInfo()
    info.name, info._class, info.server = device, "Starter", server
    database.add_device(info)
    proxy = tango.DeviceProxy(f"tango://{DATABASE}/{device}")

    def answers() -> bool:
        try:
            proxy.ping()
        except tango.DevFailed:
            return False
        return True

    assert not answers(), "a Starter runs on this machine already"
    environment = {
        **operator_environment(),
        "TANGO_HOST": DATABASE,
        "NUMBA_CACHE_LOCATOR_CLASSES": "compiled_code.WithTheCheckout",
    }
    with log.open("wb") as output:
        process = subprocess.Popen([STARTER, name], env=environment, stdout=output, stderr=output)
        try:
            wait_until(answers, 30, "Starter answers")
            yield
        finally:
            process.terminate()
            process.wait(10)
            database.delete_server(server)
