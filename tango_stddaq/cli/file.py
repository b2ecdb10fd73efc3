"""`stddaq file`: verify data files, show what is in them, join writers' files by hand."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Check, show and join data files.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of writers.")]


@app.command()
def check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of an acquisition, or its master.")
    ],
) -> None:
    """Verify counts and ids of data files; ends with 1 if something is wrong with one of them.

    A master brings the writers' files that it shows.
    """
    from tango_stddaq.cli.file_check import are_good  # noqa: PLC0415

    if not are_good(files):
        raise typer.Exit(1)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="Master file or a writer's file.")],
    image: Annotated[int, typer.Option("--image", "-i", help="Which one; -1 is the last.")] = -1,
    png: Annotated[Path | None, typer.Option(help="Write it to this PNG instead.")] = None,
) -> None:
    """Show an image of FILE in the terminal, or write it to a PNG."""
    from tango_stddaq.cli.file_picture import show_image  # noqa: PLC0415

    show_image(file, image, png)


@app.command()
def join(
    files: Files,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Master file to write; must not exist.")
    ],
) -> None:
    """Join writers' files to one master file in the order of image ids; also those of killed writers."""
    from tango_stddaq.io import joining_files  # noqa: PLC0415

    n_images = joining_files.join(files, output)
    typer.echo(f"{output}: {n_images} images of {len(files)} files")
