"""`python -m benchmarks.model DETECTOR RATE`: the processes and cores that a rate needs.

The sum of the costs that `python -m benchmarks chain` has left in results.json. A stage that is one
process needs `rate * cost` of a core; receivers, writers and compressors are as many as it takes to stay
below `FULL` each.
"""

import argparse
import json
import math
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
    costs = {
        entry["name"].removeprefix(start): entry["value"] * 1e-6
        for entry in json.loads(arguments.results.read_text())["results"]
        if entry["name"].startswith(start)
    }
    if not costs:
        parser.error(f"{arguments.results} has no figure {start}...: run python -m benchmarks chain")
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


if __name__ == "__main__":
    main()
