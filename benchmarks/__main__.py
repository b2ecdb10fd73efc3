"""`python -m benchmarks [NAME ...]`: run the benchmarks, show a table, write results.json."""

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.result import Result

HERE = Path(__file__).parent
BENCHMARKS = {
    path.stem.removeprefix("bench_"): f"benchmarks.{path.stem}" for path in HERE.glob("bench_*.py")
}


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(sorted(BENCHMARKS))}; default all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that they work")
    parser.add_argument("--output", type=Path, default=HERE / "results.json", help="where results go")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(sorted(BENCHMARKS))}")
    console, results, failures = Console(), [], []
    for name in arguments.names or sorted(BENCHMARKS):
        with console.status(f"{name} ..."):
            start = time.monotonic()
            try:
                run: Callable[[bool], list[Result]] = importlib.import_module(BENCHMARKS[name]).run
                found = run(arguments.quick)
            except Exception as error:  # one that cannot run here shall not take the others along
                failures.append(f"{name}: {type(error).__name__}: {error}")
                console.print(f"[red]{failures[-1]}[/]")
                continue
        results += found
        console.print(_table(f"{name} ({time.monotonic() - start:.0f} s)", found))
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()}
    arguments.output.write_text(
        json.dumps({"machine": machine, "results": [r.to_dict() for r in results]}, indent=1) + "\n"
    )
    console.print(f"{len(results)} figures in {arguments.output}")
    return bool(failures)


def _table(title: str, results: list[Result]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "unit", "limit", "ratio", "of what", "note"):
        table.add_column(column, justify="right" if column in ("value", "limit", "ratio") else "left")
    for result in results:
        table.add_row(
            result.name,
            _number(result.value),
            result.unit,
            _number(result.limit),
            "" if result.ratio is None else f"{result.ratio:.2f}",
            result.limit_name,
            result.note,
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
