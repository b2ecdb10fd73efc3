"""Counters, rates and the loss ledger: what a stage knows of its own work."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Counter:
    """What a counter means.

    Attributes
    ----------
    name
        Snake case; the Tango attribute is the same in lowerCamelCase.
    unit
        Of the count: images, packets, frames, bytes.
    loss
        Whether an increase means that data was lost or damaged: the stage goes to ALARM.
    """

    name: str
    unit: str
    description: str
    loss: bool = False


class Rate:
    """The rate of a growing counter over a sliding window.

    Parameters
    ----------
    window_s
        Length of the window in seconds.
    """

    def __init__(self, window_s: float = 2.0) -> None:
        self._window_s = window_s
        self._points: deque[tuple[float, int]] = deque()

    def update(self, now_s: float, count: int) -> float:
        """Note the counter's value at `now_s` and return the rate in Hz."""
        if self._points and count < self._points[-1][1]:
            self._points.clear()  # the counter was reset
        self._points.append((now_s, count))
        while len(self._points) > 2 and now_s - self._points[0][0] > self._window_s:
            self._points.popleft()
        start_s, start = self._points[0]
        return (count - start) / (now_s - start_s) if now_s > start_s else 0.0


class IdRanges:
    """A set of image ids kept as ranges, so that a long run of losses costs no memory.

    Parameters
    ----------
    max_ranges
        Beyond this many separate ranges ids are only counted, and `truncated` says so.
    """

    def __init__(self, max_ranges: int = 100_000) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # inclusive
        self._max_ranges = max_ranges
        self.count = 0
        self.truncated = False

    def add(self, image_id: int) -> None:
        """Add one id."""
        if self._ends and self._ends[-1] + 1 == image_id:  # nearly always
            self._ends[-1] = image_id
            self.count += 1
        else:
            self.add_range(image_id, image_id)

    def add_range(self, first: int, last: int) -> None:
        """Add the ids `first` to `last`, both included; none of them may be in the set."""
        if last < first:
            return
        self.count += last - first + 1
        if self._ends and first == self._ends[-1] + 1:
            self._ends[-1] = last
            return
        if len(self._starts) >= self._max_ranges:
            self.truncated = True
            return
        where = bisect_right(self._starts, first)
        self._starts.insert(where, first)
        self._ends.insert(where, last)

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges (first, last), both included."""
        return list(zip(self._starts, self._ends, strict=True))

    def ids(self, limit: int = 100_000) -> list[int]:
        """Return at most `limit` of the ids in increasing order."""
        found: list[int] = []
        for first, last in self.ranges():
            found.extend(range(first, min(last, first + limit - len(found) - 1) + 1))
            if len(found) >= limit:
                break
        return found

    def __contains__(self, image_id: int) -> bool:
        where = bisect_right(self._starts, image_id) - 1
        return where >= 0 and image_id <= self._ends[where]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges():
            yield from range(first, last + 1)


class LossReason(StrEnum):
    """Why an image that belongs to an acquisition is not in its file."""

    NOT_RECEIVED = "not_received"
    """Its metadata never arrived: nothing of it was seen, or a stage before dropped it."""
    OVERWRITTEN = "overwritten"
    """Its slot was overwritten before the writer had read it."""
    WRITE_ERROR = "write_error"
    """The writer could not store it."""
    ABORTED = "aborted"
    """The user aborted the acquisition."""


LOSS_REASONS: Final = tuple(LossReason)


@dataclass(slots=True)
class Ledger:
    """The account of one acquisition: every image ends in exactly one bin.

    `expected = complete + incomplete + lost`, where `lost` has a reason for every image.
    """

    requested: int = 0
    complete: int = 0
    incomplete_ids: IdRanges = field(default_factory=IdRanges)
    lost_ids: dict[LossReason, IdRanges] = field(
        default_factory=lambda: {reason: IdRanges() for reason in LOSS_REASONS}
    )

    @property
    def incomplete(self) -> int:
        """Images stored with missing packets."""
        return self.incomplete_ids.count

    @property
    def stored(self) -> int:
        """Images in the file."""
        return self.complete + self.incomplete

    @property
    def lost(self) -> int:
        """Images that are not in the file."""
        return sum(ids.count for ids in self.lost_ids.values())

    @property
    def expected(self) -> int:
        """Images that belong to the acquisition so far."""
        return self.complete + self.incomplete + self.lost

    def summary(self) -> dict[str, Any]:
        """Return the ledger as plain values, ids as [first, last] ranges."""
        return {
            "requested": self.requested,
            "expected": self.expected,
            "complete": self.complete,
            "incomplete": self.incomplete,
            "lost": self.lost,
            "incomplete_ids": [list(pair) for pair in self.incomplete_ids.ranges()],
            "lost_ids": {
                str(reason): [list(pair) for pair in ids.ranges()]
                for reason, ids in self.lost_ids.items()
                if ids.count
            },
        }


def to_ranges(ids: Iterable[int]) -> IdRanges:
    """Return increasing ids as ranges."""
    result = IdRanges()
    for image_id in ids:
        result.add(image_id)
    return result
