"""What file writer and metadata writer have in common: they obey the writer driver, and answer."""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import zmq

from tango_stddaq.codecs import writer_action
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.codecs.writer_action import CloseFile, ConfirmLastImage, CreateFile, Response
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import FileError
from tango_stddaq.io import channels
from tango_stddaq.io.creation import FileRules
from tango_stddaq.processing.hosts import writer_channels
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

FLUSH_PERIOD_S: Final = 0.2
"""A writer that is killed loses the images of this time, at most, and those that it had not begun."""
PROGRESS_PERIOD_S: Final = 1.0
"""How often a writer tells the driver how far it is."""
PIECE_BYTES: Final = 64 * 2**20
"""So much is stored between two looks at the clock."""
REPLY_TIMEOUT_MS: Final = 1000
_MAX_ACTIONS_PER_TURN: Final = 256

Messages = list[pb.ImageMetadata]


class WrittenFile(Protocol):
    """A file as the loop below sees it; `io.image_file.ImageFile` says what its methods do."""

    path: Path
    n_written: int
    n_lost: int

    def flush(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
    def lost_ranges(self) -> list[tuple[int, int]]: ...  # noqa: D102


class WriterStage(Stage):
    """A writer; subclasses say how a file is created and how images get into it.

    Parameters
    ----------
    channel
        What the driver calls this writer: its number, or "meta".
    output_roots
        Directories below which files may be written; none means anywhere.
    """

    main_counter = "images"
    source = "image"
    """Suffix of the images."""
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images stored."),
        Counter("bytes", "bytes", "Bytes stored: pixels, or rows of metadata."),
        Counter("files", "files", "Files finished."),
        Counter("write_us", "us", "Time spent on storing images."),
        Counter("overwritten", "images", "Images lost: overwritten before they were read.", loss=True),
        Counter("write_errors", "images", "Images that could not be stored.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not a writer action.", loss=True),
    )  # fmt: skip

    def __init__(
        self, config: DaqConfig, channel: str, label: str, output_roots: tuple[str, ...]
    ) -> None:
        super().__init__(config, label)
        self._channel = channel
        self._output_roots = output_roots
        self._image_bytes = config.sizes.slot_bytes
        self._in: zmq.Socket[bytes] | None = None
        self._out: zmq.Socket[bytes] | None = None
        self._file: WrittenFile | None = None
        self._failure: str | None = None
        self._tells_unasked = False
        self._next_flush_s = self._next_progress_s = 0.0
        self._max_write_us = 0.0
        self.current_file = ""

    # -- what a subclass implements ----------------------------------------------------------------

    def _new_file(self, path: Path, rules: FileRules) -> Any:
        """Create a file.

        Raises
        ------
        FileError
            If it cannot be created.
        """
        raise NotImplementedError

    def _store(self, images: Messages) -> None:
        """Put images into the file.

        Raises
        ------
        FileError
            If one cannot be stored.
        """
        raise NotImplementedError

    # -- the stage ---------------------------------------------------------------------------------

    def _open(self) -> None:
        name = self.config.detector_name
        remote = writer_channels(self.config, int(self._channel)) if self._channel.isdecimal() else None
        driver, writer = remote or (
            channels.ipc_address(name, f"driver-{self._channel}"),
            channels.ipc_address(name, f"writer-{self._channel}"),
        )
        self._out = channels.bind(zmq.PUSH, writer, channels.DRIVER_HWM)
        options = channels.remote_options(driver)
        self._in = channels.connect(zmq.PULL, driver, channels.DRIVER_HWM, options)

    def _turn(self) -> None:
        if self._in is None:
            return
        if self._in.poll(int(TURN_S * 1000)):
            self._take_actions(self._in)
        now = time.monotonic()
        if now >= self._next_flush_s:
            self._next_flush_s = now + FLUSH_PERIOD_S
            self._flush()
        self._tell_progress()

    def _tell_progress(self) -> None:
        """Let a driver that knows of it see that this writer is alive: it waits for no one else."""
        now = time.monotonic()
        if self._file is None or not self._tells_unasked or now < self._next_progress_s:
            return
        self._next_progress_s = now + PROGRESS_PERIOD_S
        response = Response(True, n_written=self._file.n_written, unasked=True)
        if self._out is not None:
            with suppress(zmq.Again):  # no driver, or one that reads nothing
                self._out.send(writer_action.encode_response(response), zmq.DONTWAIT)

    def _take_actions(self, actions: "zmq.Socket[bytes]") -> None:
        """Do what waits; images that follow each other are stored together."""
        images: Messages = []
        for _ in range(_MAX_ACTIONS_PER_TURN):
            if self._stop.is_set():
                return  # what waits is not begun: the file is closed with what it has
            try:
                action = writer_action.parse(actions.recv(zmq.DONTWAIT))
            except zmq.Again:
                break
            except ValueError:
                self.counters["malformed"] += 1
                continue
            if isinstance(action, pb.ImageMetadata):
                images.append(action)
                continue
            self._record(images)
            images = []
            self._act(action)
        self._record(images)

    def _act(self, action: CreateFile | ConfirmLastImage | CloseFile) -> None:
        match action:
            case CreateFile():
                self._reply(self._create(action))
            case ConfirmLastImage():
                self._flush()
                self._reply(self._outcome())
            case CloseFile():
                self._reply(self._close_file())

    def _create(self, action: CreateFile) -> Response:
        if self._file is not None:
            self.say(logging.WARNING, f"{self._file.path}: was left open; closing it")
            self._close_file()
        self._failure = None
        self._tells_unasked = action.tell_of_failure
        try:
            rules = FileRules.of(self.config, self._output_roots, action.writer_id, action.overwrite)
            self._file = self._new_file(Path(action.path), rules)
        except FileError as error:
            self.say(logging.ERROR, str(error))
            return Response(False, str(error))
        self.current_file = action.path
        return Response(True)

    def _record(self, images: Messages) -> None:
        """Store images, in pieces."""
        most = max(1, PIECE_BYTES // self._image_bytes)
        for first in range(0, len(images), most):
            self._record_piece(images[first : first + most])
            self._tell_progress()

    def _record_piece(self, images: Messages) -> None:
        file = self._file
        if file is None or self._failure is not None:
            if self._failure is None:
                self._fail(f"{self.title} was given images without a file: was it restarted?")
            self.counters["write_errors"] += len(images)
            return
        n_before, n_lost_before = file.n_written, file.n_lost
        started_ns = time.monotonic_ns()
        try:
            self._store(images)
        except FileError as error:
            self._fail(str(error))
        n_stored, n_lost = file.n_written - n_before, file.n_lost - n_lost_before
        write_us = (time.monotonic_ns() - started_ns) // 1000
        self._max_write_us = max(self._max_write_us, write_us / len(images))
        self.counters["write_us"] += write_us
        self.counters["images"] += n_stored
        self.counters["bytes"] += n_stored * self._image_bytes
        self.counters["overwritten"] += n_lost
        self.counters["write_errors"] += len(images) - n_stored - n_lost

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self.say(logging.ERROR, reason)
        if self._tells_unasked:
            self._reply(Response(False, reason, unasked=True))

    def _flush(self) -> None:
        if self._file is not None and self._failure is None:
            try:
                self._file.flush()
            except FileError as error:
                self._fail(str(error))

    def _outcome(self) -> Response:
        file = self._file
        if file is None:
            return Response(False, self._failure or f"{self.title} has no file open")
        return Response(
            self._failure is None,
            self._failure or "",
            file.n_written,
            file.n_lost,
            tuple(file.lost_ranges()),
        )

    def _close_file(self) -> Response:
        if self._file is None:
            return self._outcome()
        try:
            self._file.close()
        except FileError as error:
            if self._failure is None:
                self._fail(str(error))
        outcome = self._outcome()
        self._file = None
        self.current_file = ""
        self.counters["files"] += 1
        return outcome

    def _reply(self, response: Response) -> None:
        if self._out is None:
            return
        # A driver that was just restarted is found again within a fraction of this.
        if self._out.poll(REPLY_TIMEOUT_MS, zmq.POLLOUT):
            self._out.send(writer_action.encode_response(response), zmq.DONTWAIT)
        else:
            self.say(logging.WARNING, "no driver takes the answer")

    def _more_statistics(self) -> dict[str, float]:
        longest, self._max_write_us = self._max_write_us, 0.0
        return {"max_buffer_write_us": longest}

    def _program_keys(self) -> dict[str, str]:
        return {"source": self.source, "id": self.label} if self.label else {"source": self.source}

    def _describe(self) -> str:
        if self._file is None:
            return "Waiting for a file to write."
        return f"Writing {self.current_file}: {self._file.n_written} images, {self.rate_hz:.1f} Hz."

    def _close(self) -> None:
        if self._file is not None:
            self.say(logging.WARNING, f"{self._file.path}: stopped while it was being written")
            self._close_file()
        for handle in (self._in, self._out):
            if handle is not None:
                channels.close(handle)
        self._in = self._out = None
