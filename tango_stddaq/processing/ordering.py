"""Order across parallel connections: images that came over several of them leave with rising ids.

A plain data structure. A source hands its images out in turn to all its connections, and each of them
delivers in order: an image may leave once every connection has delivered a newer one. Gaps in ids tell
nothing, for a camera may be triggered at a fraction of the machine's pulses.
"""

import heapq
from collections import deque
from typing import Final, Generic, TypeVar

_N_RECENT: Final = 1024
"""Ids of released images that are remembered, to tell a duplicate from an image that came too late."""
_MIN_DOUBTS: Final = 2
T = TypeVar("T")


class Reorderer(Generic[T]):
    """Holds images back until none with a lower id can come any more.

    Parameters
    ----------
    n_connections
        Parallel connections, numbered from 0.
    window
        Images held, if connections are read only while `wants` says so; at most one more of each.
    timeout_s
        An image is held so long, and while connections that are behind it still deliver; what comes
        later with a lower id is dropped.
    idle_s
        A connection that was silent for so long is not waited for, and a lower id after a silence of
        all of them is that of a restarted source.

    Attributes
    ----------
    n_late, n_duplicate
        Images dropped: a newer one was released already, or the same id had come before.
    n_restarts
        How often the source started its ids again at a lower one.
    """

    def __init__(
        self, n_connections: int, window: int, timeout_s: float = 0.5, idle_s: float = 1.0
    ) -> None:
        self._n_connections = n_connections
        self._window = window
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._run = max(8, 2 * n_connections)
        self._ids: list[int] = []  # a heap of the keys of _waiting
        self._waiting: dict[int, tuple[float, T]] = {}
        self._last = -1
        self._recent: deque[int] = deque(maxlen=_N_RECENT)
        self._newest: dict[int, int] = {}  # the highest id of each connection
        self._heard_s: dict[int, float] = {}  # when each of them delivered last
        self._doubts: list[tuple[int, int, T]] = []
        self._before: dict[int, int] = {}  # _newest of the ids before a restart
        self.n_late = 0
        self.n_duplicate = 0
        self.n_restarts = 0

    @property
    def n_waiting(self) -> int:
        """Images held back."""
        return len(self._waiting) + len(self._doubts)

    def wants(self, connection: int) -> bool:
        """Return whether to read this connection now: if the window is full, only those behind are."""
        return len(self._ids) < self._window or self._newest.get(connection, -1) < self._ids[0]

    def add(self, connection: int, image_id: int, item: T, now_s: float) -> list[tuple[int, T]]:
        """Take an image; returns those that may go on now, in order of their ids."""
        last_heard_s = max(self._heard_s.values(), default=now_s)
        was_silent = now_s - last_heard_s > self._idle_s
        if was_silent or not self._heard_s:  # all of them may have the next image
            self._heard_s = dict.fromkeys(range(self._n_connections), now_s)
        self._heard_s[connection] = now_s
        before = self._before.get(connection)
        if before is not None:
            if image_id > before:  # sent before the restart, on a connection that lagged behind
                self.n_late += 1
                return []
            del self._before[connection]
        newest = self._newest.get(connection, -1)
        if image_id <= self._last and (newest < 0 or image_id <= newest):
            return self._doubt(connection, image_id, item, now_s, was_silent)
        if self._doubts and image_id > newest:  # this connection goes on where it was
            self._drop_doubts(connection)
        self._newest[connection] = max(newest, image_id)
        return self._take(image_id, item, now_s)

    def expire(self, now_s: float) -> list[tuple[int, T]]:
        """Return what has waited long enough; call it when nothing comes."""
        released: list[tuple[int, T]] = []
        last_heard_s = max(self._heard_s.values(), default=now_s)
        if self._doubts and now_s - last_heard_s > self._idle_s:
            ids = [image_id for _, image_id, _ in self._doubts]
            if len(ids) >= _MIN_DOUBTS and ids == sorted(set(ids)):
                return self._restart(now_s) + self.flush()
            self._drop_doubts(None)
        overdue = [
            image_id
            for image_id, (since_s, _) in self._waiting.items()
            if now_s - since_s >= self._timeout_s and self._nobody_catches_up(image_id, now_s)
        ]
        if overdue:
            released = self._release(max(overdue))
        return released

    def _nobody_catches_up(self, image_id: int, now_s: float) -> bool:
        """Return whether the connections that are behind this image deliver nothing any more."""
        return all(
            now_s - heard_s >= self._timeout_s
            for connection, heard_s in self._heard_s.items()
            if self._newest.get(connection, -1) < image_id
        )

    def flush(self) -> list[tuple[int, T]]:
        """Release everything that is held."""
        return self._release(max(self._ids)) if self._ids else []

    def _doubt(
        self, connection: int, image_id: int, item: T, now_s: float, was_silent: bool
    ) -> list[tuple[int, T]]:
        """Keep an image whose connection went back, until it is known why.

        Was the source restarted, or does it repeat itself? It was restarted if it goes on like this.
        """
        if any(image_id == doubt[1] for doubt in self._doubts):
            self.n_duplicate += 1
            return []
        self._doubts.append((connection, image_id, item))
        if was_silent or len(self._doubts) >= self._run:
            return self._restart(now_s)
        return []

    def _take(self, image_id: int, item: T, now_s: float) -> list[tuple[int, T]]:
        if image_id <= self._last or image_id in self._waiting:
            self._count_dropped(image_id)
            return []
        self._waiting[image_id] = (now_s, item)
        heapq.heappush(self._ids, image_id)
        released = self._release(self._low_water(now_s))
        while self._ids and self._ids[0] == self._last + 1:
            released += self._release(self._ids[0])
        # Each connection that is behind may still add one when the window is full, see `wants`.
        while len(self._ids) > self._window + self._n_connections:
            released += self._release(self._ids[0])
        return released

    def _low_water(self, now_s: float) -> int:
        """Return the id up to which every connection that is alive has delivered."""
        alive = (c for c, heard_s in self._heard_s.items() if now_s - heard_s <= self._idle_s)
        return min((self._newest.get(connection, -1) for connection in alive), default=-1)

    def _release(self, limit: int) -> list[tuple[int, T]]:
        released = []
        while self._ids and self._ids[0] <= limit:
            image_id = heapq.heappop(self._ids)
            released.append((image_id, self._waiting.pop(image_id)[1]))
            self._recent.append(image_id)
            self._last = image_id
        return released

    def _restart(self, now_s: float) -> list[tuple[int, T]]:
        """Begin anew with the images in doubt, after everything from before."""
        released = self.flush()
        doubts, self._doubts = self._doubts, []
        again = {connection for connection, _, _ in doubts}
        self._before = {c: newest for c, newest in self._newest.items() if c not in again}
        self._newest.clear()
        self._recent.clear()
        self._last = -1
        self.n_restarts += 1
        for connection, image_id, item in doubts:
            self._newest[connection] = max(image_id, self._newest.get(connection, -1))
            released += self._take(image_id, item, now_s)
        return released

    def _drop_doubts(self, connection: int | None) -> None:
        """Drop the images in doubt of a connection: late ones or duplicates, not a restart."""
        for doubt in self._doubts:
            if connection in (None, doubt[0]):
                self._count_dropped(doubt[1])
        self._doubts = [doubt for doubt in self._doubts if connection not in (None, doubt[0])]

    def _count_dropped(self, image_id: int) -> None:
        if image_id in self._waiting or image_id in self._recent:
            self.n_duplicate += 1
        else:
            self.n_late += 1
