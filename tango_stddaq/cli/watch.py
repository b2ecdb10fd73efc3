"""`stddaq watch`: a running data acquisition in the terminal, as its facade tells it over Tango."""

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from tango_stddaq.cli.ending import ENDED


def watch(
    facade: Annotated[
        str, typer.Argument(help="Device of the facade; else the one in the database of TANGO_HOST.")
    ] = "",
    period: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    updates: Annotated[
        int, typer.Option("--updates", "-n", min=0, help="End after so many looks; 0 for never.")
    ] = 0,
) -> None:
    """Watch a data acquisition: state, ledger, and the rate of every stage; ends by Ctrl-C or TERM."""
    from tango_stddaq.cli.watcher import Watcher, find_facade, proxy_of  # noqa: PLC0415

    watcher = Watcher(proxy_of(facade or find_facade()))
    n_done = 0
    try:
        with Live(console=Console(), auto_refresh=False) as live:
            while not updates or n_done < updates:
                if n_done:
                    time.sleep(period)
                live.update(watcher.look(), refresh=True)
                n_done += 1
    except ENDED:
        pass
