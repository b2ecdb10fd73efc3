"""Gathers what comes of an image over several connections, and lets images go in order.

A plain data structure. Every connection delivers in order, so that one which has delivered a newer image
will not deliver an older one any more: what it lost is known at once, and nobody waits for it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from math import inf
from typing import Final, Generic, TypeVar

IDLE_S: Final = 1.0
"""A connection that was silent for so long may have missed that image ids started again."""
PATIENCE_S: Final = 0.5
"""A connection that delivered within this time is only behind: the others wait for it."""
T = TypeVar("T")
_Key = tuple[int, int]


@dataclass(slots=True)
class Gathered(Generic[T]):
    """An image that goes on.

    Attributes
    ----------
    items
        What came, by connection.
    missing
        Connections that did not deliver.
    n_anonymous
        Pieces whose connection is not known: those of existing programs.
    """

    image_id: int
    items: dict[int, T] = field(default_factory=dict)
    missing: frozenset[int] = frozenset()
    n_anonymous: int = 0
    anonymous: T | None = None

    @property
    def complete(self) -> bool:
        """Whether everything came."""
        return not self.missing


class Gatherer(Generic[T]):
    """Holds images back until every connection has delivered its piece, or cannot any more.

    Parameters
    ----------
    needed
        Which connections deliver something of an image, by its id.
    queue_size
        Newer images that an incomplete one waits for at most, if what it misses comes from a connection
        that has fallen silent.
    max_waiting
        The same for one that is only behind.

    Attributes
    ----------
    n_late, n_duplicate
        Pieces of images that went on already, and pieces that had come before.
    n_skipped
        Images of which nothing came: gaps in ids.
    n_restarts
        Times that image ids started again at a lower one.
    """

    def __init__(
        self, needed: Callable[[int], Collection[int]], queue_size: int, max_waiting: int
    ) -> None:
        self._needed = needed
        self._queue_size = queue_size
        self._max_waiting = max_waiting
        self._waiting: dict[_Key, Gathered[T]] = {}
        self._newest: dict[int, _Key] = {}
        self._heard_s: dict[int, float] = {}
        self._last: _Key = (0, -1)
        self._run = 0
        self.n_late = self.n_duplicate = self.n_skipped = self.n_restarts = 0

    @property
    def n_waiting(self) -> int:
        """Images held back."""
        return len(self._waiting)

    def add(self, image_id: int, connection: int | None, item: T, now_s: float) -> list[Gathered[T]]:
        """Take a piece; returns the images that may go on now, in order.

        Parameters
        ----------
        connection
            Which one delivered it; None if that is not known.
        """
        key = self._key(image_id, connection, now_s)
        if key <= self._last:
            self.n_late += 1
            return []
        entry = self._waiting.get(key)
        if entry is None:
            entry = self._waiting[key] = Gathered(image_id)
        if connection is None:
            entry.n_anonymous += 1
            entry.anonymous = item
        elif connection in entry.items:
            self.n_duplicate += 1
            return []
        else:
            entry.items[connection] = item
        return self._release(now_s)

    def _key(self, image_id: int, connection: int | None, now_s: float) -> _Key:
        """Tell image 5 of this run from image 5 of the last one."""
        if connection is None:
            # Nothing tells apart a piece that is late and a restart, but for the distance.
            if self._last[0] == self._run and image_id + self._queue_size < self._last[1]:
                self._begin_run()
            return (self._run, image_id)
        run, newest = self._newest.get(connection, (-1, -1))
        silent = now_s - self._heard_s.get(connection, -inf) > IDLE_S
        self._heard_s[connection] = now_s
        if silent and run < self._run:
            # It was cut off while the others started again, or is so late that they wait for it still.
            waiting = (r for r, i in self._waiting if i == image_id and r >= run)
            run = min(waiting, default=self._run)
        elif image_id < newest or (image_id == newest and silent):
            run += 1  # one connection delivers in order: a lower id is that of another run
        if run > self._run:
            self._begin_run()
        self._newest[connection] = max((run, image_id), self._newest.get(connection, (0, -1)))
        return (run, image_id)

    def _begin_run(self) -> None:
        self._run += 1
        self.n_restarts += 1

    def _release(self, now_s: float) -> list[Gathered[T]]:
        released: list[Gathered[T]] = []
        while self._waiting:
            key = min(self._waiting)
            entry = self._waiting[key]
            needed = self._needed(entry.image_id)
            missing = frozenset(c for c in needed if c not in entry.items)
            hopeless = all(self._newest.get(c, (-1, -1)) > key for c in missing)
            complete = len(missing) <= entry.n_anonymous
            if not complete and not hopeless and not self._is_full(missing, now_s):
                break
            released.append(self._leave(key, frozenset() if complete else missing))
        return released

    def _is_full(self, missing: frozenset[int], now_s: float) -> bool:
        if len(self._waiting) <= self._queue_size:
            return False
        silent = all(now_s - self._heard_s.get(c, -inf) > PATIENCE_S for c in missing)
        return silent or len(self._waiting) > self._max_waiting

    def _leave(self, key: _Key, missing: frozenset[int]) -> Gathered[T]:
        entry = self._waiting.pop(key)
        entry.missing = missing
        run, last = self._last
        if last >= 0 and run == key[0]:
            self.n_skipped += key[1] - last - 1
        self._last = key
        return entry

    def flush(self) -> list[Gathered[T]]:
        """Let all images go as they are."""
        return [
            self._leave(
                key,
                frozenset(c for c in self._needed(key[1]) if c not in self._waiting[key].items)
                if len(self._waiting[key].items) + self._waiting[key].n_anonymous
                < len(self._needed(key[1]))
                else frozenset(),
            )
            for key in sorted(self._waiting)
        ]

    def reset_counts(self) -> None:
        """Set the counts to zero."""
        self.n_late = self.n_duplicate = self.n_skipped = self.n_restarts = 0
