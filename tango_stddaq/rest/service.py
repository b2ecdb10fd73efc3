"""The service as a process: one system, one port for REST and one for WebSocket clients."""

from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from tango_stddaq import __version__
from tango_stddaq.control.websocket_server import WebSocketServer
from tango_stddaq.errors import ChannelError
from tango_stddaq.rest import answers, api_family, client_family
from tango_stddaq.rest.daq import Daq
from tango_stddaq.rest.driver import FacadeDriver
from tango_stddaq.rest.live import LiveView
from tango_stddaq.rest.stored_files import Roots

_MAX_CONNECTIONS = 200
_KEEP_ALIVE_S = 30


def create_app(daq: Daq, output_roots: Sequence[Path] = (), token: str = "") -> FastAPI:
    """Return the application of a system.

    Parameters
    ----------
    output_roots
        Directories below which files may be read and joined; none means anywhere.
    token
        What clients must send as `Authorization: Bearer`; "" lets everybody in.
    """
    app = FastAPI(
        title="tango_stddaq",
        version=__version__,
        description=f"Data acquisition of {daq.facade}. Two families of endpoints: those of "
        "std_daq_client, and those below /api.",
        redoc_url=None,
    )
    answers.install(app, token)
    app.include_router(client_family.router(daq, LiveView(daq)))
    app.include_router(api_family.router(daq, Roots(output_roots)))
    return app


def serve(
    facade: str,
    host: str,
    port: int,
    websocket_port: int | None,
    output_roots: Sequence[Path],
    token: str,
) -> None:
    """Serve until TERM or INT.

    Raises
    ------
    ChannelError
        If a port is in use.
    """
    with Daq(facade) as daq:
        app = create_app(daq, output_roots, token)
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", timeout_keep_alive=_KEEP_ALIVE_S,
            limit_concurrency=_MAX_CONNECTIONS, timeout_graceful_shutdown=1, server_header=False,
            log_config=None,  # its messages go where all others go
        )  # fmt: skip
        try:
            listener = config.bind_socket()
        except SystemExit:
            raise ChannelError(f"port {port} of {host}: cannot be bound; is it in use?") from None
        server = uvicorn.Server(config)
        if websocket_port is None:
            server.run(sockets=[listener])
            return
        with WebSocketServer(FacadeDriver(daq), websocket_port, host, token):
            server.run(sockets=[listener])
