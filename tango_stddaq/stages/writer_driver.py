"""Writer driver: hands the images of an acquisition to the file writers and accounts for each of them.

Images go round robin in the order of arrival. The driver is always listening; images that come while
no acquisition runs are of no concern to it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Final

from tango_stddaq.codecs.writer_action import (
    Action,
    CloseFile,
    ConfirmLastImage,
    CreateFile,
    RecordImage,
    Response,
)
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import AcquisitionError, FileError
from tango_stddaq.io import master_file
from tango_stddaq.io.image_file import read_rows
from tango_stddaq.io.image_source import MetadataSource
from tango_stddaq.io.preflight import Request, check
from tango_stddaq.model import Image
from tango_stddaq.processing.acquisition import RUNNING, Account, DriverStatus, check_transition
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stages.writer_link import WriterLink
from tango_stddaq.stats import Counter, Ledger, LossReason

CREATE_TIMEOUT_S: Final = 5.0
SAVE_TIMEOUT_S: Final = 60.0
CLOSE_TIMEOUT_S: Final = 1.0
STUCK_S: Final = 10.0
"""A writer that takes nothing for so long is given up."""
_UDP_DETECTORS: Final = ("eiger", "gigafrost", "jungfrau-raw", "jungfrau-converted", "jungfrau")
_WAKE_S: Final = 0.005
_S = DriverStatus

Replies = dict[int, Response]


class WriterDriver(Stage):
    """Drives `number_of_writers` writers.

    Parameters
    ----------
    suffix
        Which metadata stream announces the images.
    output_roots
        Directories below which files may be written; none means anywhere.

    Attributes
    ----------
    acquisition_status
        Where the acquisition is.
    reason
        Why the last acquisition ended; "" while none has.
    failed
        Whether the last acquisition ended in an error.
    ledger
        Of the current acquisition, or the last one.
    mean_rate_hz
        Images recorded per second between the first and the latest of the acquisition.
    progress
        Share of the images asked for that are accounted for, 0 to 1.
    """

    name = "writer-driver"
    main_counter = "dispatched"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("seen", "images", "Images announced, recorded or not."),
        Counter("dispatched", "images", "Images handed to writers."),
        Counter("acquisitions", "acquisitions", "Acquisitions saved."),
        Counter("failed_acquisitions", "acquisitions", "Acquisitions that failed.", loss=True),
        Counter("lost", "images", "Images of acquisitions that are in no file.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not image metadata.", loss=True),
    )

    def __init__(
        self, config: DaqConfig, suffix: str = "image", output_roots: tuple[str, ...] = ()
    ) -> None:
        super().__init__(config)
        self.output_roots = output_roots
        self.n_writers = config.number_of_writers
        self.acquisition_status = _S.IDLE
        self.reason = ""
        self.failed = False
        self.ledger = Ledger()
        self.last_files: list[str] = []
        self.last_master = ""
        self.progress = 0.0
        self.mean_rate_hz = 0.0
        self._first_image_s = 0.0
        self.on_status: Callable[[DriverStatus], None] | None = None
        """Called from the run loop with every new status."""
        self._suffix = suffix
        self._changed = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._number = 0
        self._metadata: MetadataSource | None = None
        self._links: list[WriterLink] = []
        self._request = Request("")
        self._account = Account(1)
        self._started = datetime.now(UTC)
        self._waits_for: tuple[float, Replies, Callable[[Replies], None]] | None = None

    # -- what others call --------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether an acquisition is under way."""
        return self.acquisition_status in RUNNING

    @property
    def n_dispatched(self) -> int:
        """Images of this acquisition handed to writers so far."""
        return self._account.n_dispatched

    def begin(self, request: Request, wait_s: float = 2.5) -> None:
        """Start an acquisition; returns once the files exist and images are awaited.

        Parameters
        ----------
        wait_s
            After so long it returns all the same, and the rest happens in the background.

        Raises
        ------
        AcquisitionError
            If one is under way, the request is refused, or the files cannot be created.
        """
        if not self.running:
            raise AcquisitionError(f"the writer driver does not run: {self.status}")
        with self._changed:
            if self.busy:
                raise AcquisitionError(
                    f"an acquisition is under way ({self.acquisition_status}, "
                    f"{self.n_dispatched} images so far): Stop or Abort it first"
                )
            check(request, self.config, self.n_writers, self.output_roots)
            self.reason, self.failed = "", False
            self._request = request
            self._number += 1
            self.acquisition_status = check_transition(self.acquisition_status, _S.STARTED)
            self._commands.append(self._begin)
            before = (_S.STARTED, _S.CREATING_FILE, _S.FILE_CREATED, _S.STOP)
            self._changed.wait_for(lambda: self.acquisition_status not in before, wait_s)
            if self.failed:
                raise AcquisitionError(self.reason)

    def finish(self) -> None:
        """End the acquisition and save what was accepted; nothing happens if there is none."""
        self._command(self._finish)

    def abort(self) -> None:
        """End the acquisition and remove its files; nothing happens if there is none."""
        self._command(self._abort)

    def _command(self, action: Callable[[], None]) -> None:
        """Let the run loop do it, unless another acquisition has begun by then."""
        number = self._number
        self._commands.append(lambda: action() if self._number == number else None)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until no acquisition is under way; returns whether that came true."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.busy, timeout_s)

    # -- the stage ---------------------------------------------------------------------------------

    def _open(self) -> None:
        self._commands.clear()
        self._waits_for = None
        self.acquisition_status = _S.IDLE
        for writer_id in range(self.n_writers):
            self._links.append(WriterLink(self.config, writer_id))
        self._metadata = MetadataSource(self.config, self._suffix)

    def _turn(self) -> None:
        if self._metadata is None:
            return
        while self._commands:
            self._commands.popleft()()
        self._collect_replies()
        timeout_s = _WAKE_S if self._waits_for is not None else TURN_S
        self._take(self._metadata.receive(int(timeout_s * 1000)))
        self.counters["malformed"] = self._metadata.n_malformed
        for link in self._links:
            link.pump()

    def _tick(self) -> None:
        if self.acquisition_status not in (_S.WAITING_FOR_FIRST_IMAGE, _S.RECORDING):
            return
        for link in self._links:
            if link.stuck_s() > STUCK_S:
                self._save(f"writer {link.writer_id} takes no more images", failed=True)
                return

    def _describe(self) -> str:
        if self.busy:
            return (
                f"Acquisition {self.acquisition_status}: {self.n_dispatched} of "
                f"{self._account.n_images} images, {self.rate_hz:.1f} Hz."
            )
        return f"Waiting for Start. {self.reason}".rstrip()

    def _close(self) -> None:
        if self.busy:
            self._close_files()
            self._fail("the writer driver was stopped during the acquisition")
        for link in self._links:
            link.close()
        if self._metadata is not None:
            self._metadata.close()
        self._links, self._metadata = [], None

    # -- the acquisition, all of it in the run loop ------------------------------------------------

    def _begin(self) -> None:
        request = self._request
        self._account = Account(
            request.n_images,
            request.start_id,
            ids_are_contiguous=self.config.detector_type in _UDP_DETECTORS,
        )
        self.ledger = self._account.provisional()
        self.progress = self.mean_rate_hz = 0.0
        self._started = datetime.now(UTC)
        self.last_files = [str(path) for path in request.writer_files(self.n_writers)]
        self.last_master = ""
        self.say(logging.INFO, f"[event] start of {request.n_images} images in {request.path}")
        for link in self._links:
            link.drop_stale()
        self._set_status(_S.CREATING_FILE)
        self._ask(
            [CreateFile(path, request.writer_user_id) for path in self.last_files],
            CREATE_TIMEOUT_S,
            self._created,
        )

    def _created(self, replies: Replies) -> None:
        failures = self._failures(replies)
        if failures:
            # A file that could not be created is not ours to remove.
            self.last_files = [self.last_files[i] for i in sorted(replies) if replies[i].ok]
            self._discard("; ".join(failures), CREATE_TIMEOUT_S, failed=True)
            return
        self._set_status(_S.FILE_CREATED)
        self._set_status(_S.WAITING_FOR_FIRST_IMAGE)

    def _take(self, images: list[Image]) -> None:
        self.counters["seen"] += len(images)
        if self.acquisition_status not in (_S.WAITING_FOR_FIRST_IMAGE, _S.RECORDING):
            return
        account = self._account
        for image in images:
            try:
                wanted = account.take(image)
            except AcquisitionError as error:
                self._save(str(error), failed=True)
                return
            if wanted:
                if self.acquisition_status is _S.WAITING_FOR_FIRST_IMAGE:
                    self._first_image_s = time.monotonic()
                    self._set_status(_S.RECORDING)
                link = self._links[(account.n_dispatched - 1) % len(self._links)]
                link.send(RecordImage(image))
                self.counters["dispatched"] += 1
            if account.done:
                self._note_rate()
                self._save(f"all {account.n_images} images are accounted for")
                return
        if images:
            self._note_rate()
            self.ledger = account.provisional()
            self.progress = self.ledger.expected / account.n_images

    def _note_rate(self) -> None:
        elapsed_s = time.monotonic() - self._first_image_s
        if self.n_dispatched > 1 and elapsed_s > 0:
            self.mean_rate_hz = (self.n_dispatched - 1) / elapsed_s

    def _finish(self) -> None:
        if self.acquisition_status in (_S.WAITING_FOR_FIRST_IMAGE, _S.RECORDING):
            while self._metadata is not None and self.acquisition_status in (
                _S.WAITING_FOR_FIRST_IMAGE,
                _S.RECORDING,
            ):
                images = self._metadata.receive(0)  # what was announced before the Stop counts
                if not images:
                    break
                self._take(images)
            if self.acquisition_status in (_S.WAITING_FOR_FIRST_IMAGE, _S.RECORDING):
                account = self._account
                self._set_status(_S.STOP)
                self._save(
                    f"stopped by the user after {account.n_dispatched} of {account.n_images} images"
                )
        elif self.acquisition_status in (_S.STARTED, _S.CREATING_FILE):
            self._discard("stopped by the user before the files were created", SAVE_TIMEOUT_S)

    def _abort(self) -> None:
        if self.busy and self.acquisition_status is not _S.STOP:
            self._discard(
                f"aborted by the user after {self.n_dispatched} images; the files were removed",
                SAVE_TIMEOUT_S,
            )

    def _save(self, reason: str, failed: bool = False) -> None:
        """Let the writers finish; then `_confirmed` and `_closed` follow."""
        self.reason, self.failed = reason, failed
        self.say(logging.ERROR if failed else logging.INFO, f"[event] {reason}")
        if self.acquisition_status is _S.WAITING_FOR_FIRST_IMAGE:
            self._set_status(_S.STOP)
        self._set_status(_S.SAVING_FILE)
        self._ask([ConfirmLastImage()] * len(self._links), SAVE_TIMEOUT_S, self._confirmed)

    def _confirmed(self, confirmed: Replies) -> None:
        self._ask(
            [CloseFile()] * len(self._links),
            SAVE_TIMEOUT_S,
            lambda closed: self._closed(confirmed, closed),
        )

    def _closed(self, confirmed: Replies, closed: Replies) -> None:
        failures = list(dict.fromkeys(self._failures(confirmed) + self._failures(closed)))
        overwritten = sum(reply.n_overwritten or 0 for reply in confirmed.values())
        unstored = LossReason.OVERWRITTEN if overwritten else LossReason.WRITE_ERROR
        files = []
        for path in self.last_files:
            try:
                read_rows(Path(path), self.config.detector_name)
                files.append(Path(path))
            except FileError as error:
                failures.append(str(error))
        try:
            stored = master_file.collect(files, self.config.detector_name)
            self.ledger = self._account.final(
                stored.rows["image_id"].tolist(), stored.rows["status"].tolist(), unstored
            )
            master = self._request.master_file()
            reason = "; ".join([self.reason, *failures])
            master_file.create(master, self.config, stored, self.ledger, self._started, reason)
            self.last_master = str(master)
        except FileError as error:
            failures.append(str(error))
        self.progress = min(1.0, self.ledger.expected / self._account.n_images)
        self.counters["lost"] += self.ledger.lost
        if failures or self.failed:
            self._fail("; ".join([self.reason, *failures]))
            return
        self.counters["acquisitions"] += 1
        self.say(logging.INFO, f"[event] saved {self.ledger.stored} images, lost {self.ledger.lost}")
        self._set_status(_S.FILE_SAVED)
        self._set_status(_S.IDLE)

    def _discard(self, reason: str, timeout_s: float, failed: bool = False) -> None:
        """Let the writers close their files; `_discarded` removes them."""
        self.reason, self.failed = reason, failed
        for link in self._links:
            link.drop_waiting()
        self._set_status(_S.STOP)
        self._ask([CloseFile()] * len(self._links), timeout_s, lambda _closed: self._discarded())

    def _discarded(self) -> None:
        for path in self.last_files:
            Path(path).unlink(missing_ok=True)
        self.last_files = []
        account = self._account
        self.ledger = Ledger(requested=account.n_images)
        self.ledger.lost_ids[LossReason.ABORTED] = account.dispatched
        self.ledger.lost_ids[LossReason.NOT_RECEIVED] = account.not_received
        if self.failed:
            self._fail(self.reason)
            return
        self.say(logging.INFO, f"[event] {self.reason}")
        self._set_status(_S.IDLE)

    def _close_files(self) -> None:
        """Let the writers close their files, and wait for it as long as a `stop` may take."""
        for link in self._links:
            link.drop_waiting()
            link.send(CloseFile())
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        open_links = list(self._links)
        while open_links and time.monotonic() < deadline_s:
            open_links = [link for link in open_links if link.take_reply() is None]
            time.sleep(_WAKE_S)

    def _fail(self, reason: str) -> None:
        self._waits_for = None
        self.reason, self.failed = reason, True
        self.counters["failed_acquisitions"] += 1
        self.say(logging.ERROR, reason)
        self._set_status(_S.ERROR)
        self._set_status(_S.IDLE)

    # -- talk with the writers ---------------------------------------------------------------------

    def _ask(self, actions: list[Action], timeout_s: float, then: Callable[[Replies], None]) -> None:
        """Send one action to each writer and go on with `then` when all have answered."""
        self._waits_for = (time.monotonic() + timeout_s, {}, then)
        for link, action in zip(self._links, actions, strict=True):
            link.send(action)

    def _collect_replies(self) -> None:
        if self._waits_for is None:
            return
        deadline_s, replies, then = self._waits_for
        for link in self._links:
            if link.writer_id in replies:
                continue
            reply = link.take_reply()
            if reply is None and (time.monotonic() > deadline_s or link.stuck_s() > STUCK_S):
                link.give_up()
                reply = Response(
                    False, f"writer {link.writer_id} does not answer; does it run with this config?"
                )
            if reply is not None:
                replies[link.writer_id] = reply
        if len(replies) == len(self._links):
            self._waits_for = None
            then(replies)

    def _failures(self, replies: Replies) -> list[str]:
        return [
            reply.reason or f"writer {writer_id} failed"
            for writer_id, reply in sorted(replies.items())
            if not reply.ok
        ]

    def _set_status(self, status: DriverStatus) -> None:
        with self._changed:
            self.acquisition_status = check_transition(self.acquisition_status, status)
            self._changed.notify_all()
        if self.on_status is not None:
            self.on_status(status)
        if self.on_tick is not None:
            self.on_tick()
