"""Patterns of packets: which images, modules and positions a fault hits, as one line of text."""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from tango_stddaq.errors import ConfigError

_NUMBER: Final = r"\d{1,19}"
_ITEM: Final = re.compile(
    rf"(?P<all>\*)|/(?P<step>{_NUMBER})|(?P<first>{_NUMBER})(?:-(?P<last>{_NUMBER}))?", re.ASCII
)
_MAX_TEXT: Final = 200
FORM: Final = (
    "allowed is IMAGES:MODULES:PACKETS, each of them `*` or a list of numbers, ranges `2-5` and "
    "multiples `/10`, joined by commas"
)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A set of numbers: ranges, ends included, and multiples."""

    ranges: tuple[tuple[int, int], ...] = ()
    steps: tuple[int, ...] = ()

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.ranges) or any(
            number % step == 0 for step in self.steps
        )


@dataclass(frozen=True, slots=True)
class PacketPattern:
    """Packets by image id, connection, and position in their frame, counted from 0.

    Attributes
    ----------
    text
        As it was written.
    """

    text: str
    images: Numbers
    modules: Numbers
    packets: Numbers

    @classmethod
    def parse(cls, text: str) -> "PacketPattern":
        """Read `IMAGES:MODULES:PACKETS`: `5:*:0-3,7` is packets 0 to 3 and 7 of all modules of image 5.

        Raises
        ------
        ConfigError
            If the text has another form.
        """
        parts = text.strip().split(":")
        if len(parts) != 3 or len(text) > _MAX_TEXT:
            raise ConfigError(f"drop pattern {text[:_MAX_TEXT]!r}: is not of the right form; {FORM}")
        return cls(text.strip(), *(_numbers(part, text) for part in parts))

    def mask(self, image_id: int, module: int, n_packets: int) -> np.ndarray:
        """Return which packets of a frame it names, (n_packets,) bool."""
        if image_id not in self.images or module not in self.modules:
            return np.zeros(n_packets, bool)
        return np.array([position in self.packets for position in range(n_packets)], bool)


def _numbers(part: str, text: str) -> Numbers:
    ranges, steps = [], []
    for item in part.split(","):
        found = _ITEM.fullmatch(item.strip())
        if found is None or (found["step"] is not None and int(found["step"]) == 0):
            raise ConfigError(f"drop pattern {text!r}: {item!r} is no number here; {FORM}")
        if found["all"]:
            steps.append(1)
        elif found["step"]:
            steps.append(int(found["step"]))
        else:
            ranges.append((int(found["first"]), int(found["last"] or found["first"])))
            if ranges[-1][0] > ranges[-1][1]:
                raise ConfigError(f"drop pattern {text!r}: range {item!r} ends before it begins")
    return Numbers(tuple(ranges), tuple(steps))
