"""`stddaq rest`: the REST and WebSocket service of a running system."""

import os
import signal
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from tango_stddaq.cli.ending import ENDED, endings
from tango_stddaq.errors import ConfigError

REST_PORT: Final = 5000
WEBSOCKET_PORT: Final = 8080
TOKEN_VARIABLE: Final = "STDDAQ_REST_TOKEN"  # noqa: S105
"""Environment variable with the token; a command line would show it to every user."""

RestPort = Annotated[int, typer.Option(min=1, max=65535, help="Port of the REST service.")]
WebSocketPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of the WebSocket control; 0: none.")
]


def rest(
    facade: Annotated[
        str, typer.Argument(help="Device of the facade; else the one in the database of TANGO_HOST.")
    ] = "",
    port: RestPort = REST_PORT,
    websocket_port: WebSocketPort = WEBSOCKET_PORT,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets clients of other hosts in.")
    ] = "127.0.0.1",
    output_root: Annotated[
        list[Path] | None,
        typer.Option(help="Directory below which files are read and joined; repeat for more."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the token that clients must send; or set {TOKEN_VARIABLE}."),
    ] = None,
) -> None:
    """Serve REST and WebSocket clients of a running system until Ctrl-C or TERM."""
    require_extra()
    from tango_stddaq.cli.watcher import find_facade, proxy_of  # noqa: PLC0415
    from tango_stddaq.io import logs  # noqa: PLC0415
    from tango_stddaq.rest.service import serve  # noqa: PLC0415

    logs.configure("rest", "info")
    name = proxy_of(facade or find_facade()).name()
    token = _token(token_file)
    typer.echo(f"REST: http://{host}:{port}/docs")
    if websocket_port:
        typer.echo(f"WebSocket: ws://{host}:{websocket_port}")
    if signal.SIGHUP in endings():  # uvicorn knows only the others
        signal.signal(signal.SIGHUP, lambda _number, _frame: signal.raise_signal(signal.SIGTERM))
    with suppress(*ENDED):
        serve(name, host, port, websocket_port or None, output_root or [], token)


def require_extra() -> None:
    """Say what to install where the service's packages are missing.

    Raises
    ------
    ConfigError
        If one is.
    """
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not installed; pip install 'tango-stddaq[rest]'")


def _token(file: Path | None) -> str:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "")
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {file}: cannot be read: {error}") from None
    if not token:
        raise ConfigError(f"--token-file {file}: is empty")
    return token
