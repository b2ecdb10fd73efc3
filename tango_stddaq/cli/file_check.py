"""What `stddaq file check` says of data files."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tango_stddaq.io import checking_files
from tango_stddaq.io.stored_images import StoredFile, blocks_of
from tango_stddaq.processing.acquisition import ranges_of

_MAX_GAPS = 10


def are_good(files: list[Path]) -> bool:
    """Print what masters, writers' files and Meta files hold; returns whether all is well."""
    is_good = True
    masters, writers = [], {}
    for path in files:
        master = checking_files.master_of(path)
        rows = checking_files.metadata_rows_of(path)
        if master is not None:
            masters.append(master)
            writers.update(dict.fromkeys(master.sources))
        elif rows is not None:
            typer.echo(f"{path.name}: {rows[0]} rows of metadata, closed: {_closed(rows[1])}")
            is_good &= rows[1]
        else:
            writers[path.resolve()] = None
    n_images: dict[Path, int] = {}
    if writers:
        is_good &= _check_writers(list(writers), n_images)
    for master in masters:
        expected = sum(n_images[source] for source in master.sources)
        typer.echo(
            f"{master.path.name}: shows {master.n_images} of {expected} images"
            + ("" if master.is_final else "; the acquisition is under way, or was killed")
        )
        is_good &= master.is_final and {master.n_images, master.n_ids} == {expected}
    return is_good


def _closed(is_closed: bool) -> str:
    return "yes" if is_closed else "NO: its writer was killed, or is at work"


def _check_writers(paths: list[Path], n_images_of: dict[Path, int]) -> bool:
    """Print what writers' files hold and note how many images; returns whether all is well."""
    table = Table()
    for name in ("file", "images", "ids", "incomplete", "lost", "closed"):
        table.add_column(name)
    with ExitStack() as stack:
        opened = [stack.enter_context(StoredFile(path)) for path in paths]
        for file in opened:
            n_images_of[file.path] = file.n_images
            rows = file.metadata[: file.n_images]
            ids = rows["image_id"]
            lost = file.lost()
            n_lost = int((lost["last_id"] - lost["first_id"] + np.uint64(1)).sum()) if len(lost) else 0
            table.add_row(
                file.path.name,
                str(file.n_images),
                f"{ids.min()} to {ids.max()}" if len(ids) else "-",
                str(int((rows["status"] != 1).sum())),
                str(n_lost),
                _closed(file.closed),
            )
        Console().print(table)
        n_images, gaps, n_double = _account(opened)
    gap_text = ", ".join(f"{first}-{last}" for first, last in gaps[:_MAX_GAPS]) or "none"
    typer.echo(f"{n_images} images in all, {n_double} ids twice, missing ids: {gap_text}")
    return not n_double and all(file.closed for file in opened)


def _account(files: list[StoredFile]) -> tuple[int, list[tuple[int, int]], int]:
    """Return how many images there are, the gaps in their ids, and how many ids are there twice."""
    n_images = n_double = 0
    gaps: list[tuple[int, int]] = []
    previous: int | None = None
    for block in blocks_of(files):
        n_images += len(block.ids)
        unique = np.unique(block.ids)
        n_double += len(block.ids) - len(unique)
        for first, last in ranges_of(unique):
            if previous is not None and first <= previous:
                n_double += 1
            elif previous is not None and first > previous + 1:
                gaps.append((previous + 1, first - 1))
            previous = last
    return n_images, gaps, n_double
