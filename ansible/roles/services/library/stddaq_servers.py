#!/usr/bin/python
"""Ansible module: the servers of a detector run, under Tango's Starter, and no others of it."""

import re
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: stddaq_servers
short_description: Run the servers of a detector under Tango's Starter
description:
  - Stops and unregisters servers of the detector that are not wanted any more, sets host and startup
    level of the others, and starts them in this order. Servers that were started with another
    fingerprint are started again. Runs where PyTango is installed.
options:
  detector: {description: detector_name of the configuration., type: str, required: true}
  host: {description: Host of Starter; empty takes them out of its hands., type: str, required: true}
  servers:
    description: Entries with server, device and level, as C(stddaq plan --format json) prints them.
    type: list
    elements: dict
    required: true
  fingerprint: {description: Changes when servers must be started again., type: str, default: ""}
  fingerprint_file: {description: Where the fingerprint of what runs is kept., type: path}
  interrupt: {description: Stop servers even while they acquire., type: bool, default: false}
  timeout: {description: Seconds that a server may take to start or stop., type: int, default: 180}
author: tango_stddaq
"""
EXAMPLES = r"""
- name: Run the servers
  stddaq_servers:
    detector: EIGER1
    host: daq1
    servers: "{{ plan.servers }}"
"""
RETURN = r"""
removed: {description: Servers that were unregistered., type: list, returned: always}
started: {description: Servers that were started., type: list, returned: always}
"""


class Servers:
    """What is registered and running of one detector."""

    def __init__(self, module: AnsibleModule) -> None:
        import tango

        self.tango, self.module, self.params = tango, module, module.params
        self.database = tango.Database()
        # NAME, NAME-0: and not the NAME-2 of a detector with that name, which has a facade of its own.
        pattern = re.compile(rf"StdDaq\w*/{re.escape(self.params['detector'])}(-\d+)?", re.IGNORECASE)
        self.registered = [name for name in self.database.get_server_list() if pattern.fullmatch(name)]
        self.starter = (
            tango.DeviceProxy(f"tango/admin/{self.params['host']}") if self.params["host"] else None
        )

    def running(self, server: str) -> bool:
        try:
            self.tango.DeviceProxy(f"dserver/{server}").ping()
        except self.tango.DevFailed:
            return False
        return True

    def await_running(self, server: str, wanted: bool) -> None:
        deadline = time.monotonic() + self.params["timeout"]
        while self.running(server) != wanted:
            if time.monotonic() > deadline:
                what = "start" if wanted else "stop"
                raise RuntimeError(
                    f"{server} did not {what} within {self.params['timeout']} s; look at its log"
                )
            time.sleep(0.1)

    def stop(self, servers: list[str]) -> None:
        for server in servers:
            self.tango.DeviceProxy(f"dserver/{server}").Kill()
        for server in servers:
            self.await_running(server, wanted=False)

    def start(self, entries: list[dict]) -> None:
        for level in sorted({entry["level"] for entry in entries}):
            names = [entry["server"] for entry in entries if entry["level"] == level]
            for name in names:
                self.start_one(name)
            for name in names:
                self.await_running(name, wanted=True)

    def start_one(self, server: str) -> None:
        """Starter looks only now and then which servers run, and takes one just stopped for running."""
        deadline = time.monotonic() + self.params["timeout"]
        while True:
            try:
                self.starter.DevStart(server)
            except self.tango.DevFailed as error:
                stale = "already running" in error.args[0].desc and not self.running(server)
                if not stale or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def host_of(self, server: str) -> tuple[str, int, int]:
        # The raw command: of a server that nobody has given a host, the numbers are blank.
        _, host, mode, level = self.database.command_inout("DbGetServerInfo", server)[:4]
        return host.strip(), int(mode.strip() or 0), int(level.strip() or 0)

    def refuse_foreign(self, servers: list[str]) -> None:
        """Two hosts with the same detector_name would take each other's servers away."""
        for server in servers:
            host = self.host_of(server)[0].partition(".")[0] if server in self.registered else ""
            if self.starter is not None and host not in ("", self.params["host"]):
                raise RuntimeError(
                    f"{server} belongs to host {host}; give the detector of {self.params['host']} "
                    f"another detector_name, or remove the one on {host} first"
                )

    def refuse_interruption(self) -> None:
        facade = f"{self.params['detector']}/stddaq/facade"
        try:
            acquiring = self.tango.DeviceProxy(facade).acquiring
        except self.tango.DevFailed:
            return
        if acquiring and not self.params["interrupt"]:
            raise RuntimeError(f"{facade} acquires; wait for its end, or set stddaq_interrupt=true")

    def has_info(self, entry: dict) -> bool:
        if entry["server"] not in self.registered:  # it will be, this is a check
            return False
        return self.host_of(entry["server"])[1:] == self.mode_and_level(entry)

    def mode_and_level(self, entry: dict) -> tuple[int, int]:
        return (1, entry["level"]) if self.params["host"] else (0, 0)

    def set_info(self, entry: dict) -> None:
        info = self.tango.DbServerInfo()
        info.name, info.host = entry["server"], self.params["host"]
        info.mode, info.level = self.mode_and_level(entry)
        self.database.put_server_info(info)


def run(module: AnsibleModule) -> dict:
    servers, params = Servers(module), module.params
    wanted = {entry["server"]: entry for entry in params["servers"]}
    removed = [name for name in servers.registered if name not in wanted]
    servers.refuse_foreign([*wanted, *removed])
    running = {name for name in {*wanted, *removed} if servers.running(name)}
    mark = Path(params["fingerprint_file"]) if params["fingerprint_file"] else None
    old_mark = mark.read_text().strip() if mark is not None and mark.exists() else ""
    # What Starter has started is not left running beside another one's.
    taken = [n for n in wanted if not params["host"] and n in running and servers.host_of(n)[1]]
    again = [name for name in wanted if name in running and params["fingerprint"] != old_mark]
    to_start = [e for n, e in wanted.items() if params["host"] and (n not in running or n in again)]
    to_level = [entry for entry in wanted.values() if not servers.has_info(entry)]
    result = {
        "changed": bool(removed or to_start or to_level or taken),
        "removed": removed,
        "started": [entry["server"] for entry in to_start],
        "diff": {
            "before": "".join(
                f"{n}{' runs' if n in running else ''}\n" for n in sorted(servers.registered)
            ),
            "after": "".join(
                f"{n} runs{' (started again)' if n in again else ''}\n" if params["host"] else f"{n}\n"
                for n in sorted(wanted)
            ),
        },
    }
    if module.check_mode:
        return result
    to_stop = [*(name for name in removed if name in running), *(again if params["host"] else taken)]
    if to_stop:
        servers.refuse_interruption()
    # The facade goes first: it would call the others dead.
    servers.stop(sorted(to_stop, key=lambda name: -wanted[name]["level"] if name in wanted else -9))
    for name in removed:
        servers.database.delete_server(name)
        servers.database.delete_server_info(name)
    for entry in to_level:
        servers.set_info(entry)
    if servers.starter is not None and (removed or to_level):
        servers.starter.UpdateServersInfo()
    if to_start:
        servers.start(to_start)
    if mark is not None and wanted and old_mark != params["fingerprint"]:
        mark.write_text(params["fingerprint"] + "\n")
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "detector": {"type": "str", "required": True},
            "host": {"type": "str", "required": True},
            "servers": {"type": "list", "elements": "dict", "required": True},
            "fingerprint": {"type": "str", "default": ""},
            "fingerprint_file": {"type": "path"},
            "interrupt": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except Exception as error:
        first = error.args[0] if error.args else error
        module.fail_json(msg=str(getattr(first, "desc", error)).strip())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
