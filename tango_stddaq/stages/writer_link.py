"""The driver's two channels to one file writer, and what waits to be sent to it."""

import time
from collections import deque

import numpy as np
import zmq

from tango_stddaq.codecs import writer_action
from tango_stddaq.codecs.writer_action import Action, RecordImage, Response
from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels, zmq_calls
from tango_stddaq.io.zmq_calls import handle_of, send_rows
from tango_stddaq.processing.hosts import writer_channels


class WriterLink:
    """Never blocks: what the writer does not take waits here.

    A writer answers in order everything but images, and does not say what it answers: replies are
    counted, so that one to an earlier action is never taken for the reply to the last one.

    Parameters
    ----------
    writer_id
        Its number, or "meta" for the metadata writer.

    Raises
    ------
    ChannelError
        If another driver is bound to the writer's address.
    """

    def __init__(self, config: DaqConfig, writer_id: int | str) -> None:
        name = config.detector_name
        self.writer_id = writer_id
        addresses = writer_channels(config, writer_id) or (
            channels.ipc_address(name, f"driver-{writer_id}"),
            channels.ipc_address(name, f"writer-{writer_id}"),
        )
        self._out = channels.bind(zmq.PUSH, addresses[0], channels.DRIVER_PUSH_HWM)
        self._replies, self._events = channels.connect_watched(
            zmq.PULL, addresses[1], channels.DRIVER_HWM, channels.remote_options(addresses[1])
        )
        self._is_connected = False
        self.failure: str | None = None
        """What the writer says unasked: that it could not store an image of this acquisition."""
        self.was_given_up = False
        """Whether an answer of this acquisition is waited for no more."""
        self.n_connections = 0
        """How often the writer was found: one more means that it was restarted."""
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._n_unanswered = 0
        self._last_writable_s = self._last_heard_s = self._last_progress_s = time.monotonic()
        self._n_written: int | None = None
        # Compiles, or loads: with the first image it would be too late.
        send_rows(0, np.zeros((0, 1), np.uint8), np.zeros(0, np.int64), 0, 1)

    def send(self, action: Action) -> None:
        """Queue an action and send what the writer takes now."""
        is_answered = not isinstance(action, RecordImage)
        self._waiting.append((writer_action.encode(action), is_answered))
        self._n_unanswered += is_answered
        self.pump()

    def send_images(self, rows: np.ndarray, lengths: np.ndarray, first: int = 0, step: int = 1) -> None:
        """Send every `step`-th `RecordImage` from `first` on, and queue what the writer does not take.

        Parameters
        ----------
        rows, lengths
            (n, room) uint8 and (n,) int64: the messages.
        """
        self.pump()
        if not self._waiting and self._is_connected:
            n_sent = zmq_calls.check(send_rows(handle_of(self._out), rows, lengths, first, step))
            if n_sent > 0:
                self._last_writable_s = time.monotonic()
                first += n_sent * step
        for row in range(first, len(lengths), step):
            self._waiting.append((rows[row, : lengths[row]].tobytes(), False))

    def pump(self) -> None:
        """Send what the writer takes now.

        Nothing goes out before replies can come in: a writer that was just started takes an action
        before this side has found its reply channel again, and its answer would be lost.
        """
        for is_there in channels.comings_and_goings(self._events):
            self._is_connected = is_there
            if is_there:
                self.n_connections += 1
                # What an earlier process was asked will not be answered.
                self._n_unanswered = sum(is_answered for _, is_answered in self._waiting)
        while self._waiting and self._is_connected:
            try:
                self._out.send(self._waiting[0][0], zmq.DONTWAIT)
            except zmq.Again:
                return
            self._waiting.popleft()
            self._last_writable_s = time.monotonic()

    def is_same_as(self, n_connections: int) -> bool:
        """Return whether the writer is there, and was not restarted since `n_connections` was read."""
        self.pump()
        return self._is_connected and self.n_connections == n_connections

    @property
    def has_waiting(self) -> bool:
        """Whether something waits for the writer to take it."""
        return bool(self._waiting)

    def stuck_s(self) -> float:
        """Return for how long the writer has taken nothing: it is dead, or its disk is."""
        now = time.monotonic()
        if not self._waiting and self._out.poll(0, zmq.POLLOUT):
            self._last_writable_s = now
        return now - self._last_writable_s

    def take_reply(self) -> Response | None:
        """Return the reply to the last action if it is there."""
        while True:
            try:
                data = self._replies.recv(zmq.DONTWAIT)
            except zmq.Again:
                return None
            try:
                response = writer_action.decode_response(data)
            except ValueError as error:
                response = Response(False, str(error))
            self._last_heard_s = time.monotonic()
            if response.unasked and response.ok:
                self._note_progress(response.n_written)
                continue
            if response.unasked:
                self.failure = response.reason
                continue
            self._n_unanswered -= 1
            if self._n_unanswered == 0:
                return response
            self._n_unanswered = max(0, self._n_unanswered)  # below: one that came after `give_up`

    def _note_progress(self, n_written: int) -> None:
        if n_written != self._n_written:
            self._last_progress_s = time.monotonic()
        self._n_written = n_written

    def silent_s(self) -> float | None:
        """Return for how long nothing was heard of the writer; None if it is one that does not tell."""
        return None if self._n_written is None else time.monotonic() - self._last_heard_s

    def idle_s(self) -> float:
        """Return for how long it has stored no image, as far as it tells."""
        return time.monotonic() - self._last_progress_s

    def give_up(self) -> None:
        """Forget what the writer has not taken; what it has taken it may still answer, late."""
        self.was_given_up = True
        self.drop_waiting()

    def drop_waiting(self) -> None:
        """Forget what the writer has not taken."""
        self._n_unanswered -= sum(is_answered for _, is_answered in self._waiting)
        self._waiting.clear()

    def drop_stale(self) -> None:
        """Forget what is left of an earlier acquisition."""
        self.drop_waiting()
        while self.take_reply() is not None:
            pass
        self.failure = self._n_written = None
        self.was_given_up = False
        self._last_writable_s = self._last_heard_s = self._last_progress_s = time.monotonic()

    def close(self) -> None:
        """Close both channels."""
        channels.close_watched(self._replies, self._events)
        channels.close(self._out)
