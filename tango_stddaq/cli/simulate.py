"""`stddaq simulate` and `stddaq replay`: send packets as a detector does."""

import logging
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from tango_stddaq import config as config_module
from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import logs
from tango_stddaq.sim.course import Course
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.pattern import PacketPattern

_log: Final = logging.getLogger(__name__)
_STANDARD_ERROR: Final = 2
N_CONNECTIONS: Final = 4
"""A camera receiver opens so many, if not told otherwise."""
_NO_PACKETS: Final = (
    "a camera sends whole images: lost, dead or damaged packets, --cycle and --record are for UDP "
    "detectors"
)

Rate = Annotated[float, typer.Option(min=0, help="Images per second; 0 for as fast as possible.")]
Host = Annotated[str, typer.Option(help="Where the receivers run.")]
DropEvery = Annotated[int, typer.Option(min=0, help="Leave out every n-th packet; 0 for none.")]

Drop = Annotated[float, typer.Option(min=0, max=1, help="Fraction of packets that are lost.")]
Duplicate = Annotated[float, typer.Option(min=0, max=1, help="Fraction of packets that come twice.")]
Reorder = Annotated[
    float, typer.Option(min=0, max=1, help="Fraction of packets that change places with the next.")
]
Corrupt = Annotated[
    float, typer.Option(min=0, max=1, help="Fraction of packets that have a broken header.")
]
Truncate = Annotated[float, typer.Option(min=0, max=1, help="Fraction of packets that are cut to half.")]


def simulate(
    config: Annotated[Path, typer.Argument(help="JSON configuration file of the detector to play.")],
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="Images to send.")] = 200,
    rate: Rate = 100.0,
    first_id: Annotated[int, typer.Option(min=0, max=2**62, help="Image id of the first one.")] = 1,
    host: Host = "127.0.0.1",
    cycle: Annotated[
        int,
        typer.Option(
            min=0,
            help="Make the packets of so many images in advance and send them again and again under "
            "new ids, as fast as the system can; 0 for a picture of its own for every image.",
        ),
    ] = 0,
    gso: Annotated[
        bool, typer.Option(help="With --cycle: let the kernel cut packets out of large messages.")
    ] = True,
    drop_every: DropEvery = 0,
    drop_pattern: Annotated[
        list[str] | None,
        typer.Option(
            help="Packets that are lost, as IMAGES:MODULES:PACKETS: `5:*:0-3` packets 0 to 3 of image "
            "5, `/10:2:*` every tenth image of module 2; repeat for more."
        ),
    ] = None,
    drop: Drop = 0.0,
    duplicate: Duplicate = 0.0,
    reorder: Reorder = 0.0,
    corrupt: Corrupt = 0.0,
    truncate: Truncate = 0.0,
    dead_module: Annotated[
        list[int] | None, typer.Option(help="A module that sends nothing; repeat for more.")
    ] = None,
    dead_after: Annotated[
        int, typer.Option(min=0, help="--dead-module falls silent after so many images.")
    ] = 0,
    pause_after: Annotated[
        int, typer.Option(min=0, help="Pause once after so many images; 0 for no pause.")
    ] = 0,
    pause: Annotated[float, typer.Option(min=0, max=3600, help="Seconds of that pause.")] = 1.0,
    restart_after: Annotated[
        int, typer.Option(min=0, help="After so many images count from --first-id again; 0 for never.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same faults.")] = 1,
    record: Annotated[
        Path | None, typer.Option(help="Write the packets to this directory, for `stddaq replay`.")
    ] = None,
) -> None:
    """Send the packets of a picture that a person recognises; print what was sent as JSON."""
    # Compiled loops: other commands start in half the time without.
    from tango_stddaq.sim.detector import SimulatedDetector, report  # noqa: PLC0415

    loaded = _load(config, "simulate")
    faults = Faults(
        drop_every=drop_every,
        drop=drop,
        duplicate=duplicate,
        corrupt=corrupt,
        truncate=truncate,
        reorder=reorder,
        drop_patterns=tuple(PacketPattern.parse(text) for text in drop_pattern or ()),
        dead_modules=frozenset(dead_module or ()),
        dead_after=dead_after,
        seed=seed,
    )
    course = Course(pause_after, pause, restart_after)
    if loaded.detector_type in CAMERAS:
        if faults.any or cycle or record is not None:
            raise ConfigError(f"{loaded.detector_type}: {_NO_PACKETS}")
        _simulate_camera(loaded, images, rate, first_id, course)
        return
    detector = SimulatedDetector(loaded, host, cycle, gso)
    detector.detector.select(sorted(faults.dead_modules))
    if record is not None:
        if faults.any or course != Course(pause_s=pause):
            raise ConfigError(
                "--record: takes no faults, pause or restart; give them to `stddaq replay`"
            )
        detector.record(record, images, first_id)
        typer.echo(report(images, Faults()))
        return
    count = _Count(images, rate, f"UDP of {host}")
    try:
        detector.run(images, rate, first_id, faults, count.add, course)
    finally:
        count.end()
        typer.echo(report(count.n_sent, faults, detector.sent))


def _simulate_camera(config: DaqConfig, images: int, rate: float, first_id: int, course: Course) -> None:
    """Send whole images once a receiver has connected."""
    from tango_stddaq.sim.camera import SimulatedCamera  # noqa: PLC0415
    from tango_stddaq.sim.detector import report  # noqa: PLC0415

    with SimulatedCamera.of(config) as camera:
        camera.wait_for_connections(N_CONNECTIONS)
        count = _Count(images, rate, f"receivers at {camera.endpoint}")
        try:
            for first, n, pause_s in course.stretches(images, first_id):
                time.sleep(pause_s)
                camera.run(n, rate, first, on_image=count.add)
        finally:
            count.end()
            typer.echo(report(count.n_sent, Faults()))


def replay(
    directory: Annotated[Path, typer.Argument(help="Directory with one dump per UDP port.")],
    config: Annotated[Path, typer.Option(help="JSON configuration file of the recording.")],
    rate: Rate = 50.0,
    host: Host = "127.0.0.1",
    drop_every: DropEvery = 0,
    drop: Drop = 0.0,
    duplicate: Duplicate = 0.0,
    reorder: Reorder = 0.0,
    corrupt: Corrupt = 0.0,
    truncate: Truncate = 0.0,
) -> None:
    """Send recorded packets (PORT.dat or PORT.dat.xz) again; print what was sent as JSON."""
    from tango_stddaq.sim import replay as recordings  # noqa: PLC0415
    from tango_stddaq.sim.detector import report  # noqa: PLC0415

    loaded = _load(config, "replay")
    recording = recordings.load(directory, loaded)
    faults = Faults(drop_every, drop, duplicate, corrupt, truncate, reorder)
    count = _Count(len(recording.image_ids), rate, f"UDP of {host}")
    try:
        recordings.replay(recording, loaded, rate, host, faults, count.add)
    finally:
        count.end()
        typer.echo(report(count.n_sent, faults))


def _load(path: Path, service: str) -> DaqConfig:
    """Read the configuration and set up the log as it says.

    The log goes to standard error: standard output is one line of JSON, for programs.
    """
    config = config_module.load(path)
    logs.configure(service, config.log_level, _STANDARD_ERROR)
    logs.note_unknown_keys(config.unknown_keys)
    return config


class _Count:
    """Counts what is sent, so that also who is told to end says how far it came.

    Parameters
    ----------
    where
        To whom it is sent.
    """

    def __init__(self, n_images: int, rate_hz: float, where: str) -> None:
        self.n_sent = 0
        self._n_images = n_images
        speed = f"at {rate_hz:g} images/s" if rate_hz else "as fast as possible"
        _log.info("[event] start of %d images to %s, %s", n_images, where, speed)

    def add(self, _image_id: int) -> None:
        """Count one more."""
        self.n_sent += 1

    def end(self) -> None:
        """Say how many there were."""
        _log.info("[event] end after %d of %d images", self.n_sent, self._n_images)
