"""`python -m benchmarks.model DETECTOR RATE`: the processes and cores that a rate needs.

The sum of the costs that `python -m benchmarks chain bookkeeping` has left in results.json. A stage
that is one process needs `rate * cost` of a core; receivers and writers are as many as it takes to stay
below `FULL` each. An image costs synchronizer and driver the less the faster images come: theirs is the
cost at the highest rate measured that is not above the one asked for.
"""

import argparse
import json
import math
import re
from pathlib import Path

FULL = 0.8
"""Share of a core that a process may need, so that it catches up after a delay."""
MANY = {"udp-recv": "receivers, by module", "file-writer": "writers"}


def main() -> None:
    """Print a line a stage, and the sum."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("detector", help="as in the figures of the chain: gigafrost 480x128")
    parser.add_argument("rate", type=float, help="images per second")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    arguments = parser.parse_args()
    start = f"chain/{arguments.detector}, CPU of "
    figures = {
        entry["name"]: entry["value"] * 1e-6
        for entry in json.loads(arguments.results.read_text())["results"]
    }
    costs = {name.removeprefix(start): cost for name, cost in figures.items() if name.startswith(start)}
    if not costs:
        parser.error(f"{arguments.results} has no figure {start}...: run python -m benchmarks chain")
    for stage in costs:
        at = {hz: cost for name, cost in figures.items() if (hz := _rate_of(name, stage)) is not None}
        known = [hz for hz in at if hz <= arguments.rate]
        if known:
            costs[stage] = at[max(known)]
    total = 0.0
    for stage, cost in costs.items():
        load = arguments.rate * cost
        total += load
        n = max(1, math.ceil(load / FULL))
        if n > 1 and stage not in MANY:
            print(f"{stage:15} {load:6.2f} cores: TOO MUCH for its one process; add a host")
        else:
            print(f"{stage:15} {load:6.2f} cores in {n} {MANY.get(stage, 'process')}")
    print(f"{'all':15} {total:6.2f} cores busy: a server of {math.ceil(total / FULL)} cores or more")


def _rate_of(name: str, stage: str) -> float | None:
    """Return the rate of a figure of `bench_bookkeeping` for this stage; None if it is another one."""
    found = re.fullmatch(rf"bookkeeping/{re.escape(stage)} at (\d+) images/s", name)
    return float(found[1]) if found else None


if __name__ == "__main__":
    main()
