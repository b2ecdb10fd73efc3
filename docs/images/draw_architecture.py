"""Draw the architecture picture: run `python docs/images/draw_architecture.py` after a change.

Writes `architecture.svg` and `architecture.png` beside this file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE: Final = Path(__file__).resolve().parent
WIDTH: Final = 17.5
HEIGHT: Final = 15.0
REGION_TOP: Final = 10.0
REGION_BOTTOM: Final = 2.75

PIXELS: Final = {"color": "#c2410c", "linewidth": 6.0, "linestyle": "solid"}
METADATA: Final = {"color": "#1d4ed8", "linewidth": 1.8, "linestyle": "solid"}
CONTROL: Final = {"color": "#374151", "linewidth": 1.5, "linestyle": (0, (5, 3))}

OUTSIDE: Final = ("#f3f4f6", "#6b7280")
STAGE: Final = ("#dbeafe", "#1e40af")
MEMORY: Final = ("#ffedd5", "#c2410c")
FILES: Final = ("#fef9c3", "#a16207")
TANGO: Final = ("#dcfce7", "#15803d")

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A box with a title and smaller lines below it; `x`, `y` is its lower left corner."""

    x: float
    y: float
    width: float
    height: float
    title: str
    lines: tuple[str, ...]
    colors: tuple[str, str]

    def at(self, across: float, up: float) -> Point:
        """Return the point that lies at these shares of width and height."""
        return (self.x + across * self.width, self.y + up * self.height)

    def draw(self, axes: Axes) -> None:
        """Draw it."""
        face, edge = self.colors
        axes.add_patch(
            FancyBboxPatch(
                (self.x, self.y), self.width, self.height, boxstyle="round,pad=0,rounding_size=0.16",
                facecolor=face, edgecolor=edge, linewidth=1.8, zorder=2,
            )
        )  # fmt: skip
        middle = self.x + self.width / 2
        top = self.y + self.height / 2 + 0.21 * len(self.lines)
        axes.text(middle, top, self.title, ha="center", va="center", size=17, weight="bold", zorder=4)
        for i, line in enumerate(self.lines):
            axes.text(
                middle, top - 0.5 - 0.4 * i, line, ha="center", va="center", size=13.5, zorder=4,
                color="#1f2937",
            )  # fmt: skip


DETECTOR: Final = Box(0.3, 10.6, 3.6, 1.6, "Detector", ("or stddaq simulate,", "stddaq replay"), OUTSIDE)
RECEIVER: Final = Box(
    0.3, 7.5, 3.6, 1.7, "UDP receiver(s)", ("StdDaqUdpReceiver", "up to 18 modules each"), STAGE
)
SYNC: Final = Box(0.3, 3.5, 3.6, 1.7, "Module sync", ("StdDaqModuleSync", "owns the image ring"), STAGE)
RING: Final = Box(
    6.7, 5.9, 4.2, 3.5, "Image ring",
    ("/dev/shm/<det>-image", "pixels, no header", "", "/dev/shm/<det>-image.index",
     "claim, generation, image id"), MEMORY,
)  # fmt: skip
DRIVER: Final = Box(
    6.9, 3.4, 3.8, 1.9, "Writer driver", ("StdDaqWriterDriver", "keeps the ledger"), STAGE
)
LIVE: Final = Box(13.6, 7.8, 3.6, 1.7, "Live stream(s)", ("StdDaqLiveStream", "with a preview"), STAGE)
WRITERS: Final = Box(
    13.6, 4.6, 3.6, 1.8, "File writers", ("StdDaqFileWriter", "one process per file"), STAGE
)
HDF5: Final = Box(
    13.2, 0.4, 4.0, 1.6, "HDF5 files", ("<prefix>0.h5, <prefix>1.h5, ..", "<prefix>master.h5"), FILES
)
VIEWERS: Final = Box(14.4, 10.8, 2.4, 1.2, "Viewers", ("any ZeroMQ client",), OUTSIDE)
CLIENTS: Final = Box(0.3, 13.2, 3.6, 1.5, "Tango clients", ("scripts, Jive, Taurus",), OUTSIDE)
FACADE: Final = Box(6.7, 13.1, 4.2, 1.7, "StdDaq", ("facade: one device", "for the whole system"), TANGO)
DATABASE: Final = Box(
    13.6, 13.1, 3.6, 1.7, "Tango database", ("embedded (demo, up)", "or the site's own"), TANGO
)
BOXES: Final = (
    DETECTOR, RECEIVER, SYNC, RING, DRIVER, LIVE, WRITERS, HDF5, VIEWERS, CLIENTS, FACADE, DATABASE,
)  # fmt: skip


def arrow(axes: Axes, style: dict, start: Point, end: Point, both: bool = False) -> None:
    """Draw a straight arrow."""
    head = 26 if style is PIXELS else 17
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="<|-|>" if both else "-|>", mutation_scale=head, shrinkA=0, shrinkB=0,
            zorder=3, joinstyle="miter", capstyle="butt", **style,
        )
    )  # fmt: skip


def elbow(axes: Axes, style: dict, *points: Point) -> None:
    """Draw an arrow along straight pieces; the last one has the head."""
    xs, ys = zip(*points[:-1], strict=True)
    axes.add_line(Line2D(xs, ys, zorder=3, **style))
    arrow(axes, style, points[-2], points[-1])


def label(axes: Axes, where: Point, text: str, style: dict, align: str = "center") -> None:
    """Write the name of a channel; it hides the line that it stands on."""
    axes.text(
        *where, text, ha=align, va="center", size=13.5, color=style["color"], zorder=5, linespacing=1.25,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5} if style is CONTROL else None,
    )  # fmt: skip


def draw_pixels(axes: Axes) -> None:
    """Draw the way of the pixels."""
    arrow(axes, PIXELS, DETECTOR.at(0.5, 0), RECEIVER.at(0.5, 1))
    label(axes, (2.3, 10.25), "UDP, start_udp_port + module", PIXELS, "left")
    arrow(axes, PIXELS, RECEIVER.at(1, 0.42), (RING.x, RECEIVER.at(1, 0.42)[1]))
    label(axes, (5.25, 8.95), "recvmmsg:\nthe kernel lays\neach packet in place", PIXELS)
    arrow(axes, PIXELS, (RING.at(1, 0)[0], 9.0), (LIVE.x, 9.0))
    label(axes, (12.35, 9.4), "checked copy", PIXELS)
    arrow(axes, PIXELS, (RING.at(1, 0)[0], 6.1), (WRITERS.x, 6.1))
    label(axes, (12.5, 6.65), "slot or chunk\nof slots", PIXELS)
    arrow(axes, PIXELS, WRITERS.at(0.5, 0), (WRITERS.at(0.5, 0)[0], HDF5.at(0, 1)[1]))
    label(axes, (15.2, 2.35), "direct chunk\nwrite", PIXELS, "right")
    arrow(axes, PIXELS, (15.6, LIVE.at(0, 1)[1]), (15.6, VIEWERS.y))
    label(axes, (15.85, 10.4), "TCP PUB\narray-1.0", PIXELS, "left")


def draw_metadata(axes: Axes) -> None:
    """Draw the way of the metadata."""
    arrow(axes, METADATA, (0.8, RECEIVER.y), (0.8, SYNC.at(0, 1)[1]))
    label(axes, (0.95, 6.35), "PUSH ipc <det>-sync\n64-byte frame headers", METADATA, "left")
    elbow(axes, METADATA, (3.5, SYNC.at(0, 1)[1]), (3.5, 5.65), (4.6, 5.65), (4.6, 6.4), (RING.x, 6.4))
    label(axes, (4.75, 6.85), "publishes\nin the index", METADATA, "left")
    arrow(axes, METADATA, (SYNC.at(1, 0)[0], 4.2), (DRIVER.x, 4.2))
    label(axes, (5.35, 4.75), "PUB ipc <det>-image\nImageMetadata", METADATA)
    bus = (5.4, 4.2), (5.4, 3.0), (11.4, 3.0), (11.4, 8.3), (LIVE.x, 8.3)
    elbow(axes, METADATA, *bus)
    axes.plot(*bus[0], marker="o", markersize=7, color=METADATA["color"], zorder=4)
    label(axes, (12.5, 7.85), "<det>-image", METADATA)
    arrow(axes, METADATA, (DRIVER.at(1, 0)[0], 5.0), (WRITERS.x, 5.0), both=True)
    label(axes, (12.55, 4.2), "WriterAction\nipc <det>-driver-<i>\nipc <det>-writer-<i>", METADATA)
    elbow(axes, METADATA, (8.8, DRIVER.y), (8.8, 1.2), HDF5.at(0, 0.5))
    label(axes, (10.7, 1.6), "checks them, writes the master", METADATA)


def draw_control(axes: Axes) -> None:
    """Draw who commands and asks whom."""
    arrow(axes, CONTROL, CLIENTS.at(1, 0.5), (FACADE.x, CLIENTS.at(1, 0.5)[1]), both=True)
    label(axes, (5.3, 14.5), "attributes, events", CONTROL)
    label(axes, (5.3, 13.45), "Start, Stop, Abort", CONTROL)
    arrow(axes, CONTROL, FACADE.at(0.5, 0), (FACADE.at(0.5, 0)[0], REGION_TOP))
    label(
        axes, (8.8, 11.6),
        "StartWriting, StopWriting, AbortWriting;\nstates, ledger, preview: read 5 times a second",
        CONTROL,
    )  # fmt: skip
    arrow(axes, CONTROL, DATABASE.at(0, 0.5), FACADE.at(1, 0.5))
    label(axes, (12.25, 14.35), "properties", CONTROL)
    arrow(axes, CONTROL, (14.0, DATABASE.y), (14.0, REGION_TOP))
    label(axes, (13.85, 12.55), "properties", CONTROL, "right")


def draw_legend(axes: Axes) -> None:
    """Say what the colours mean."""
    for i, (style, text) in enumerate(
        ((PIXELS, "pixels"), (METADATA, "metadata"), (CONTROL, "Tango: control and state"))
    ):
        y = 1.85 - 0.5 * i
        axes.add_line(Line2D((0.4, 1.5), (y, y), **style))
        axes.text(1.75, y, text, va="center", size=13.5)
    axes.text(0.4, 0.35, "<det> is detector_name of the configuration", va="center", size=13.5)


def draw() -> Figure:
    """Return the picture."""
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, HEIGHT)
    axes.axis("off")
    region = FancyBboxPatch(
        (0.1, REGION_BOTTOM), WIDTH - 0.2, REGION_TOP - REGION_BOTTOM, zorder=0,
        boxstyle="round,pad=0,rounding_size=0.2", facecolor="#f8fafc", edgecolor="#94a3b8",
    )  # fmt: skip
    axes.add_patch(region)
    axes.text(
        8.8, REGION_TOP - 0.3, "Tango device servers of the stages", ha="center", va="center", size=13.5,
        style="italic", color="#475569",
    )  # fmt: skip
    for box in BOXES:
        box.draw(axes)
    draw_pixels(axes)
    draw_metadata(axes)
    draw_control(axes)
    draw_legend(axes)
    return figure


def main() -> None:
    """Write both pictures."""
    mpl.rcParams["svg.hashsalt"] = "architecture"
    figure = draw()
    figure.savefig(HERE / "architecture.svg", metadata={"Date": None})
    figure.savefig(HERE / "architecture.png", dpi=72, metadata={"Software": None})


if __name__ == "__main__":
    main()
