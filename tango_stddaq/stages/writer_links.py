"""The links to all writers of an acquisition: images go round robin, everything else to each of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tango_stddaq.codecs.writer_action import Action, CloseFile, Response
from tango_stddaq.config import DaqConfig
from tango_stddaq.stages.writer_link import WriterLink

STUCK_S: Final = 10.0
"""A writer that takes nothing for so long, or is silent when it shall finish, is given up."""
META: Final = "meta"
_WAKE_S: Final = 0.005

Replies = dict[int | str, Response]


@dataclass(slots=True)
class _Question:
    """What writers were asked, and what they have answered so far."""

    asked_s: float
    timeout_s: float
    silence_s: float | None
    asked: list[WriterLink]
    then: Callable[[Replies], None]
    replies: Replies = field(default_factory=dict)

    def is_over_for(self, link: WriterLink) -> bool:
        """Return whether a writer has had its time."""
        waited_s = time.monotonic() - self.asked_s
        silent_s = link.silent_s()
        if self.silence_s is None or silent_s is None:
            return waited_s > self.timeout_s
        limit_s = STUCK_S if link.was_given_up else self.silence_s
        return silent_s > limit_s or min(waited_s, link.idle_s()) > self.timeout_s


class WriterLinks:
    """Never blocks, but in `close_files`.

    Parameters
    ----------
    with_metadata_writer
        Whether a metadata writer takes part as well: it gets every image's metadata.

    Raises
    ------
    ChannelError
        If another driver is bound to one of the addresses.
    """

    def __init__(self, config: DaqConfig, with_metadata_writer: bool) -> None:
        self.writers: list[WriterLink] = []
        self.meta: WriterLink | None = None
        self._waits_for: _Question | None = None
        self._known: dict[int | str, int] = {}
        try:
            for writer_id in range(config.number_of_writers):
                self.writers.append(WriterLink(config, writer_id))
            if with_metadata_writer:
                self.meta = WriterLink(config, META)
        except BaseException:
            self.close()
            raise

    @property
    def all(self) -> list[WriterLink]:
        """All writers, the metadata writer last."""
        return self.writers if self.meta is None else [*self.writers, self.meta]

    @property
    def busy(self) -> bool:
        """Whether answers or writers are waited for: look again soon."""
        return self._waits_for is not None or any(link.has_waiting for link in self.all)

    def dispatch(self, n_before: int, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Hand images to the writers whose turn it is.

        Parameters
        ----------
        n_before
            The number of the first of them, counted from 0.
        rows, lengths
            (n, room) uint8 and (n,) int64: a `RecordImage` for each.
        """
        n_writers = len(self.writers)
        for place, writer in enumerate(self.writers):
            writer.send_images(rows, lengths, (place - n_before) % n_writers, n_writers)
        if self.meta is not None:
            self.meta.send_images(rows, lengths)

    def pump(self) -> None:
        """Send what the writers take now."""
        for link in self.all:
            link.pump()

    def remember(self) -> None:
        """Note that the writers that are there now take part: from here on each must stay."""
        self._known = {link.writer_id: link.n_connections for link in self.all}

    def trouble(self) -> str | None:
        """Return which writer can take no more images, and why; None if all can."""
        for link in self.all:
            if not self._is_there(link):
                return self._loss_of(link)
            link.take_reply()  # there is none to wait for: an unasked one is noted
            if link.failure is not None:
                return link.failure
            if link.stuck_s() > STUCK_S:
                return f"writer {link.writer_id} takes no more images"
        return None

    def _is_there(self, link: WriterLink) -> bool:
        return link.writer_id not in self._known or link.is_same_as(self._known[link.writer_id])

    def _loss_of(self, link: WriterLink) -> str:
        found = "was restarted" if link.n_connections > self._known[link.writer_id] else "ended"
        return f"writer {link.writer_id} {found} during the acquisition"

    def start(self) -> None:
        """Forget what is left of an earlier acquisition."""
        self._waits_for, self._known = None, {}
        for link in self.all:
            link.drop_stale()

    def ask(
        self,
        actions: Sequence[Action],
        timeout_s: float,
        then: Callable[[Replies], None],
        only: Sequence[int | str] | None = None,
        silence_s: float | None = None,
    ) -> None:
        """Send one action to each writer; `collect` goes on with `then` when all have answered.

        Parameters
        ----------
        actions
            One for each of `all`.
        timeout_s
            A writer that does not answer in this time is given up. With `silence_s` one that tells how
            far it is has this time from the last image it stored.
        only
            Writers to ask; None for all.
        silence_s
            One that tells how far it is, but has been silent for so long, is given up before. It may be
            busy in one call to the file system for that long.
        """
        asked = [link for link in self.all if only is None or link.writer_id in only]
        now = time.monotonic()
        self._waits_for = _Question(now, timeout_s, silence_s, asked, then)
        for link, action in zip(self.all, actions, strict=True):
            if link in asked and self._is_there(link):
                link.send(action)

    def collect(self) -> None:
        """Take the answers that are there; a writer that is gone or late counts as one that failed."""
        if self._waits_for is None:
            return
        question = self._waits_for
        replies = question.replies
        for link in question.asked:
            if link.writer_id in replies:
                continue
            reply = link.take_reply()
            if reply is None and not self._is_there(link):
                link.give_up()
                reply = Response(False, self._loss_of(link))
            elif reply is None and (question.is_over_for(link) or link.stuck_s() > STUCK_S):
                link.give_up()
                reply = Response(
                    False, f"writer {link.writer_id} does not answer; does it run with this config?"
                )
            if reply is not None:
                replies[link.writer_id] = reply
        if len(replies) == len(question.asked):
            self._waits_for = None
            question.then(replies)

    def forget_questions(self) -> None:
        """Wait for no answers any more."""
        self._waits_for = None

    def drop_waiting(self) -> None:
        """Forget what the writers have not taken."""
        for link in self.all:
            link.drop_waiting()

    def close_files(self, timeout_s: float) -> None:
        """Let the writers close their files, and wait for it as long as a `stop` may take."""
        for link in self.all:
            link.drop_waiting()
            link.send(CloseFile())
        deadline_s = time.monotonic() + timeout_s
        open_links = self.all
        while open_links and time.monotonic() < deadline_s:
            open_links = [link for link in open_links if link.take_reply() is None]
            time.sleep(_WAKE_S)

    def close(self) -> None:
        """Close all channels."""
        for link in self.all:
            link.close()
        self.writers, self.meta = [], None


def failures_of(replies: Replies) -> list[str]:
    """Return what the writers that failed say."""
    return [
        reply.reason or f"writer {writer_id} failed"
        for writer_id, reply in sorted(replies.items(), key=lambda item: str(item[0]))
        if not reply.ok
    ]
