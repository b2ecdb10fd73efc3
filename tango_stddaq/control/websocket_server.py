"""WebSocket control of the writer driver, as existing clients know it (JSON, one object a message).

A client sends `{"command":"start", ...}` or `{"command":"stop"}`; the server sends the status ten times
a second and on every change. Whatever a client sends, it gets an answer and keeps its connection.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, Protocol

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response
from websockets.sync.server import Server, ServerConnection, serve

from tango_stddaq.closing import Closing
from tango_stddaq.control.token import HINT, is_allowed
from tango_stddaq.errors import AcquisitionError, ChannelError, StdDaqError
from tango_stddaq.io.preflight import Request
from tango_stddaq.processing.acquisition import DEFAULT_N_IMAGES, DriverStatus

_PERIOD_S: Final = 0.1
_MAX_MESSAGE_BYTES: Final = 64 * 1024
_MAX_WAITING: Final = 1000
_CLOSE_TIMEOUT_S: Final = 0.5
_COUNTING: Final = (DriverStatus.RECORDING, DriverStatus.SAVING_FILE, DriverStatus.FILE_SAVED)

_Outbox = queue.Queue[dict[str, Any]]


class Driver(Protocol):
    """What a server talks to: the writer driver itself, or what stands for it."""

    reason: str
    on_status: Callable[[DriverStatus], None] | None

    @property
    def acquisition_status(self) -> DriverStatus:
        """Where its acquisition is."""

    @property
    def n_dispatched(self) -> int:
        """Images of it so far."""

    def begin(self, request: Request, wait_s: float = ...) -> None:
        """Begin an acquisition."""

    def finish(self) -> None:
        """End it; what was accepted is saved."""


class WebSocketServer(Closing):
    """Serves a driver on a port; use it as a context manager.

    Parameters
    ----------
    token
        What clients must send in the header `Authorization: Bearer`; "" lets everybody in.

    Raises
    ------
    ChannelError
        If the port is in use.
    """

    def __init__(
        self, driver: Driver, port: int = 8080, host: str = "127.0.0.1", token: str = ""
    ) -> None:
        self._driver = driver
        self._token = token
        self._outboxes: dict[ServerConnection, _Outbox] = {}
        self._lock = threading.Lock()
        try:
            self._server: Server = serve(
                self._talk,
                host,
                port,
                max_size=_MAX_MESSAGE_BYTES,
                compression=None,
                close_timeout=_CLOSE_TIMEOUT_S,
                process_request=self._check_token,
            )
        except OSError as error:
            raise ChannelError(f"WebSocket port {port}: cannot be bound: {error.strerror}") from error
        driver.on_status = self._announce
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._server.socket.getsockname()[1])

    def _check_token(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        if is_allowed(request.headers, self._token):
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, f"{HINT}\n")

    def _talk(self, connection: ServerConnection) -> None:
        outbox: _Outbox = queue.Queue(_MAX_WAITING)
        outbox.put(self._status())
        with self._lock:
            self._outboxes[connection] = outbox
        teller = threading.Thread(target=self._tell, args=(connection, outbox), daemon=True)
        teller.start()
        try:
            for message in connection:
                answer = self._obey(message)
                if answer:
                    _put(outbox, answer)
        except ConnectionClosed:
            pass
        finally:
            with self._lock:
                del self._outboxes[connection]
            teller.join(1)

    def _tell(self, connection: ServerConnection, outbox: _Outbox) -> None:
        """Send what is in the outbox, and the status where nothing else is to be said."""
        try:
            while True:
                try:
                    message = outbox.get(timeout=_PERIOD_S)
                except queue.Empty:
                    message = self._status()
                connection.send(json.dumps(message))
        except (ConnectionClosed, OSError):
            return

    def _obey(self, message: str | bytes) -> dict[str, Any] | None:
        """Carry out a message; returns what only this client is told."""
        try:
            command = json.loads(message)
            if not isinstance(command, dict):
                raise ValueError("a JSON object is needed")
        except (ValueError, RecursionError) as error:
            return {"status": DriverStatus.ERROR, "reason": f"not a command: {error}"}
        match command.get("command"):
            case "start":
                try:
                    self._driver.begin(request_of(command), wait_s=0)
                except (StdDaqError, OSError) as error:
                    return {"status": DriverStatus.REJECTED, "reason": str(error)}
            case "stop":
                try:
                    self._driver.finish()
                except StdDaqError as error:
                    return {"status": DriverStatus.ERROR, "reason": str(error)}
            case other:
                reason = f"command {other!r}: allowed are start and stop"
                return {"status": DriverStatus.ERROR, "reason": reason}
        return None

    def _status(self) -> dict[str, Any]:
        status = self._driver.acquisition_status
        message: dict[str, Any] = {"status": status}
        if status in _COUNTING:
            message["count"] = self._driver.n_dispatched
        return message

    def _announce(self, status: DriverStatus) -> None:
        """Tell all clients of a change at once, also of those that last no time.

        Called from the driver's run loop: a client that does not read must not hold it up.
        """
        message: dict[str, Any] = {"status": status}
        if status in _COUNTING:
            message["count"] = self._driver.n_dispatched
        if status is DriverStatus.ERROR:
            message["reason"] = self._driver.reason
        with self._lock:
            outboxes = list(self._outboxes.values())
        for outbox in outboxes:
            if status is DriverStatus.CREATING_FILE:  # follows at once where a start was accepted
                _put(outbox, {"status": DriverStatus.STARTED})
            _put(outbox, message)

    def close(self) -> None:
        """Close all connections and the port."""
        self._driver.on_status = None
        self._server.shutdown()
        with self._lock:
            connections = list(self._outboxes)
        # A client that does not answer must not delay the end: all together get this long.
        closers = [threading.Thread(target=entry.close, daemon=True) for entry in connections]
        for closer in closers:
            closer.start()
        deadline_s = time.monotonic() + _CLOSE_TIMEOUT_S
        for closer in closers:
            closer.join(max(0.1, deadline_s - time.monotonic()))
        self._thread.join(1)


def _put(outbox: _Outbox, message: dict[str, Any]) -> None:
    with suppress(queue.Full):  # the client has read nothing for long
        outbox.put_nowait(message)


def request_of(command: Mapping[str, Any]) -> Request:
    """Read a start command.

    Raises
    ------
    AcquisitionError
        If a value is of the wrong type; the text names it.
    """

    def value(key: str, kind: type, default: Any) -> Any:
        found = command.get(key, default)
        if type(found) is not kind:
            raise AcquisitionError(f"{key} {found!r}: {kind.__name__} is needed")
        return found

    return Request(
        path=value("path", str, ""),
        file_prefix=value("file_prefix", str, "file"),
        n_images=value("n_image", int, DEFAULT_N_IMAGES),
        start_id=value("start_id", int, 0),
        writer_user_id=value("writer_id", int, 0),
        overwrite=value("overwrite", bool, False),
    )
