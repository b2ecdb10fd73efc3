"""An image of a data file, in the terminal or as a PNG."""

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401, its filters are found from now on
import numpy as np
import typer
from PIL import Image as Picture
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from tango_stddaq.errors import FileError


def show_image(file: Path, image: int, png: Path | None) -> None:
    """Show image number `image` of a file; a negative one counts from the end.

    Raises
    ------
    FileError
        If the file cannot be read, or has no such image.
    """
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
