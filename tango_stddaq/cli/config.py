"""`stddaq config`: check a configuration file, print its JSON schema."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tango_stddaq import config as config_module
from tango_stddaq.detectors.registry import DETECTORS, detector_of

app = typer.Typer(help="Check a configuration file, print its schema.", no_args_is_help=True)


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration file."""
    typer.echo(json.dumps(config_module.schema(), indent=2))


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Configuration file.")]) -> None:
    """Check FILE; print what follows from it. Ends with 1 if it cannot be used."""
    config = config_module.load(file)
    if config.detector_type in DETECTORS:
        detector_of(config)
    sizes = config.sizes
    table = Table(title=f"{file}: good", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    for name, value in (
        ("detector", f"{config.detector_name} ({config.detector_type})"),
        ("image", f"{sizes.height} x {sizes.width} {sizes.dtype.name.lower()} (height x width)"),
        ("bytes of an image", f"{sizes.slot_bytes:,}"),
        ("slots of the ring", f"{sizes.n_slots:,}"),
        ("shared memory", f"{sizes.segment_bytes / 2**30:.2f} GiB"),
        ("images in a chunk", f"{sizes.images_per_chunk}"),
        ("UDP ports", f"{config.start_udp_port} to {config.start_udp_port + config.n_modules - 1}"),
        ("writers", f"{config.number_of_writers}"),
        ("live streams", ", ".join(config.live_stream_configs) or "none"),
    ):
        table.add_row(name, value)
    Console().print(table)
    if config.module_positions and len(config.module_positions) < config.n_modules:
        missing = sorted(set(range(config.n_modules)) - {int(key) for key in config.module_positions})
        typer.secho(
            f"note: module_positions leaves out modules {missing}: their pixels stay 0", fg="yellow"
        )
    for key in config.unknown_keys:
        typer.secho(f"note: key {key!r} is not known here; it is kept and not used", fg="yellow")
