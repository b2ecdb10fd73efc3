"""Keeps a message that comes again and again from filling the log: it is counted, and summed up."""

import re
from dataclasses import dataclass
from typing import Final

BURST: Final = 5
"""So many alike are written out in a window; what comes beyond is counted."""
WINDOW_S: Final = 10.0
_MAX_KINDS: Final = 1000
_NUMBER: Final = re.compile(r"\d+")


@dataclass(slots=True)
class _Window:
    start_s: float
    n_seen: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes messages alike: who says it, how severe it is, the words without the numbers."""

    service: str
    level: int
    words: str

    @classmethod
    def of(cls, service: str, level: int, message: str) -> "Kind":
        """Return the kind of a message."""
        return cls(service, level, _NUMBER.sub("#", message)[:500])


class FloodGate:
    """Says which messages are written, and what to say of the others."""

    def __init__(self, burst: int = BURST, window_s: float = WINDOW_S) -> None:
        self._burst, self.window_s = burst, window_s
        self._windows: dict[Kind, _Window] = {}

    def admit(self, kind: Kind, now_s: float) -> bool:
        """Count a message; returns whether it is written. Ask `due` first."""
        window = self._windows.setdefault(kind, _Window(now_s))
        window.n_seen += 1
        return window.n_seen <= self._burst

    def due(self, now_s: float, everything: bool = False) -> list[tuple[Kind, int]]:
        """Return the kinds whose window is over, with how many were not written; forget them."""
        over = [
            kind
            for kind, window in self._windows.items()
            if everything or now_s - window.start_s >= self.window_s
        ]
        if not over and len(self._windows) > _MAX_KINDS:
            over = list(self._windows)[: _MAX_KINDS // 2]
        held = [(kind, self._windows.pop(kind).n_seen - self._burst) for kind in over]
        return [(kind, count) for kind, count in held if count > 0]
