"""How the servers of a plan are registered in a Tango database, as plain data."""

from typing import Any

from tango_stddaq.control.plan import ServerPlan, SystemPlan


def startup_level(system_plan: SystemPlan, server: ServerPlan) -> int:
    """Return the level at which Tango's Starter starts a server: stages, then facade, then simulator."""
    if server in system_plan.stages:
        return 1
    return 2 if server is system_plan.facade else 3


def dsconfig(system_plan: SystemPlan) -> dict[str, Any]:
    """Return servers, devices and properties in the form that dsconfig's `json2tango` registers."""
    servers: dict[str, Any] = {}
    for server in system_plan.servers:
        properties = {name: values for name, values in server.properties.items() if values}
        device = {server.device: {"properties": properties}}
        servers.setdefault(server.tango_class, {})[server.instance] = {server.tango_class: device}
    return {"servers": servers}
