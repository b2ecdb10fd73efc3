"""On which CPUs a thread may run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tango_stddaq.errors import ConfigError


def parse_cpus(text: str) -> frozenset[int] | None:
    """Read `2-5`, `0,2` or `0,4-7`; an empty text (None) allows all.

    Raises
    ------
    ConfigError
        If it is none of these, or names a CPU that this process has not.
    """
    if not text.strip():
        return None
    there = os.sched_getaffinity(os.getpid())
    allowed = f"allowed are CPUs out of {_ranges(there)}, like 2-5 or 0,2"
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        # Digits are counted first: nobody shall make us count to 10 ** 9.
        pieces = (first, last) if dash else (first, first)
        if not all(piece.isascii() and piece.isdecimal() and len(piece) <= 4 for piece in pieces):
            raise ConfigError(f"CPUs {text!r}: {allowed}")
        start, end = int(pieces[0]), int(pieces[1])
        if end < start:
            raise ConfigError(f"CPUs {text!r}: {part.strip()!r} is not a range; {allowed}")
        cpus.update(range(start, end + 1))
    absent = sorted(cpus - there)
    if absent:
        raise ConfigError(f"CPUs {text!r}: there is no CPU {_ranges(absent)} for us; {allowed}")
    return frozenset(cpus)


@contextmanager
def running_on(cpus: frozenset[int] | None) -> Iterator[None]:
    """Keep the calling thread on these CPUs for a while; threads started meanwhile stay there.

    Linux gives a new thread the CPUs of the one that starts it. Memory touched meanwhile comes from
    the NUMA node of these CPUs.
    """
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)  # 0: of this thread
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _ranges(cpus: "list[int] | set[int]") -> str:
    """Return `0-3,6` for the CPUs 0, 1, 2, 3 and 6."""
    ordered = sorted(cpus)
    parts: list[str] = []
    for at, cpu in enumerate(ordered):
        if at and ordered[at - 1] == cpu - 1:
            parts[-1] = f"{parts[-1].split('-')[0]}-{cpu}"
        else:
            parts.append(str(cpu))
    return ",".join(parts)
