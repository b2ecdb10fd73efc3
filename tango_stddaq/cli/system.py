"""`stddaq demo` and `stddaq up`: a whole system on this machine."""

import json
import os
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tango_stddaq import config as config_module
from tango_stddaq.cli.ending import ENDED
from tango_stddaq.cli.rest import REST_PORT, WEBSOCKET_PORT, RestPort, WebSocketPort, require_extra
from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.errors import ConfigError, FileError
from tango_stddaq.processing.hosts import check_host
from tango_stddaq.sim import demo_config

if TYPE_CHECKING:  # Tango is loaded only by the commands that speak it
    from tango_stddaq.devices.system import System


class SimulatedDetectors(StrEnum):
    """What `stddaq demo` can play."""

    EIGER = "eiger"
    GIGAFROST = "gigafrost"
    JUNGFRAU = "jungfrau"
    PCO = "pco"


class Compressions(StrEnum):
    """How `stddaq demo` can store its images."""

    NONE = "none"
    BLOSC2 = "blosc2"
    H5BITSHUFFLE_LZ4 = "h5bitshuffle_lz4"


def demo(
    detector: Annotated[
        SimulatedDetectors, typer.Option(help="The detector to simulate.")
    ] = SimulatedDetectors.EIGER,
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="Images to take.")] = 200,
    rate: Annotated[float, typer.Option(min=0.1, help="Images per second.")] = 100.0,
    writers: Annotated[int, typer.Option(min=1, max=16, help="File writers.")] = 2,
    bit_depth: Annotated[
        int, typer.Option(help="Bits of a pixel: 8, 16 or 32, as the detector has them.")
    ] = 16,
    drop_every: Annotated[
        int, typer.Option(min=0, help="Lose every n-th packet on the way, to see what happens.")
    ] = 0,
    compression: Annotated[
        Compressions, typer.Option(help="Compress the images on their way to the files.")
    ] = Compressions.NONE,
    output: Annotated[Path, typer.Option(help="Directory of the files.")] = Path("demo-output"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON last, nothing else on stdout.")
    ] = False,
) -> None:
    """Take images of a simulated detector: all servers, HDF5 files and a picture."""
    from tango_stddaq.cli.demo import Demo  # noqa: PLC0415
    from tango_stddaq.control.plan import plan  # noqa: PLC0415
    from tango_stddaq.devices.system import System  # noqa: PLC0415

    if drop_every and detector is SimulatedDetectors.PCO:
        raise ConfigError("--drop-every: a camera sends no packets that could be lost")
    output = output.resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"--output {output}: cannot be created: {error.strerror}") from error
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    config_path = output / "demo.json"
    name = f"DEMO-{os.getpid()}"
    data = demo_config.build(detector.value, name, bit_depth, writers, compression.value)
    config = config_module.from_dict(data, "demo")
    config_path.write_text(json.dumps(data, indent=2) + "\n")
    console = Console(stderr=as_json)
    system = System(config, plan(config, config_path, (str(output),)), output / "logs")
    result = Demo(console, system, output, f"demo_{stamp}_", config_path).run(images, rate, drop_every)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
    if result.complete + result.incomplete != images or (result.incomplete and not drop_every):
        raise typer.Exit(1)


def up(
    config: Annotated[Path, typer.Argument(help="JSON configuration file.")],
    tango_host: Annotated[
        str,
        typer.Option(help="HOST:PORT of a Tango database to register in; else an embedded one."),
    ] = "",
    output_root: Annotated[
        list[Path] | None,
        typer.Option(help="Directory below which files may be written; repeat for more. None: any."),
    ] = None,
    log_dir: Annotated[Path, typer.Option(help="Directory of the servers' logs.")] = Path("logs"),
    host: Annotated[
        str, typer.Option(help="Which of `hosts` in CONFIG this machine is: starts what belongs there.")
    ] = "",
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Add a device that plays the detector, ready to start.")
    ] = False,
    rest: Annotated[
        bool, typer.Option("--rest", help="Add the service for REST and WebSocket clients.")
    ] = False,
    rest_port: RestPort = REST_PORT,
    websocket_port: WebSocketPort = WEBSOCKET_PORT,
) -> None:
    """Keep the system of CONFIG running for your own clients until Ctrl-C or TERM."""
    from tango_stddaq.control.plan import plan  # noqa: PLC0415
    from tango_stddaq.devices.system import System  # noqa: PLC0415

    if rest:
        require_extra()
    config = config.resolve()
    loaded = config_module.load(config)
    _check_hosts(loaded, host, tango_host)
    missing = [str(root) for root in output_root or [] if not root.is_dir()]
    if missing:
        raise ConfigError(f"--output-root {', '.join(missing)}: is no directory; create it first")
    roots = tuple(str(root.resolve()) for root in output_root or [])
    console = Console()
    system_plan = plan(loaded, config, roots, simulate)
    with (
        console.status("starting") as status,
        System(
            loaded,
            system_plan,
            log_dir.resolve(),
            tango_host,
            on_progress=lambda what: status.update(f"starting {what}"),
            host=host,
        ) as system,
    ):
        status.stop()
        try:
            console.print(_overview(system), soft_wrap=True, highlight=False)
            console.print(f"Facade: [bold]tango://{system.tango_host}/{system_plan.facade.device}[/]")
            console.print(f"Clients: export TANGO_HOST={system.tango_host}")
            console.print(_input(loaded))
            if system_plan.simulator is not None:
                hint = _simulator_hint(system_plan.simulator.device)
                console.print(hint, soft_wrap=True, highlight=False)
            if rest:
                roots_given = [part for root in roots for part in ("--output-root", root)]
                ports = ("--port", str(rest_port), "--websocket-port", str(websocket_port))
                system.run_beside("rest", ["rest", system_plan.facade.device, *ports, *roots_given])
                console.print(f"REST: http://127.0.0.1:{rest_port}/docs")
                console.print(f"WebSocket: ws://127.0.0.1:{websocket_port}")
            console.print(f"Logs: {system.log_dir}", soft_wrap=True)
            console.print("Ctrl-C ends it.")
            while True:
                system.check_alive()
                time.sleep(1)
        except ENDED:
            console.print("stopping")


def _check_hosts(config: DaqConfig, host: str, tango_host: str) -> None:
    """Several hosts need a name for this one, and a Tango database that all of them reach."""
    if host or config.hosts:
        check_host(config, host)
        if not tango_host:
            raise ConfigError("--tango-host: is missing; the hosts need one Tango database: HOST:PORT")


def _input(config: DaqConfig) -> str:
    if config.detector_type in CAMERAS:
        return f"Images: from {config.camera_address} ({config.camera_protocol})"
    last = config.start_udp_port + config.n_modules - 1
    ports = f"ports {config.start_udp_port} to {last}" if config.n_modules > 1 else f"port {last}"
    return f"Packets: UDP {ports}"


def _simulator_hint(device: str) -> str:
    return f"Simulator: tango.DeviceProxy('{device}').Start() sends images, .Stop() ends it"


def _overview(system: "System") -> str:
    """Return a line a device; never cut, so that names can be copied from a narrow terminal."""
    rows = [("device", "class", "state", "address")]
    for server in system.servers:
        proxy = system.device(server)
        address = proxy.address if server.tango_class == "StdDaqLiveStream" else ""
        rows.append((server.device, server.tango_class, proxy.state().name, address))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]
        ).rstrip()
        for row in rows
    )
