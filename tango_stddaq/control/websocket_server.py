"""WebSocket control of the writer driver, as existing clients know it (JSON, one object a message).

A client sends `{"command":"start", ...}` or `{"command":"stop"}`; the server sends the status ten times
a second and on every change. Whatever a client sends, it gets an answer and keeps its connection.
"""

import json
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from tango_stddaq.errors import AcquisitionError, ChannelError
from tango_stddaq.io.preflight import Request
from tango_stddaq.processing.acquisition import DEFAULT_N_IMAGES, DriverStatus
from tango_stddaq.stages.writer_driver import WriterDriver

_PERIOD_S: Final = 0.1
_MAX_MESSAGE_BYTES: Final = 64 * 1024
_COUNTING: Final = (DriverStatus.RECORDING, DriverStatus.SAVING_FILE, DriverStatus.FILE_SAVED)


class WebSocketServer:
    """Serves a driver on a port; use it as a context manager.

    Raises
    ------
    ChannelError
        If the port is in use.
    """

    def __init__(self, driver: WriterDriver, port: int = 8080, host: str = "127.0.0.1") -> None:
        self._driver = driver
        self._connections: set[ServerConnection] = set()
        self._lock = threading.Lock()
        try:
            self._server: Server = serve(
                self._talk, host, port, max_size=_MAX_MESSAGE_BYTES, compression=None
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

    def _talk(self, connection: ServerConnection) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            self._send(connection, self._status())
            while True:
                try:
                    message = connection.recv(timeout=_PERIOD_S)
                except TimeoutError:
                    self._send(connection, self._status())
                    continue
                answer = self._obey(message)
                if answer:
                    self._send(connection, answer)
        except ConnectionClosed:
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)

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
                except AcquisitionError as error:
                    return {"status": DriverStatus.REJECTED, "reason": str(error)}
            case "stop":
                self._driver.finish()
            case other:
                reason = f"command {other!r}: allowed are start and stop"
                return {"status": DriverStatus.ERROR, "reason": reason}
        return None

    def _status(self) -> dict[str, Any]:
        driver = self._driver
        status: dict[str, Any] = {"status": driver.acquisition_status}
        if driver.acquisition_status in _COUNTING:
            status["count"] = driver.n_dispatched
        return status

    def _announce(self, status: DriverStatus) -> None:
        """Tell all clients of a change at once, also of those that last no time."""
        message: dict[str, Any] = {"status": status}
        if status in _COUNTING:
            message["count"] = self._driver.n_dispatched
        if status is DriverStatus.ERROR:
            message["reason"] = self._driver.reason
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                self._send(connection, message)
            except (ConnectionClosed, OSError):
                continue  # its own thread notices and cleans up

    def _send(self, connection: ServerConnection, message: Mapping[str, Any]) -> None:
        connection.send(json.dumps(message))

    def close(self) -> None:
        """Close all connections and the port."""
        self._driver.on_status = None
        self._server.shutdown()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()
        self._thread.join(2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
    )
