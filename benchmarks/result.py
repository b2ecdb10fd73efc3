"""One measured figure, and how figures are measured: interleaved with their limit, several times."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """A figure.

    Attributes
    ----------
    name
        `group/what`, stable from run to run.
    value, unit
        What was measured; more is better unless the unit is a time.
    limit
        The same quantity for the bare operation that nothing can beat (memcpy, raw write, bare socket),
        measured in the same run; None where there is none.
    limit_name
        What that operation is.
    note
        A few words that belong beside the figure.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    limit_name: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Share of the limit that is reached."""
        return None if not self.limit else self.value / self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, with the ratio."""
        return {**asdict(self), "ratio": self.ratio}


def seconds(action: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def paired(
    action: Callable[[], object], limit: Callable[[], object], rounds: int = 7
) -> tuple[float, float]:
    """Time two actions in turn, so that a machine that drifts does the same to both.

    Returns
    -------
    tuple
        Median seconds of each.
    """
    action(), limit()  # the first call warms caches, compiles, touches pages
    pairs = [(seconds(action), seconds(limit)) for _ in range(rounds)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
