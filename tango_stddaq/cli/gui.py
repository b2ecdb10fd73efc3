"""`stddaq gui`: a window for a running data acquisition."""

import signal
from importlib.util import find_spec
from typing import Annotated

import typer

from tango_stddaq.errors import ConfigError
from tango_stddaq.io.processes import ENDINGS


def gui(
    facade: Annotated[
        str, typer.Argument(help="Device of the facade; else the one in the database of TANGO_HOST.")
    ] = "",
) -> None:
    """Show a window: live image, start and stop, progress, losses, stages."""
    missing = [name for name in ("taurus", "PyQt5", "pyqtgraph") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not installed; pip install 'tango-stddaq[gui]'")
    from tango_stddaq.cli.watcher import find_facade  # noqa: PLC0415
    from tango_stddaq.gui.window import run  # noqa: PLC0415

    # Qt waits in code that is not Python: no handler of ours would run. A window has nothing to tidy.
    for number in ENDINGS:
        signal.signal(number, signal.SIG_DFL)
    raise typer.Exit(run(facade or find_facade()))
