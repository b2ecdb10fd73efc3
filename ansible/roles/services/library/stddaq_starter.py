#!/usr/bin/python
"""Ansible module: registers Tango's Starter of a host and tells it where our servers are."""

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: stddaq_starter
short_description: Tell Tango's Starter where the servers are
description:
  - Registers C(tango/admin/HOST) if it is not, and adds or removes a directory in its StartDsPath.
  - A running Starter is told to read its properties again. Runs where PyTango is installed.
options:
  host: {description: Name of the host as Starter knows it., type: str, required: true}
  path: {description: Directory with the servers' programs., type: path, required: true}
  log_dir: {description: Directory of the servers' logs., type: path}
  state:
    description: Whether the directory is to be in the path.
    choices: [present, absent]
    default: present
    type: str
author: tango_stddaq
"""
EXAMPLES = r"""
- name: Tell Starter where the servers are
  stddaq_starter:
    host: daq1
    path: /opt/stddaq/current/bin
"""
RETURN = r"""
path: {description: StartDsPath afterwards., type: list, returned: always}
"""


def run(module: AnsibleModule) -> dict:
    import tango

    host, path = module.params["host"], module.params["path"]
    device = f"tango/admin/{host}"
    database = tango.Database()
    registered = [name.lower() for name in database.get_device_name(f"Starter/{host}", "Starter")]
    wanted = module.params["state"] == "present"
    if device.lower() not in registered and not wanted:
        return {"changed": False, "path": []}
    names = ["StartDsPath", "LogFileHome"]
    old = {name: list(values) for name, values in database.get_device_property(device, names).items()}
    new = {name: list(values) for name, values in old.items()}
    new["StartDsPath"] = [entry for entry in old["StartDsPath"] if entry != path or wanted]
    if wanted and path not in new["StartDsPath"]:
        new["StartDsPath"].append(path)
    # The logs of another one's servers stay where they are.
    if wanted and module.params["log_dir"] and not old["LogFileHome"]:
        new["LogFileHome"] = [module.params["log_dir"]]
    if not wanted and old["LogFileHome"] == [module.params["log_dir"]]:
        new["LogFileHome"] = []
    changed = new != old or (wanted and device.lower() not in registered)
    if changed and not module.check_mode:
        if device.lower() not in registered:
            info = tango.DbDevInfo()
            info.name, info._class, info.server = device, "Starter", f"Starter/{host}"
            database.add_device(info)
        database.put_device_property(device, {name: values for name, values in new.items() if values})
        for name in [name for name, values in new.items() if old[name] and not values]:
            database.delete_device_property(device, name)
        try:
            proxy = tango.DeviceProxy(device)
            proxy.ping()
        except tango.DevFailed:
            pass  # it is not running, and reads its properties when it starts
        else:
            proxy.Init()
    return {"changed": changed, "path": new["StartDsPath"], "diff": {"before": old, "after": new}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "log_dir": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except Exception as error:
        module.fail_json(msg=f"Tango: {_text(error)}")
    module.exit_json(**result)


def _text(error: Exception) -> str:
    """Return what a Tango error says, without its stack."""
    first = error.args[0] if error.args else error
    return str(getattr(first, "desc", error)).strip()


if __name__ == "__main__":
    main()
