"""`stddaq plan`: which servers a configuration needs, for people and for deployment."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tango_stddaq import config as config_module
from tango_stddaq.control import plan as planning
from tango_stddaq.control import registration


class Format(StrEnum):
    """How `stddaq plan` prints."""

    TEXT = "text"
    JSON = "json"
    DSCONFIG = "dsconfig"


def plan(
    file: Annotated[Path, typer.Argument(metavar="CONFIG", help="JSON configuration file.")],
    as_format: Annotated[
        Format,
        typer.Option(
            "--format", help="text: for people; json: all of it; dsconfig: for json2tango to register."
        ),
    ] = Format.TEXT,
    config_path: Annotated[
        Path | None,
        typer.Option(help="Where the servers will read the configuration; CONFIG itself if not given."),
    ] = None,
    output_root: Annotated[
        list[Path] | None,
        typer.Option(help="Directory below which files may be written; repeat for more. None: any."),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Add a device that plays the detector.")
    ] = False,
) -> None:
    """Print the device servers that CONFIG needs. Nothing is started or registered."""
    config = config_module.load(file)
    roots = tuple(str(root) for root in output_root or [])
    system = planning.plan(config, config_path or file.resolve(), roots, simulate)
    if as_format is Format.DSCONFIG:
        typer.echo(json.dumps(registration.dsconfig(system), indent=2))
    elif as_format is Format.JSON:
        everything = {
            "detector_name": config.detector_name,
            "servers": _entries(system),
            "dsconfig": registration.dsconfig(system),
        }
        typer.echo(json.dumps(everything, indent=2))
    else:
        for server in system.servers:
            typer.echo(f"{registration.startup_level(system, server)}  {server.server}  {server.device}")


def _entries(system: planning.SystemPlan) -> list[dict[str, object]]:
    return [
        {
            "server": server.server,
            "class": server.tango_class,
            "instance": server.instance,
            "device": server.device,
            "level": registration.startup_level(system, server),
            "properties": server.properties,
        }
        for server in system.servers
    ]
