"""`stddaq sardana-path`: where Sardana finds the controller and the macros."""

from typing import Annotated, Literal

import typer

from tango_stddaq.sardana import CONTROLLERS, MACROS


def sardana_path(
    which: Annotated[
        Literal["controllers", "macros"],
        typer.Argument(help="controllers: for PoolPath; macros: for MacroPath."),
    ],
) -> None:
    """Print the directory for the Pool's PoolPath or the MacroServer's MacroPath."""
    typer.echo(CONTROLLERS if which == "controllers" else MACROS)
