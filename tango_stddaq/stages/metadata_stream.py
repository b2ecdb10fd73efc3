"""Metadata stream: passes the messages of an internal metadata stream on over TCP, byte for byte."""

from typing import ClassVar, Final

import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stages.live_stream import check_address
from tango_stddaq.stats import Counter

_MESSAGES_PER_TURN: Final = 1024
_WELCOMES: Final = 1024


class MetadataStream(Stage):
    """Publishes the metadata of a suffix on a TCP address, for programs on other hosts.

    Messages are not read: fields that only their reader knows arrive as they were.

    Parameters
    ----------
    address
        To bind: `tcp://HOST:PORT`; the system chooses the port where it is `*`.
    suffix
        Which metadata: `image`, `filter`, ...

    Raises
    ------
    ConfigError
        If the address is not one.
    """

    name = "metadata-stream"
    main_counter = "messages"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("messages", "messages", "Messages passed on."),
        Counter("bytes", "bytes", "Bytes passed on, once for all clients."),
        Counter("n_active_connections", "clients", "Clients that have subscribed now."),
    )

    def __init__(self, config: DaqConfig, address: str, suffix: str = "image") -> None:
        super().__init__(config, address)
        check_address(address, config)
        self.address = address
        self.suffix = suffix
        self._endpoint = ""
        self._in: zmq.Socket[bytes] | None = None
        self._out: zmq.Socket[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Address that is really bound, where `address` leaves the port to the system."""
        return self._endpoint or self.address

    def _open(self) -> None:
        # XPUB is PUB to its clients, and tells who they are: each subscription and each that ends.
        options: dict[int, int] = {zmq.XPUB_VERBOSER: 1, zmq.MAXMSGSIZE: channels.MAX_MESSAGE_BYTES}
        self._out = channels.bind(zmq.XPUB, self.address, options=options)
        self._endpoint = self._out.getsockopt_string(zmq.LAST_ENDPOINT)
        name = channels.ipc_address(self.config.detector_name, self.suffix)
        self._in = channels.connect(zmq.SUB, name)

    def _turn(self) -> None:
        source, out = self._in, self._out
        if source is None or out is None or not source.poll(int(TURN_S * 1000)):
            return
        for _ in range(_MESSAGES_PER_TURN):
            try:
                message = source.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            out.send(message)
            self.counters["messages"] += 1
            self.counters["bytes"] += len(message)

    def _tick(self) -> None:
        for _ in range(_WELCOMES):
            if self._out is None or not self._out.poll(0):
                break
            # What a client may send besides subscriptions is no concern of ours.
            self._n_clients += {b"\x01": 1, b"\x00": -1}.get(self._out.recv()[:1], 0)
        self.counters["n_active_connections"] = self._n_clients

    _n_clients = 0

    def _program_keys(self) -> dict[str, str]:
        return {"source": self.suffix}

    def _close(self) -> None:
        for handle in (self._in, self._out):
            if handle is not None:
                channels.close(handle)
        self._in = self._out = None
        self._n_clients = self.counters["n_active_connections"] = 0
