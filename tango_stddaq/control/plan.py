"""Which device servers a configuration needs: names, classes and properties, as plain data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.config_entries import FilterConfig, OwnStageConfig
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.processing.hosts import first_host, order_port, sender_port, writers_of
from tango_stddaq.processing.module_sets import module_label
from tango_stddaq.processing.parts import part_of

MODULES_PER_RECEIVER: Final = 18
"""One receiver process serves so many modules; 72 half modules of an Eiger 9M need four."""
_WRITES_FILES: Final = ("StdDaqFileWriter", "StdDaqMetaWriter", "StdDaqWriterDriver")
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
    host
        Which of `hosts` in the configuration it runs on; "" where there is only one.
    arguments
        Of the module, before the instance.
    """

    tango_class: str
    module: str
    instance: str
    device: str
    properties: dict[str, list[str]] = field(default_factory=dict)
    host: str = ""
    arguments: tuple[str, ...] = ()

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

    first = first_host(config)

    def stage(kind: str, module: str, number: int, host: str = first, **properties: str) -> ServerPlan:
        return ServerPlan(
            kind,
            f"tango_stddaq.devices.{module}",
            f"{instance}-{number}",
            f"{family}/{module.replace('_', '-')}-{number}",
            {**common, **{name: [value] for name, value in properties.items()}},
            host,
        )

    addresses = list(config.live_stream_configs) or [DEFAULT_STREAM]
    writers = [
        stage("StdDaqFileWriter", "file_writer", i, WriterId=str(i), Suffix=config.writer_source)
        for i in writers_of(config, first)
    ]
    driver = stage("StdDaqWriterDriver", "writer_driver", 0, Suffix=config.writer_source)
    if config.detector_type == "gigafrost" and config.number_of_writers:
        writers.append(stage("StdDaqMetaWriter", "meta_writer", 0))
        driver.properties["MetadataWriter"] = ["true"]
    others = _other_hosts(config, stage)
    for entry in (*writers, driver, *others):
        if entry.tango_class in _WRITES_FILES:
            entry.properties["OutputRoots"] = list(output_roots)
    streams = [
        stage("StdDaqLiveStream", "live_stream", i, Address=address, **_stream_of(config, address))
        for i, address in enumerate(addresses)
    ]
    own = [_own_stage(entry, family, instance, common, first) for entry in config.stages]
    filters = [_filter(entry, stage) for entry in config.filters]
    compressors = [
        stage("StdDaqCompressor", "compressor", i, Method=entry.method)
        for i, entry in enumerate(config.compressors)
    ]
    # A compressor owns the ring that writers attach, and comes before them.
    consumers = [
        *filters, *own, *compressors, *writers, driver, *streams, *_senders(config, stage), *others,
    ]  # fmt: skip
    if config.detector_type in CAMERAS:
        # Its receiver owns the ring, but sends nothing before a consumer listens.
        source = _camera_receiver(config, stage)
        stages = [*consumers, source]
    else:
        modules = detector_of(config).connections
        receivers = [
            stage("StdDaqUdpReceiver", "udp_receiver", i, Modules=module_label(group))
            for i, group in enumerate(_groups(modules))
        ]
        source = stage("StdDaqModuleSync", "module_sync", 0)
        stages = [source, *consumers, *receivers]
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
            "SourceDevice": [source.device],
        },
        first,
    )
    simulator = ServerPlan(
        "StdDaqSimulator",
        "tango_stddaq.devices.simulator",
        instance,
        f"{family}/simulator",
        common,
        first,
    )
    return SystemPlan(tuple(stages), facade, simulator if simulate else None)


def _stream_of(config: DaqConfig, address: str) -> dict[str, str]:
    """Return the properties of a live stream that differ from the usual ones."""
    entry = config.live_stream_configs.get(address)
    if entry is None:
        return {}
    wanted = {
        "MetadataSuffix": (entry.source, "image"),
        "ImageSuffix": (entry.source, "image"),
        "Protocol": (entry.protocol, "array-1.0"),
        "Compression": (entry.compression, "none"),
    }
    return {name: value for name, (value, usual) in wanted.items() if value != usual}


def _filter(entry: FilterConfig, stage: Callable[..., ServerPlan]) -> ServerPlan:
    if entry.kind == "delay":
        return stage("StdDaqDelayFilter", "delay_filter", 0, Suffix=entry.source)
    forward_all = {"ForwardAll": "true"} if entry.forward_all else {}
    return stage("StdDaqGigafrostFilter", "gigafrost_filter", 0, Suffix=entry.source, **forward_all)


def _own_stage(
    entry: OwnStageConfig, family: str, instance: str, common: dict[str, list[str]], host: str
) -> ServerPlan:
    return ServerPlan(
        entry.tango_class,
        "tango_stddaq.devices.own_stage",
        instance,
        f"{family}/{entry.stage}",
        {**common, "Suffix": [entry.source]},
        host,
        (entry.stage,),
    )


def _parts(config: DaqConfig) -> list[int]:
    """Return the numbers of the senders, where there are hosts to send to."""
    if len(config.hosts) < 2:
        return []
    every = range(config.max_number_of_forwarders_spawned)
    return [number for number in every if part_of(config, number) is not None]


def _senders(config: DaqConfig, stage: Callable[..., ServerPlan]) -> list[ServerPlan]:
    """Return what the first host sends images with."""
    senders = [
        stage(
            "StdDaqStreamSend",
            "stream_send",
            number,
            Address=f"tcp://*:{sender_port(config, number)}",
            Part=str(number),
        )
        for number in _parts(config)
    ]
    if senders and config.sender_sends_full_images:
        address = f"tcp://*:{order_port(config)}"
        senders.append(stage("StdDaqMetadataStream", "metadata_stream", 0, Address=address))
    return senders


def _other_hosts(config: DaqConfig, stage: Callable[..., ServerPlan]) -> list[ServerPlan]:
    """Return what runs on all hosts but the first: synchronizer, writers, receivers of images."""
    stages: list[ServerPlan] = []
    numbers = count()
    for at, host in enumerate(list(config.hosts)[1:]):
        source = f"tcp://{config.hosts[first_host(config)].address}"
        if config.sender_sends_full_images:
            address = f"{source}:{order_port(config)}"
            sync = stage("StdDaqMetadataSync", "metadata_sync", at, host, Address=address)
        else:
            sync = stage("StdDaqStreamSync", "stream_sync", at, host)
        writers = [
            stage(
                "StdDaqFileWriter", "file_writer", i, host, WriterId=str(i), Suffix=config.writer_source
            )
            for i in writers_of(config, host)
        ]
        receivers = [
            stage(
                "StdDaqStreamReceive",
                "stream_receive",
                next(numbers),
                host,
                Address=f"{source}:{sender_port(config, part)}",
                Part=str(part),
            )
            for part in _parts(config)
        ]
        stages += [sync, *writers, *receivers]
    return stages


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
