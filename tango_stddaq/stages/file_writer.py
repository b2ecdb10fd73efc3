"""File writer: stores the images that the writer driver hands to it in one HDF5 file."""

import logging
import time
from pathlib import Path
from typing import ClassVar, Final

import zmq

from tango_stddaq.codecs import writer_action
from tango_stddaq.codecs.writer_action import (
    CloseFile,
    ConfirmLastImage,
    CreateFile,
    RecordImage,
    Response,
)
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError, FileError
from tango_stddaq.io import channels
from tango_stddaq.io.image_file import ImageFile
from tango_stddaq.io.image_source import PixelSource
from tango_stddaq.model import Image
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

FLUSH_PERIOD_S: Final = 1.0
REPLY_TIMEOUT_MS: Final = 1000
_MAX_ACTIONS_PER_TURN: Final = 256


class FileWriter(Stage):
    """Writer `writer_id` of `number_of_writers`.

    Parameters
    ----------
    suffix
        Which ring holds the pixels.
    """

    name = "file-writer"
    label_tag = "id"
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images stored."),
        Counter("bytes", "bytes", "Pixel bytes stored."),
        Counter("files", "files", "Files finished."),
        Counter("overwritten", "images", "Images lost: overwritten before they were read.", loss=True),
        Counter("write_errors", "images", "Images that could not be stored.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not a writer action.", loss=True),
    )  # fmt: skip

    def __init__(self, config: DaqConfig, writer_id: int, suffix: str = "image") -> None:
        if writer_id < 0:
            raise ConfigError(f"writer id {writer_id}: allowed is 0 or above")
        super().__init__(config, str(writer_id))
        self.writer_id = writer_id
        self._suffix = suffix
        self._pixels: PixelSource | None = None
        self._in: zmq.Socket[bytes] | None = None
        self._out: zmq.Socket[bytes] | None = None
        self._file: ImageFile | None = None
        self._failure: str | None = None
        self._n_overwritten = 0
        self._next_flush_s = 0.0
        self.current_file = ""

    def _open(self) -> None:
        name = self.config.detector_name
        self._out = channels.bind(
            zmq.PUSH, channels.ipc_address(name, f"writer-{self.writer_id}"), channels.DRIVER_HWM
        )
        self._in = channels.connect(
            zmq.PULL, channels.ipc_address(name, f"driver-{self.writer_id}"), channels.DRIVER_HWM
        )
        self._pixels = PixelSource(self.config, self._suffix)
        # The ring is attached before the first image needs it: its page tables are large.
        self._pixels.reader()

    def _turn(self) -> None:
        if self._in is None:
            return
        if self._in.poll(int(TURN_S * 1000)):
            for _ in range(_MAX_ACTIONS_PER_TURN):
                if self._stop.is_set():
                    return  # what waits is not begun: the file is closed with what it has
                try:
                    data = self._in.recv(zmq.DONTWAIT)
                except zmq.Again:
                    break
                try:
                    action = writer_action.decode(data)
                except ValueError:
                    self.counters["malformed"] += 1
                    continue
                self._act(action)
        now = time.monotonic()
        if now >= self._next_flush_s:
            self._next_flush_s = now + FLUSH_PERIOD_S
            self._flush()

    def _act(self, action: writer_action.Action) -> None:
        match action:
            case CreateFile(path):
                self._reply(self._create(Path(path)))
            case RecordImage(image):
                self._record(image)
            case ConfirmLastImage():
                self._flush()
                self._reply(self._outcome())
            case CloseFile():
                self._reply(self._close_file())

    def _create(self, path: Path) -> Response:
        if self._file is not None:
            self.say(logging.WARNING, f"{self._file.path}: was left open; closing it")
            self._close_file()
        self._failure = None
        self._n_overwritten = 0
        if not path.is_absolute():
            return Response(False, f"{path}: an absolute path is needed")
        try:
            self._file = ImageFile(path, self.config.detector_name, self.config.sizes)
        except FileError as error:
            self.say(logging.ERROR, str(error))
            return Response(False, str(error))
        self.current_file = str(path)
        return Response(True)

    def _record(self, image: Image) -> None:
        if self._file is None or self._pixels is None or self._failure is not None:
            self.counters["write_errors"] += 1
            return
        try:
            reader = self._pixels.reader()
            if reader is None:
                raise FileError(f"the ring {self.config.segment(self._suffix)} is not there")
            if self._file.append(image, reader):
                self.counters["images"] += 1
                self.counters["bytes"] += image.size
            else:
                self.counters["overwritten"] += 1
                self._n_overwritten += 1
        except FileError as error:
            self.counters["write_errors"] += 1
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self.say(logging.ERROR, reason)

    def _flush(self) -> None:
        if self._file is not None and self._failure is None:
            try:
                self._file.flush()
            except FileError as error:
                self._fail(str(error))

    def _outcome(self) -> Response:
        n_written = self._file.n_written if self._file is not None else 0
        if self._file is None:
            return Response(False, "no file is open")
        return Response(self._failure is None, self._failure or "", n_written, self._n_overwritten)

    def _close_file(self) -> Response:
        outcome = self._outcome()
        if self._file is None:
            return outcome
        try:
            self._file.close()
        except FileError as error:
            self._fail(str(error))
            outcome = Response(False, str(error), outcome.n_written, outcome.n_overwritten)
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
        if self._pixels is not None:
            self._pixels.close()
        self._in = self._out = self._pixels = None
