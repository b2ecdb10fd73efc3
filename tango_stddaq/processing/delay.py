"""Holding messages back for a while: a plain data structure that knows no clock and no sockets."""

from collections import deque
from typing import Final

_EXISTING_RESERVE: Final = 998
"""The existing delay filter holds so many images less than the ring has slots."""


def most_waiting(n_slots: int) -> int:
    """Return how many images may wait without the ring overtaking them.

    As the existing program does it for its rings, of at least 1000 slots; of a smaller one, half.
    """
    return n_slots - _EXISTING_RESERVE if n_slots >= _EXISTING_RESERVE + 2 else max(1, n_slots // 2)


class DelayLine:
    """Messages that wait, in the order of their arrival.

    Parameters
    ----------
    delay_s
        How long each waits.
    limit
        How many wait at most: with one more, the oldest goes on early.
    """

    def __init__(self, delay_s: float, limit: int) -> None:
        self.delay_s = delay_s
        self.limit = limit
        self.n_early = 0
        """Messages that had to make room before their time."""
        self._waiting: deque[tuple[float, int, bytes]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, now_s: float, image_id: int, message: bytes) -> None:
        """Add a message that arrived at `now_s`."""
        self._waiting.append((now_s, image_id, message))

    def take(self, now_s: float) -> list[tuple[int, bytes]]:
        """Return the ids and messages that have waited long enough, or have to make room."""
        found: list[tuple[int, bytes]] = []
        while self._waiting:
            is_due = now_s - self._waiting[0][0] >= self.delay_s
            if not is_due and len(self._waiting) <= self.limit:
                break
            self.n_early += not is_due
            found.append(self._waiting.popleft()[1:])
        return found

    def take_all(self) -> list[tuple[int, bytes]]:
        """Return everything that waits."""
        found = [entry[1:] for entry in self._waiting]
        self._waiting.clear()
        return found
