"""ZeroMQ sockets by their names in the interface contract, with the options existing programs use."""

import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from tango_stddaq.errors import ChannelError

PIPELINE_HWM: Final = 50_000
DRIVER_HWM: Final = 1000
DRIVER_PUSH_HWM: Final = 100
STREAM_HWM: Final = 100
MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Longest message taken on a metadata channel: 512 bytes by contract, or a batch of frame headers."""
_IPC_DIR: Final = Path("/tmp")
_SOCKET_MODE: Final = 0o660
_REBIND_S: Final = 1.0
_REBIND_PERIOD_S: Final = 0.02
_bound: dict[zmq.Socket[bytes], Path] = {}


def ipc_address(detector_name: str, suffix: str) -> str:
    """Return the address of an internal channel."""
    return f"ipc://{_IPC_DIR}/{detector_name}-{suffix}"


def remote_options(address: str) -> dict[int, int]:
    """Return the options of a metadata channel that comes from another host; none for an ipc one."""
    if not address.startswith("tcp://"):
        return {}
    return {zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES, zmq.HEARTBEAT_IVL: 1000, zmq.HEARTBEAT_TIMEOUT: 5000}


def bind(
    kind: int,
    address: str,
    hwm: int = PIPELINE_HWM,
    context: zmq.Context[zmq.Socket[bytes]] | None = None,
    options: Mapping[int, int] | None = None,
) -> zmq.Socket[bytes]:
    """Bind a socket, in the context of the process or another one, with further options.

    Raises
    ------
    ChannelError
        If the address is in use or cannot be bound.
    """
    path = Path(address.removeprefix("ipc://")) if address.startswith("ipc://") else None
    if path is not None and _is_listened_on(path):
        # ZeroMQ would take the file name away from its owner without a word.
        raise ChannelError(f"{address}: is in use by another process; stop it first")
    handle = _socket(kind, hwm, context)
    for option, value in (options or {}).items():
        handle.setsockopt(option, value)
    try:
        _bind_patiently(handle, address)
        if path is not None:
            path.chmod(_SOCKET_MODE)
            _bound[handle] = path
    except (zmq.ZMQError, OSError) as error:
        handle.close(0)
        reason = "is in use by another process" if error.errno == zmq.EADDRINUSE else str(error)
        raise ChannelError(f"{address}: cannot be bound: {reason}") from error
    return handle


def connect(
    kind: int, address: str, hwm: int = PIPELINE_HWM, options: Mapping[int, int] | None = None
) -> zmq.Socket[bytes]:
    """Connect a socket; a SUB socket subscribes to everything. The other side may come later.

    Raises
    ------
    ChannelError
        If the address is not one.
    """
    handle = _socket(kind, hwm)
    for option, value in (options or {}).items():
        handle.setsockopt(option, value)
    _connect(handle, address)
    return handle


def connect_watched(
    kind: int, address: str, hwm: int = PIPELINE_HWM, options: Mapping[int, int] | None = None
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Connect a socket; returns it and a second one that tells of its connections.

    The second gives the ZeroMQ events HANDSHAKE_SUCCEEDED and DISCONNECTED, from the first one on.
    Close both by `close_watched`. Errors as in `connect`.
    """
    handle = _socket(kind, hwm)
    for option, value in (options or {}).items():
        handle.setsockopt(option, value)
    events = handle.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    _connect(handle, address)
    return handle, events


def comings_and_goings(events: "zmq.Socket[bytes]") -> Iterator[bool]:
    """Yield what the second socket of `connect_watched` has told since: True for a peer that came."""
    while events.poll(0):
        yield parse_monitor_message(events.recv_multipart())["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED


def close_watched(handle: "zmq.Socket[bytes]", events: "zmq.Socket[bytes]") -> None:
    """Close both sockets of `connect_watched`; harmless when called again."""
    if not handle.closed:
        handle.disable_monitor()
    close(events)
    close(handle)


def _connect(handle: zmq.Socket[bytes], address: str) -> None:
    kind = handle.type
    if kind in (zmq.SUB, zmq.PULL) and address.startswith("ipc://"):
        handle.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    if kind == zmq.SUB:
        handle.setsockopt(zmq.SUBSCRIBE, b"")
    try:
        handle.connect(address)
    except zmq.ZMQError as error:
        handle.close(0)
        raise ChannelError(f"{address}: cannot be connected: {error}") from error


def close(handle: "zmq.Socket[bytes]") -> None:
    """Close a socket; the name of an ipc address that it was bound to vanishes with it."""
    if handle.closed:
        return
    path = _bound.pop(handle, None)
    if path is not None:
        path.unlink(missing_ok=True)  # ZeroMQ leaves it behind
    handle.close(0)


def _socket(
    kind: int, hwm: int, context: zmq.Context[zmq.Socket[bytes]] | None = None
) -> zmq.Socket[bytes]:
    handle: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(kind)
    handle.setsockopt(zmq.LINGER, 0)
    handle.setsockopt(zmq.SNDHWM, hwm)
    handle.setsockopt(zmq.RCVHWM, hwm)
    # A peer that restarts is found again within half a second.
    handle.setsockopt(zmq.RECONNECT_IVL, 50)
    handle.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    return handle


def _bind_patiently(handle: "zmq.Socket[bytes]", address: str) -> None:
    """Bind; a TCP port that was closed just now is free only when ZeroMQ's own thread comes to it."""
    deadline_s = time.monotonic() + _REBIND_S
    while True:
        try:
            handle.bind(address)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline_s:
                raise
            time.sleep(_REBIND_PERIOD_S)
        else:
            return


def _is_listened_on(path: Path) -> bool:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ChannelError(f"{path}: exists and is not a socket; remove it")
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its owner is too busy to answer, or is another user
            return True
    return True
