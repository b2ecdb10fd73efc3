"""Which device servers a configuration needs: names, classes and properties, as plain data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.stages.converting import module_label

MODULES_PER_RECEIVER: Final = 18
"""One receiver process serves so many modules; 72 half modules of an Eiger 9M need four."""
DEFAULT_STREAM: Final = "tcp://127.0.0.1:*"
"""Where no live stream is configured there is one all the same, for the preview."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One device server with one device.

    Attributes
    ----------
    tango_class
        Name of the Tango class; the server executable has the same name.
    module
        Python module that runs the server.
    """

    tango_class: str
    module: str
    instance: str
    device: str
    properties: dict[str, list[str]] = field(default_factory=dict)

    @property
    def server(self) -> str:
        """`executable/instance`, as the Tango database spells it."""
        return f"{self.tango_class}/{self.instance}"


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """All servers, in the order in which they start; the facade comes last.

    Attributes
    ----------
    simulator
        Plays the detector, where there is none. The facade does not know it: a detector is no part of
        the system, and the system works without.
    """

    stages: tuple[ServerPlan, ...]
    facade: ServerPlan
    simulator: ServerPlan | None = None

    @property
    def servers(self) -> tuple[ServerPlan, ...]:
        """Stages, the facade, the simulator."""
        return (*self.stages, self.facade, *((self.simulator,) if self.simulator else ()))


def plan(
    config: DaqConfig, config_file: Path, output_roots: tuple[str, ...] = (), simulate: bool = False
) -> SystemPlan:
    """Lay out the servers of a configuration.

    Parameters
    ----------
    config_file
        Path that the servers read the configuration from.
    output_roots
        Directories below which files may be written; none means anywhere.
    simulate
        Add a simulator of the detector.

    Raises
    ------
    ConfigError
        If the detector is not known.
    """
    family = f"{config.detector_name}/stddaq"
    instance = config.detector_name
    common = {"ConfigFile": [str(config_file)]}

    def stage(kind: str, module: str, number: int, **properties: str) -> ServerPlan:
        return ServerPlan(
            kind,
            f"tango_stddaq.devices.{module}",
            f"{instance}-{number}",
            f"{family}/{module.replace('_', '-')}-{number}",
            {**common, **{name: [value] for name, value in properties.items()}},
        )

    addresses = list(config.live_stream_configs) or [DEFAULT_STREAM]
    writers = [
        stage("StdDaqFileWriter", "file_writer", i, WriterId=str(i), Suffix=config.writer_source)
        for i in range(config.number_of_writers)
    ]
    driver = stage("StdDaqWriterDriver", "writer_driver", 0, Suffix=config.writer_source)
    if config.detector_type == "gigafrost" and writers:
        writers.append(stage("StdDaqMetaWriter", "meta_writer", 0))
        driver.properties["MetadataWriter"] = ["true"]
    for entry in (*writers, driver):
        entry.properties["OutputRoots"] = list(output_roots)
    streams = [
        stage("StdDaqLiveStream", "live_stream", i, Address=address)
        for i, address in enumerate(addresses)
    ]
    compressors = [
        stage("StdDaqCompressor", "compressor", i, Method=entry.method)
        for i, entry in enumerate(config.compressors)
    ]
    # A compressor owns the ring that writers attach, and comes before them.
    consumers = [*compressors, *writers, driver, *streams]
    if config.detector_type in CAMERAS:
        # Its receiver owns the ring, but sends nothing before a consumer listens.
        stages = [*consumers, _camera_receiver(config, stage)]
    else:
        modules = detector_of(config).connections
        receivers = [
            stage("StdDaqUdpReceiver", "udp_receiver", i, Modules=module_label(group))
            for i, group in enumerate(_groups(modules))
        ]
        stages = [stage("StdDaqModuleSync", "module_sync", 0), *consumers, *receivers]
    facade = ServerPlan(
        "StdDaq",
        "tango_stddaq.devices.facade",
        instance,
        f"{family}/facade",
        {
            **common,
            "StageDevices": [entry.device for entry in stages],
            "WriterDriverDevice": [driver.device],
            "PreviewDevice": [streams[0].device],
        },
    )
    simulator = ServerPlan(
        "StdDaqSimulator",
        "tango_stddaq.devices.simulator",
        instance,
        f"{family}/simulator",
        common,
    )
    return SystemPlan(tuple(stages), facade, simulator if simulate else None)


def startup_level(system_plan: SystemPlan, server: ServerPlan) -> int:
    """Return the level at which Tango's Starter starts a server: stages, then facade, then simulator."""
    if server in system_plan.stages:
        return 1
    return 2 if server is system_plan.facade else 3


def dsconfig(system_plan: SystemPlan) -> dict[str, Any]:
    """Return servers, devices and properties in the form that dsconfig's `json2tango` registers."""
    servers: dict[str, Any] = {}
    for server in system_plan.servers:
        properties = {name: values for name, values in server.properties.items() if values}
        device = {server.device: {"properties": properties}}
        servers.setdefault(server.tango_class, {})[server.instance] = {server.tango_class: device}
    return {"servers": servers}


def _groups(modules: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [
        modules[first : first + MODULES_PER_RECEIVER]
        for first in range(0, len(modules), MODULES_PER_RECEIVER)
    ]


def _camera_receiver(config: DaqConfig, stage: Callable[..., ServerPlan]) -> ServerPlan:
    address = config.require_camera_address()
    if config.camera_protocol == "array-1.0":
        return stage("StdDaqArray10Receiver", "array10_receiver", 0, Address=address)
    return stage("StdDaqBsreadReceiver", "bsread_receiver", 0, Address=address)
