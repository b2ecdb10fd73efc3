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

import numpy as np

from tango_stddaq.codecs.writer_action import CloseFile, ConfirmLastImage, CreateFile
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import AcquisitionError, ConfigError, FileError
from tango_stddaq.io import creation, metadata_file
from tango_stddaq.io.channels import PIPELINE_HWM
from tango_stddaq.io.creation import FileRules
from tango_stddaq.io.identity import as_user
from tango_stddaq.io.image_source import MetadataSource
from tango_stddaq.io.master_file import Subject
from tango_stddaq.io.preflight import Request, check
from tango_stddaq.model import COMPRESSED_SUFFIXES
from tango_stddaq.processing.acquisition import RUNNING, Account, DriverStatus, check_transition
from tango_stddaq.processing.announced_batch import AnnouncedBatch
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stages.conclusion import MasterFile
from tango_stddaq.stages.writer_links import META, STUCK_S, Replies, WriterLinks, failures_of
from tango_stddaq.stats import Counter, Ledger, LossReason

CREATE_TIMEOUT_S: Final = 4.5
"""A Start without an answer from all writers is an error after so long."""
DISCARD_TIMEOUT_S: Final = 0.3
ABORT_TIMEOUT_S: Final = 5.0
SAVE_TIMEOUT_S: Final = 60.0
CLOSE_TIMEOUT_S: Final = 1.0
_UDP_DETECTORS: Final = ("eiger", "gigafrost", "jungfrau-raw", "jungfrau-converted", "jungfrau")
_WAKE_S: Final = 0.001
_GATHER_S: Final = 0.005
_BATCH: Final = 1024
_MAX_BATCHES_WAITING: Final = -(-PIPELINE_HWM // _BATCH)
"""More cannot wait when a Stop comes: what else there is was announced after it."""
_S = DriverStatus
_TAKING: Final = (_S.WAITING_FOR_FIRST_IMAGE, _S.RECORDING)


class WriterDriver(Stage):
    """Drives `number_of_writers` writers.

    Parameters
    ----------
    suffix
        Which metadata stream announces the images.
    output_roots
        Directories below which files may be written; none means anywhere.
    with_metadata_writer
        Whether a GigaFRoST metadata writer takes part.

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
        self,
        config: DaqConfig,
        suffix: str = "image",
        output_roots: tuple[str, ...] = (),
        with_metadata_writer: bool = False,
    ) -> None:
        super().__init__(config)
        if with_metadata_writer and config.detector_type != "gigafrost":
            raise ConfigError(
                f"detector_type {config.detector_type}: only a gigafrost has a metadata writer"
            )
        self._with_metadata_writer = with_metadata_writer
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
        self._links: WriterLinks | None = None
        self._request = Request("")
        self._rules = FileRules()
        self._account = Account(1)
        self._master: MasterFile | None = None
        self._batch = AnnouncedBatch(_BATCH)

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
            self._rules = self._check(request)
            self.reason, self.failed = "", False
            self._request = request
            self._number += 1
            self.acquisition_status = check_transition(self.acquisition_status, _S.STARTED)
            self._commands.append(self._begin)
            before = (_S.STARTED, _S.CREATING_FILE, _S.FILE_CREATED, _S.STOP)
            self._changed.wait_for(lambda: self.acquisition_status not in before, wait_s)
            if self.failed:
                raise AcquisitionError(self.reason)

    def _check(self, request: Request) -> FileRules:
        """Refuse a request that cannot end in a good file; returns how its files are created."""
        try:
            rules = FileRules.of(
                self.config, self.output_roots, request.writer_user_id, request.overwrite
            )
            with as_user(rules.user_id):
                check(
                    request,
                    self.config,
                    self.n_writers,
                    self.output_roots,
                    self._with_metadata_writer,
                    self.config.ring_of(self._suffix) in COMPRESSED_SUFFIXES,
                )
        except FileError as error:
            raise AcquisitionError(str(error)) from error
        return rules

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
        self.acquisition_status = _S.IDLE
        self._links = WriterLinks(self.config, self._with_metadata_writer)
        self._metadata = MetadataSource(self.config, self._suffix)

    def _turn(self) -> None:
        if self._metadata is None or self._links is None:
            return
        while self._commands:
            self._commands.popleft()()
        self._links.collect()
        timeout_s = _WAKE_S if self._links.busy else TURN_S
        n_taken = self._take_waiting(self._metadata, int(timeout_s * 1000))
        self._links.pump()
        if n_taken and not self._links.busy:  # to wake for each costs more than many a little later
            self._stop.wait(_GATHER_S)

    def _tick(self) -> None:
        if self.acquisition_status not in _TAKING:
            return
        trouble = self.links.trouble()
        if trouble is not None:
            self._save(trouble, failed=True)

    @property
    def links(self) -> WriterLinks:
        """The links to the writers.

        Raises
        ------
        AcquisitionError
            While the stage does not run.
        """
        if self._links is None:
            raise AcquisitionError("the writer driver does not run")
        return self._links

    def _more_statistics(self) -> dict[str, float]:
        ledger = self.ledger
        names = ("requested", "expected", "complete", "incomplete", "lost")
        return {f"ledger_{name}": getattr(ledger, name) for name in names}

    def _program_keys(self) -> dict[str, str]:
        return {"source": self._suffix}

    def _describe(self) -> str:
        if self.busy:
            return (
                f"Acquisition {self.acquisition_status}: {self.n_dispatched} of "
                f"{self._account.n_images} images, {self.rate_hz:.1f} Hz."
            )
        return f"Waiting for Start. {self.reason}".rstrip()

    def _close(self) -> None:
        if self._links is not None:
            if self.busy:
                self._links.close_files(CLOSE_TIMEOUT_S)
                self._fail("the writer driver was stopped during the acquisition")
            self._links.close()
        if self._metadata is not None:
            self._metadata.close()
        self._links = self._metadata = None

    # -- the acquisition, all of it in the run loop ------------------------------------------------

    def _begin(self) -> None:
        request = self._request
        self._account = Account(
            request.n_images,
            request.start_id,
            ids_are_contiguous=self.config.detector_type in _UDP_DETECTORS
            and not self.config.leaves_images_out(self._suffix),
        )
        self.ledger = self._account.provisional()
        self.progress = self.mean_rate_hz = 0.0
        self.last_files = [str(path) for path in request.writer_files(self.n_writers)]
        self.last_master = ""
        self._master = None
        self.say(logging.INFO, f"[event] start of {request.n_images} images in {request.path}")
        self.links.start()
        self._set_status(_S.CREATING_FILE)
        paths = list(self.last_files)
        if self._with_metadata_writer:
            paths.append(str(request.metadata_file()))
        user = request.writer_user_id
        self.links.ask(
            [CreateFile(path, user, request.overwrite, True) for path in paths],
            CREATE_TIMEOUT_S,
            self._created,
        )

    def _created(self, replies: Replies) -> None:
        failures = failures_of(replies)
        if not failures:
            self.links.remember()
            try:
                self._master = MasterFile(
                    self._request.master_file(),
                    Subject.of(self.config, datetime.now(UTC)),
                    [Path(path) for path in self.last_files],
                    self._rules,
                )
            except FileError as error:
                failures.append(str(error))
        if failures:
            # A file that could not be created is not ours to remove.
            created = [writer_id for writer_id, reply in replies.items() if reply.ok]
            self.last_files = [self.last_files[i] for i in created if isinstance(i, int)]
            self._discard("; ".join(failures), DISCARD_TIMEOUT_S, failed=True, only=created)
            return
        self.last_master = str(self._request.master_file())
        self._set_status(_S.FILE_CREATED)
        self._set_status(_S.WAITING_FOR_FIRST_IMAGE)

    def _take_waiting(self, metadata: MetadataSource, timeout_ms: int) -> int:
        """Take the images that were announced; returns how many messages there were."""
        batch = self._batch
        n = metadata.receive_rows(timeout_ms, batch.rows, batch.lengths)
        self.counters["seen"] += n
        if n and self.acquisition_status in _TAKING:
            self._take(*batch.images(n))
        return n

    def _take(self, image_ids: np.ndarray, status: np.ndarray, n_malformed: int) -> None:
        """Hand the images of the batch to the writers."""
        self.counters["malformed"] += n_malformed
        account, n_before = self._account, self.n_dispatched
        wanted, why_no_more = account.take_all(image_ids, status)
        self.links.dispatch(n_before, *self._batch.actions(wanted, time.time_ns()))
        self._count_dispatched(n_before)
        if why_no_more:
            self._save(why_no_more, failed=True)
            return
        if account.done:
            self._save(f"all {account.n_images} images are accounted for")
            return
        self.ledger = account.provisional()
        self.progress = self.ledger.expected / account.n_images

    def _count_dispatched(self, n_before: int) -> None:
        n_new = self._account.n_dispatched - n_before
        if n_new and self.acquisition_status is _S.WAITING_FOR_FIRST_IMAGE:
            self._first_image_s = time.monotonic()
            self._set_status(_S.RECORDING)
        self.counters["dispatched"] += n_new
        self._note_rate()

    def _note_rate(self) -> None:
        elapsed_s = time.monotonic() - self._first_image_s
        if self.n_dispatched > 1 and elapsed_s > 0:
            self.mean_rate_hz = (self.n_dispatched - 1) / elapsed_s

    def _finish(self) -> None:
        if self.acquisition_status in _TAKING:
            for _ in range(_MAX_BATCHES_WAITING):  # announced before the Stop: they count
                if self._metadata is None or self.acquisition_status not in _TAKING:
                    break
                if self._take_waiting(self._metadata, 0) < _BATCH:
                    break
            if self.acquisition_status in _TAKING:
                account = self._account
                self._set_status(_S.STOP)
                self._save(
                    f"stopped by the user after {account.n_dispatched} of {account.n_images} images"
                )
        elif self.acquisition_status in (_S.STARTED, _S.CREATING_FILE):
            self._discard("stopped by the user before the files were created", ABORT_TIMEOUT_S)

    def _abort(self) -> None:
        if self.busy and self.acquisition_status is not _S.STOP:
            self._discard(
                f"aborted by the user after {self.n_dispatched} images; the files were removed",
                ABORT_TIMEOUT_S,
            )

    def _save(self, reason: str, failed: bool = False) -> None:
        """Let the writers finish; then `_confirmed` and `_closed` follow."""
        self.reason, self.failed = reason, failed
        self.say(logging.ERROR if failed else logging.INFO, f"[event] {reason}")
        if self.acquisition_status is _S.WAITING_FOR_FIRST_IMAGE:
            self._set_status(_S.STOP)
        self._set_status(_S.SAVING_FILE)
        self.links.ask(
            [ConfirmLastImage()] * len(self.links.all),
            SAVE_TIMEOUT_S,
            self._confirmed,
            silence_s=STUCK_S,
        )

    def _confirmed(self, confirmed: Replies) -> None:
        self.links.ask(
            [CloseFile()] * len(self.links.all),
            SAVE_TIMEOUT_S,
            lambda closed: self._closed(confirmed, closed),
            silence_s=SAVE_TIMEOUT_S,  # some file servers write all they have when a file is closed
        )

    def _closed(self, confirmed: Replies, closed: Replies) -> None:
        writers = dict.fromkeys(failures_of(confirmed) + failures_of(closed))
        writers.pop(self.reason, None)  # what ended the acquisition is said once
        replies = [*confirmed.values(), *closed.values()]
        overwritten = {pair for reply in replies for pair in reply.overwritten}
        failures = list(writers)
        if self._master is not None:
            conclusion = self._master.conclude(
                self._account, overwritten, lambda more: "; ".join([self.reason, *writers, *more])
            )
            self.ledger = conclusion.ledger
            failures += conclusion.failures
        if self._with_metadata_writer:
            failures += self._check_metadata_file()
        self.progress = min(1.0, self.ledger.expected / self._account.n_images)
        self.counters["lost"] += self.ledger.lost
        if failures or self.failed:
            self._fail("; ".join([self.reason, *failures]))
            return
        self.counters["acquisitions"] += 1
        self.say(logging.INFO, f"[event] saved {self.ledger.stored} images, lost {self.ledger.lost}")
        self._set_status(_S.FILE_SAVED)
        self._set_status(_S.IDLE)

    def _check_metadata_file(self) -> list[str]:
        try:
            with as_user(self._rules.user_id):
                metadata_file.check_stored(
                    self._request.metadata_file(), self.config.detector_name, self.n_dispatched
                )
        except FileError as error:
            return [str(error)]
        return []

    def _discard(
        self, reason: str, timeout_s: float, failed: bool = False, only: list[int | str] | None = None
    ) -> None:
        """Let the writers (`only` those, if given) close their files; `_discarded` removes them."""
        self.reason, self.failed = reason, failed
        self.links.drop_waiting()
        self._set_status(_S.STOP)
        actions = [CloseFile()] * len(self.links.all)
        self.links.ask(actions, timeout_s, lambda closed: self._discarded(META in closed), only)

    def _discarded(self, with_metadata: bool) -> None:
        ours = [Path(path) for path in self.last_files]
        if with_metadata:
            ours.append(self._request.metadata_file())
        if self._master is not None and self._master.is_ours():
            ours.append(self._master.path)
        for path in ours:
            try:
                creation.remove(path, self._rules.user_id)
            except FileError as error:
                self.failed = True
                self.reason = f"{self.reason}; {error}"
        self.last_files, self.last_master = [], ""
        account = self._account
        self.ledger = Ledger(requested=account.n_images)
        self.ledger.lost_ids[LossReason.ABORTED] = account.dispatched
        self.ledger.lost_ids[LossReason.NOT_RECEIVED] = account.not_received
        if self.failed:
            self._fail(self.reason)
            return
        self.say(logging.INFO, f"[event] {self.reason}")
        self._set_status(_S.IDLE)

    def _fail(self, reason: str) -> None:
        if self._links is not None:
            self._links.forget_questions()
        self.reason, self.failed = reason, True
        self.counters["failed_acquisitions"] += 1
        self.say(logging.ERROR, reason)
        self._set_status(_S.ERROR)
        self._set_status(_S.IDLE)

    def _set_status(self, status: DriverStatus) -> None:
        with self._changed:
            self.acquisition_status = check_transition(self.acquisition_status, status)
            self._changed.notify_all()
        if self.on_status is not None:
            self.on_status(status)
        if self.on_tick is not None:
            self.on_tick()
