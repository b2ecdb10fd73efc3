"""`stddaq view`: a live stream in the terminal, or as a picture file."""

import time
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from PIL import Image as PilImage
from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from tango_stddaq.cli.ending import ENDED
from tango_stddaq.errors import StdDaqError
from tango_stddaq.io.stream_client import StreamClient, StreamImage
from tango_stddaq.processing.preview import shrink, to_gray
from tango_stddaq.stats import Rate

_SHOWN_HZ: Final = 10.0
_WAIT_S: Final = 0.2
_TEXT_ROWS: Final = 3
_LEVELS: Final = 32
"""Gray levels on the screen: more are not seen, and each pair is a style."""


def view(
    address: Annotated[
        str, typer.Argument(help="Of a live stream, array-1.0 or bsread: tcp://HOST:PORT.")
    ],
    png: Annotated[
        Path | None, typer.Option(help="Save images to this file instead, each over the one before.")
    ] = None,
    images: Annotated[
        int, typer.Option("--images", "-n", min=0, help="End after so many images; 0 for never.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option(min=0, help="Give up after so many seconds without an image; 0 for never.")
    ] = 0.0,
) -> None:
    """Look at a live stream in the terminal, or save it as a picture; ends by Ctrl-C or TERM."""
    with StreamClient(address) as client:
        try:
            if png is not None:
                _save(client, png, images or 1, timeout)
            else:
                _show(client, address, images, timeout)
        except ENDED:
            pass


def _save(client: StreamClient, path: Path, n_images: int, timeout_s: float) -> None:
    for _ in range(n_images):
        image = _next(client, timeout_s)
        part = path.with_name(f".{path.name}.part")
        PilImage.fromarray(to_gray(image.pixels)).save(part, "PNG")
        part.replace(path)  # nobody ever sees half a picture
        typer.echo(f"{path}: {_facts(image)}")


def _next(client: StreamClient, timeout_s: float) -> StreamImage:
    deadline_s = time.monotonic() + timeout_s
    while True:
        image = client.newest(_WAIT_S)
        if image is not None:
            return image
        if timeout_s and time.monotonic() > deadline_s:
            raise StdDaqError(f"no image within {timeout_s:g} s{_fault(client)}")


def _show(client: StreamClient, address: str, n_images: int, timeout_s: float) -> None:
    console, rate, n_shown = Console(), Rate(), 0
    last_s = time.monotonic()
    waiting = Text(f"waiting for images of {address} ... (Ctrl-C ends)")
    with Live(waiting, console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not n_images or n_shown < n_images:
            image = client.newest(_WAIT_S)
            now = time.monotonic()
            hz = rate.update(now, client.n_received)
            if image is None:
                if timeout_s and now - last_s > timeout_s:
                    raise StdDaqError(f"no image within {timeout_s:g} s{_fault(client)}")
                continue
            last_s, n_shown = now, n_shown + 1
            picture = screen(image.pixels, console.width, console.height - _TEXT_ROWS)
            facts = Text(f"{_facts(image)}  {hz:.1f} Hz  {image.protocol}{_fault(client)}")
            live.update(Group(picture, facts), refresh=True)
            time.sleep(max(0.0, now + 1 / _SHOWN_HZ - time.monotonic()))


def _facts(image: StreamImage) -> str:
    pixels = image.pixels
    size = f"{pixels.shape[1]} x {pixels.shape[0]} {pixels.dtype.name}"
    return f"image {image.image_id}  {size}  min {pixels.min():g} max {pixels.max():g}"


def _fault(client: StreamClient) -> str:
    return f"  unreadable: {client.n_malformed} ({client.last_fault})" if client.n_malformed else ""


def screen(pixels: np.ndarray, columns: int, rows: int) -> Segments:
    """Return an image as half blocks, two pixels a character, with the contrast set by itself.

    Parameters
    ----------
    pixels
        (height, width), any numeric type.
    columns, rows
        Characters there is room for.
    """
    height, width = pixels.shape
    k = max(1, -(-width // max(columns, 1)), -(-height // max(2 * rows, 2)))
    gray = to_gray(shrink(pixels, k))
    levels = gray // (256 // _LEVELS)
    if len(levels) % 2:
        levels = np.vstack([levels, np.zeros_like(levels[:1])])
    segments: list[Segment] = []
    for upper, lower in zip(levels[::2].tolist(), levels[1::2].tolist(), strict=True):
        segments += [Segment("▀", _style(*pair)) for pair in zip(upper, lower, strict=True)]
        segments.append(Segment.line())
    return Segments(segments)


@lru_cache(maxsize=_LEVELS * _LEVELS)
def _style(upper: int, lower: int) -> Style:
    light, dark = (level * 255 // (_LEVELS - 1) for level in (upper, lower))
    return Style(color=f"rgb({light},{light},{light})", bgcolor=f"rgb({dark},{dark},{dark})")
