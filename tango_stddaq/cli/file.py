"""`stddaq file`: verify data files, show what is in them, join writers' files by hand."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import h5py
import hdf5plugin  # noqa: F401, its filters are found from now on
import numpy as np
import typer
from PIL import Image as Picture
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table

from tango_stddaq.errors import FileError
from tango_stddaq.io import checking_files, joining_files
from tango_stddaq.io.stored_images import StoredFile, blocks_of
from tango_stddaq.processing.acquisition import ranges_of

app = typer.Typer(help="Check, show and join data files.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of writers.")]
_MAX_GAPS = 10


@app.command()
def check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of an acquisition, or its master.")
    ],
) -> None:
    """Verify counts and ids of data files; ends with 1 if something is wrong with one of them.

    A master brings the writers' files that it shows.
    """
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
    if not is_good:
        raise typer.Exit(1)


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


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="Master file or a writer's file.")],
    image: Annotated[int, typer.Option("--image", "-i", help="Which one; -1 is the last.")] = -1,
    png: Annotated[Path | None, typer.Option(help="Write it to this PNG instead.")] = None,
) -> None:
    """Show an image of FILE in the terminal, or write it to a PNG."""
    try:
        with h5py.File(file, "r", locking=False) as opened:
            data = _images_of(opened)
            n_images = data.shape[0]
            if not -n_images <= image < n_images:
                raise FileError(f"{file}: has {n_images} images; there is no number {image}")
            pixels = data[image % n_images]
    except OSError as error:
        raise FileError(f"{file}: cannot be read: {error}") from error
    typer.echo(
        f"{file}: image {image % n_images} of {n_images}, {pixels.shape[0]} x {pixels.shape[1]} "
        f"{pixels.dtype}, {np.nanmin(pixels)} to {np.nanmax(pixels)}"
    )
    picture = Picture.fromarray(_gray(pixels))
    if png is not None:
        picture.save(png)
        return
    console = Console()
    width = min(console.width, 100, picture.width)
    height = max(2, round(picture.height * width / picture.width)) // 2 * 2
    small = np.asarray(picture.resize((width, height)))
    console.print(_half_blocks(small))


def _images_of(file: Any) -> Any:
    if "entry/data/data" in file:
        return file["entry/data/data"]
    for name in file:
        if isinstance(file[name], h5py.Group) and "data" in file[name]:
            return file[f"{name}/data"]
    raise FileError(f"{file.filename}: has no images")


def _gray(pixels: np.ndarray) -> np.ndarray:
    """Scale to 8 bits between the 1st and the 99.5th percentile; a logarithm shows weak and strong."""
    values = np.nan_to_num(pixels.astype(np.float64))
    low, high = np.percentile(values, (1, 99.5))
    scaled = np.log1p(np.clip(values - low, 0, max(high - low, 1)))
    return (255 * scaled / max(scaled.max(), 1e-9)).astype(np.uint8)


def _half_blocks(gray: np.ndarray) -> Segments:
    """Two rows of pixels in a line of text: the upper in the colour of the character, one below it."""
    segments = []
    for upper, lower in zip(gray[::2].tolist(), gray[1::2].tolist(), strict=True):
        for a, b in zip(upper, lower, strict=True):
            segments.append(Segment("▀", Style(color=f"rgb({a},{a},{a})", bgcolor=f"rgb({b},{b},{b})")))
        segments.append(Segment.line())
    return Segments(segments)


@app.command()
def join(
    files: Files,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Master file to write; must not exist.")
    ],
) -> None:
    """Join writers' files to one master file in the order of image ids; also those of killed writers."""
    n_images = joining_files.join(files, output)
    typer.echo(f"{output}: {n_images} images of {len(files)} files")
