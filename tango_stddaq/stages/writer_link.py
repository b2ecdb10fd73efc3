"""The driver's two channels to one file writer, and what waits to be sent to it."""

import time
from collections import deque

import zmq

from tango_stddaq.codecs import writer_action
from tango_stddaq.codecs.writer_action import Action, Response
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels


class WriterLink:
    """Never blocks: what the writer does not take waits here.

    Raises
    ------
    ChannelError
        If another driver is bound to the writer's address.
    """

    def __init__(self, config: DaqConfig, writer_id: int) -> None:
        name = config.detector_name
        self.writer_id = writer_id
        self._out = channels.bind(
            zmq.PUSH, channels.ipc_address(name, f"driver-{writer_id}"), channels.DRIVER_PUSH_HWM
        )
        self._replies = channels.connect(
            zmq.PULL, channels.ipc_address(name, f"writer-{writer_id}"), channels.DRIVER_HWM
        )
        self._waiting: deque[bytes] = deque()
        self._last_writable_s = time.monotonic()

    def send(self, action: Action) -> None:
        """Queue an action and send what the writer takes now."""
        self._waiting.append(writer_action.encode(action))
        self.pump()

    def pump(self) -> None:
        """Send what the writer takes now."""
        while self._waiting:
            try:
                self._out.send(self._waiting[0], zmq.DONTWAIT)
            except zmq.Again:
                return
            self._waiting.popleft()
            self._last_writable_s = time.monotonic()

    def stuck_s(self) -> float:
        """Return for how long the writer has taken nothing: it is dead, or its disk is."""
        now = time.monotonic()
        if not self._waiting and self._out.poll(0, zmq.POLLOUT):
            self._last_writable_s = now
        return now - self._last_writable_s

    def take_reply(self) -> Response | None:
        """Return a reply if one is there."""
        try:
            return writer_action.decode_response(self._replies.recv(zmq.DONTWAIT))
        except zmq.Again:
            return None
        except ValueError as error:
            return Response(False, str(error))

    def drop_stale(self) -> None:
        """Forget what is left of an earlier acquisition."""
        self._waiting.clear()
        while self.take_reply() is not None:
            pass
        self._last_writable_s = time.monotonic()

    def close(self) -> None:
        """Close both channels."""
        channels.close(self._out)
        channels.close(self._replies)
