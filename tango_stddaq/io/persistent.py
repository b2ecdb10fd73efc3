"""A connection to another host that is made anew whatever ends it."""

import time
from collections.abc import Mapping
from typing import Final

import zmq

from tango_stddaq.closing import Closing
from tango_stddaq.io import channels

_REOPEN_S: Final = 1.0
HEARTBEAT: Final[dict[int, int]] = {zmq.HEARTBEAT_IVL: 1000, zmq.HEARTBEAT_TIMEOUT: 5000}
"""A host that is gone without a word is found after five seconds."""


class PersistentConnection(Closing):
    """A connected socket.

    ZeroMQ reconnects by itself after most ends of a connection, but gives up for ever on a peer that
    once broke the protocol or sent a message beyond the limit. Then a new socket takes the place of
    the old one.

    Parameters
    ----------
    kind, address, hwm, options
        As of `channels.connect`; heartbeats are added.

    Attributes
    ----------
    handle
        The socket of the moment; `look` may replace it.
    is_connected
        Whether a peer is there, as of the last `look`.
    n_connections, n_disconnections
        Times that a peer was connected, and that a connection ended.
    """

    def __init__(self, kind: int, address: str, hwm: int, options: Mapping[int, int]) -> None:
        self._call = kind, address, hwm, {**options, **HEARTBEAT}
        self.handle, self._events = channels.connect_watched(*self._call)
        self.n_connections = self.n_disconnections = 0
        self.is_connected = False
        self._gone_s: float | None = None

    def look(self) -> bool:
        """Do what is due a few times a second; returns whether there is a new socket."""
        for is_there in channels.comings_and_goings(self._events):
            self.is_connected = is_there
            if is_there:
                self.n_connections += 1
                self._gone_s = None
            else:
                self.n_disconnections += 1
                self._gone_s = time.monotonic()
        is_gone = self._gone_s is not None and time.monotonic() - self._gone_s > _REOPEN_S
        if not is_gone or self.handle.poll(0):  # what came before is read first
            return False
        channels.close_watched(self.handle, self._events)
        self.handle, self._events = channels.connect_watched(*self._call)
        self._gone_s = time.monotonic()
        return True

    def close(self) -> None:
        """Close; harmless when called again."""
        channels.close_watched(self.handle, self._events)
