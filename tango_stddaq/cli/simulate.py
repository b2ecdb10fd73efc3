"""`stddaq simulate` and `stddaq replay`: send packets as a detector does."""

from pathlib import Path
from typing import Annotated, Final

import typer

from tango_stddaq import config as config_module
from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.sim import replay as replay_module
from tango_stddaq.sim.camera import SimulatedCamera
from tango_stddaq.sim.detector import SimulatedDetector, report
from tango_stddaq.sim.faults import Faults

N_CONNECTIONS: Final = 4
"""A camera receiver opens so many, if not told otherwise."""

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
    drop_every: DropEvery = 0,
    drop: Drop = 0.0,
    duplicate: Duplicate = 0.0,
    reorder: Reorder = 0.0,
    corrupt: Corrupt = 0.0,
    truncate: Truncate = 0.0,
    dead_module: Annotated[
        list[int] | None, typer.Option(help="A module that sends nothing; repeat for more.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same faults.")] = 1,
    record: Annotated[
        Path | None, typer.Option(help="Write the packets to this directory, for `stddaq replay`.")
    ] = None,
) -> None:
    """Send the packets of a picture that a person recognises; print what was sent as JSON."""
    loaded = config_module.load(config)
    if loaded.detector_type in CAMERAS:
        _simulate_camera(loaded, images, rate, first_id)
        return
    if record is not None:
        SimulatedDetector(loaded, host).record(record, images, first_id)
        typer.echo(report(images, Faults()))
        return
    faults = Faults(
        drop_every=drop_every,
        drop=drop,
        duplicate=duplicate,
        corrupt=corrupt,
        truncate=truncate,
        reorder=reorder,
        dead_modules=frozenset(dead_module or ()),
        seed=seed,
    )
    SimulatedDetector(loaded, host).run(images, rate, first_id, faults)
    typer.echo(report(images, faults))


def _simulate_camera(config: DaqConfig, images: int, rate: float, first_id: int) -> None:
    """Send whole images once a receiver has connected."""
    with SimulatedCamera.of(config) as camera:
        camera.wait_for_connections(N_CONNECTIONS)
        camera.run(images, rate, first_id)
    typer.echo(report(images, Faults()))


def replay(
    directory: Annotated[Path, typer.Argument(help="Directory with one dump per UDP port.")],
    config: Annotated[Path, typer.Option(help="JSON configuration file of the recording.")],
    rate: Rate = 50.0,
    host: Host = "127.0.0.1",
    drop_every: DropEvery = 0,
) -> None:
    """Send recorded packets (PORT.dat or PORT.dat.xz) again; print what was sent as JSON."""
    loaded = config_module.load(config)
    recording = replay_module.load(directory, loaded)
    faults = replay_module.replay(recording, loaded, rate, host, Faults(drop_every))
    typer.echo(report(len(recording.image_ids), faults))
