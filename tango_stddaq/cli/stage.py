"""The commands of `stddaq stage`: each stage, with the arguments of the program that it can replace."""

from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal

import typer

from tango_stddaq.cli import stage_program
from tango_stddaq.cli.stage_program import load, run
from tango_stddaq.errors import ConfigError
from tango_stddaq.model import Compression
from tango_stddaq.processing.compress import DEFAULT_LEVEL
from tango_stddaq.processing.module_sets import parse_modules
from tango_stddaq.stage_names import ENTRY_POINTS

app = typer.Typer(
    help="Run one pipeline stage without Tango, with the arguments of the program it replaces.",
    no_args_is_help=True,
)
stage_command = partial(stage_program.stage_command, app)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="JSON configuration file.")]

Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="Of the camera: tcp://HOST:PORT.")]
Connections = Annotated[
    int, typer.Option("-n", "--number_of_connections", min=1, help="Parallel connections.")
]
OutputRoots = Annotated[
    list[str] | None,
    typer.Option(help="Directory below which files may be written; repeat for more. None: anywhere."),
]
SocketType = Annotated[
    Literal["pull", "sub"],
    typer.Option("-t", "--type", help="pull: the camera binds PUSH; sub: it binds PUB."),
]
Threads = Annotated[int, typer.Option("-t", "--threads", help="Images compressed at the same time.")]
Source = Annotated[
    str, typer.Option("-s", "--source_suffix", help="Stream that announces the images, and their ring.")
]
SourceStream = Annotated[
    str, typer.Option("-s", "--source_suffix", help="Stream that announces the images.")
]
SourceRing = Annotated[
    str, typer.Option("-si", "--source_suffix_image", help="Ring with their pixels, if it is another.")
]


@stage_command("udp-recv")
def udp_recv(
    config: Config,
    module: Annotated[str, typer.Argument(metavar="MODULE", help="7, 0-15, 0,2,5 or all.")],
    direct: Annotated[
        bool,
        typer.Option(
            "--direct",
            help="Receive straight into the image ring of a `stddaq` module-sync, instead of one "
            "frame ring per module for a converter.",
        ),
    ] = False,
) -> None:
    """Receive the UDP packets of detector modules."""
    from tango_stddaq.stages.udp_receiver import ReceiveMode, UdpReceiver  # noqa: PLC0415

    mode = ReceiveMode.DIRECT if direct else ReceiveMode.FRAMES
    run(UdpReceiver(load(config), modules_of(module), mode))


@stage_command("data-convert")
def data_convert(
    config: Config,
    module: Annotated[str, typer.Argument(metavar="MODULE", help="7, 0-15, 0,2,5 or all.")],
    gains_and_pedestals: Annotated[
        str, typer.Option("-g", "--gains_and_pedestals", help="HDF5 file of a converted Jungfrau.")
    ] = "",
) -> None:
    """Bring raw frames of modules to their places in the image ring."""
    from tango_stddaq.stages.data_convert import DataConvert  # noqa: PLC0415

    run(DataConvert(load(config), modules_of(module), gains_and_pedestals))


@stage_command("bsread-recv")
def bsread_recv(
    config: Config,
    address: Address,
    number_of_connections: Connections = 4,
    socket_type: SocketType = "pull",
) -> None:
    """Receive the images of a camera over BSREAD."""
    from tango_stddaq.stages.bsread_receiver import BsreadReceiver  # noqa: PLC0415

    run(BsreadReceiver(load(config), address, number_of_connections, socket_type))


@stage_command("array10-recv")
def array10_recv(
    config: Config,
    address: Address,
    number_of_connections: Connections = 4,
    socket_type: SocketType = "pull",
) -> None:
    """Receive the images of a camera over array-1.0."""
    from tango_stddaq.stages.array10_receiver import Array10Receiver  # noqa: PLC0415

    run(Array10Receiver(load(config), address, number_of_connections, socket_type))


@stage_command("module-sync")
def module_sync(config: Config) -> None:
    """Join the frames of all modules to images."""
    from tango_stddaq.stages.module_sync import ModuleSync  # noqa: PLC0415

    run(ModuleSync(load(config)))


@stage_command("live-stream")
def live_stream(
    config: Config,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A key of live_stream_configs.")],
    source_suffix_meta: Annotated[
        str, typer.Option("-sm", "--source_suffix_meta", help="Stream that announces the images.")
    ] = "image",
    source_suffix_image: Annotated[
        str, typer.Option("-si", "--source_suffix_image", help="Ring with their pixels.")
    ] = "image",
    protocol: Annotated[
        Literal["array-1.0", "bsread"], typer.Option("-t", "--type", help="What clients speak.")
    ] = "array-1.0",
    compression: Annotated[
        Literal["none", "bitshuffle_lz4"], typer.Option(help="How bsread sends pixels.")
    ] = "none",
) -> None:
    """Send images to any number of clients."""
    from tango_stddaq.stages.live_stream import LiveStream  # noqa: PLC0415

    suffixes = source_suffix_meta, source_suffix_image
    run(LiveStream(load(config), address, *suffixes, protocol, compression))


@stage_command("metadata-stream")
def metadata_stream(
    config: Config,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="To bind: tcp://HOST:PORT.")],
    source_suffix: Annotated[
        str, typer.Option("-s", "--source_suffix", help="Stream to pass on.")
    ] = "image",
) -> None:
    """Publish the metadata of images over TCP, for programs on other hosts."""
    from tango_stddaq.stages.metadata_stream import MetadataStream  # noqa: PLC0415

    run(MetadataStream(load(config), address, source_suffix))


@stage_command("gf-filter")
def gf_filter(
    config: Config,
    source_suffix: SourceStream = "image",
    no_filter: Annotated[
        bool, typer.Option("-n", "--no_filter", help="Pass on all images, marked to be stored or not.")
    ] = False,
) -> None:
    """Pass on the images that a GigaFRoST was told to store."""
    from tango_stddaq.stages.gigafrost_filter import GigafrostFilter  # noqa: PLC0415

    run(GigafrostFilter(load(config), source_suffix, no_filter))


@stage_command("delay-filter")
def delay_filter(config: Config, source_suffix: SourceStream = "image") -> None:
    """Pass on every image later, by `delay_filter_timeout` of the configuration."""
    from tango_stddaq.stages.delay_filter import DelayFilter  # noqa: PLC0415

    run(DelayFilter(load(config), source_suffix))


@stage_command("compress-blosc2")
def compress_blosc2(
    config: Config,
    threads: Threads,
    level: Annotated[int, typer.Option("-l", "--level", help="1 (fastest) to 9.")] = DEFAULT_LEVEL,
    source_suffix: Source = "image",
    source_suffix_image: SourceRing = "",
) -> None:
    """Compress images with blosc2, for a ring and a stream of that name."""
    from tango_stddaq.stages.compressor import ImageCompressor  # noqa: PLC0415

    method, rings = Compression.BLOSC2, (source_suffix, source_suffix_image)
    run(ImageCompressor(load(config), method, threads, level, 0, *rings))


@stage_command("compress-h5bitshuffle-lz4")
def compress_h5bitshuffle_lz4(
    config: Config,
    threads: Threads,
    block_size: Annotated[
        int, typer.Option("-b", "--block_size", help="Bytes of a block; 0: the library's choice.")
    ] = 0,
    source_suffix: Source = "image",
    source_suffix_image: SourceRing = "",
) -> None:
    """Compress images with bitshuffle and LZ4, for a ring and a stream h5bitshuffle-lz4."""
    from tango_stddaq.stages.compressor import ImageCompressor  # noqa: PLC0415

    method, rings = Compression.H5BITSHUFFLE_LZ4, (source_suffix, source_suffix_image)
    run(ImageCompressor(load(config), method, threads, DEFAULT_LEVEL, block_size, *rings))


@stage_command("writer-driver")
def writer_driver(
    config: Config,
    source_suffix: SourceStream = "image",
    port: Annotated[
        int, typer.Option("-p", "--port", min=0, max=65535, help="WebSocket port for clients.")
    ] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets clients of other hosts in.")
    ] = "127.0.0.1",
    with_metadata_writer: Annotated[
        bool,
        typer.Option("-m", "--with_metadata_writer", help="A GigaFRoST metadata writer takes part."),
    ] = False,
    output_root: OutputRoots = None,
) -> None:
    """Hand images to the file writers; clients start and stop it over a WebSocket."""
    from tango_stddaq.control.websocket_server import WebSocketServer  # noqa: PLC0415
    from tango_stddaq.stages.writer_driver import WriterDriver  # noqa: PLC0415

    roots = tuple(output_root or ())
    driver = WriterDriver(load(config), source_suffix, roots, with_metadata_writer)
    with WebSocketServer(driver, port, host):
        run(driver)


@stage_command("file-writer")
def file_writer(
    config: Config,
    writer_id: Annotated[int, typer.Argument(metavar="WRITER_ID", help="From 0.")],
    source_suffix: Annotated[
        str, typer.Option("-s", "--source_suffix", help="Ring with the pixels.")
    ] = "image",
    output_root: OutputRoots = None,
) -> None:
    """Write one HDF5 file; ends at once if there are not so many writers."""
    from tango_stddaq.stages.file_writer import FileWriter  # noqa: PLC0415

    loaded = load(config)
    if writer_id < loaded.number_of_writers:
        run(FileWriter(loaded, writer_id, source_suffix, tuple(output_root or ())))


@stage_command("meta-writer")
def meta_writer(config: Config, output_root: OutputRoots = None) -> None:
    """Write the metadata of a GigaFRoST's images to one HDF5 file."""
    from tango_stddaq.stages.meta_writer import MetaWriter  # noqa: PLC0415

    run(MetaWriter(load(config), tuple(output_root or ())))


def _own_stage(name: str) -> None:
    """Make a stage of an installed package a command."""

    def command(
        config: Config,
        source_suffix: SourceStream = "image",
        source_suffix_image: SourceRing = "",
        settings: Annotated[
            list[str] | None, typer.Option("--set", help="A setting: NAME=VALUE; repeat for more.")
        ] = None,
    ) -> None:
        from tango_stddaq.stages import own_registry  # noqa: PLC0415
        from tango_stddaq.stages.own_settings import from_text  # noqa: PLC0415

        kind = own_registry.load(name)
        loaded = load(config)
        given = [entry for entry in loaded.stages if entry.stage == name]
        values = {**(given[0].settings if given else {}), **from_text(kind, settings or [])}
        run(kind(loaded, source_suffix, source_suffix_image, values))

    command.__doc__ = f"A stage of an installed package: {name}."
    stage_command(name)(command)


for _entry in entry_points(group=ENTRY_POINTS):
    _own_stage(_entry.name)


SenderAddress = Annotated[str, typer.Argument(metavar="ADDRESS", help="Of the sender: tcp://HOST:PORT.")]
PartNumber = Annotated[int, typer.Argument(metavar="PART", min=0, help="Which part, from 0.")]


@stage_command("stream-send")
def stream_send(
    config: Config,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="To bind: tcp://HOST:PORT.")],
    part: PartNumber,
    source_suffix: Source = "image",
) -> None:
    """Send a part of every image to another server; ends at once if the part is empty."""
    from tango_stddaq.stages.stream_send import StreamSend  # noqa: PLC0415

    stage = StreamSend(load(config), address, part, source_suffix)
    if stage.part is not None:
        run(stage)


@stage_command("stream-receive")
def stream_receive(config: Config, address: SenderAddress, part: PartNumber) -> None:
    """Receive a part of every image from another server; ends at once if the part is empty."""
    from tango_stddaq.stages.stream_receive import StreamReceive  # noqa: PLC0415

    stage = StreamReceive(load(config), address, part)
    if stage.part is not None:
        run(stage)


@stage_command("sync-stream")
def sync_stream(config: Config) -> None:
    """Join the parts of received images; ends at once if images come whole."""
    from tango_stddaq.stages.stream_sync import StreamSync  # noqa: PLC0415

    stage = StreamSync(load(config))
    if stage.active:
        run(stage)


@stage_command("sync-metadata")
def sync_metadata(
    config: Config,
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="Of the metadata stream: tcp://HOST:PORT.")
    ],
) -> None:
    """Put whole received images in order; ends at once if images come in parts."""
    from tango_stddaq.stages.stream_sync import MetadataSync  # noqa: PLC0415

    stage = MetadataSync(load(config), address)
    if stage.active:
        run(stage)


def modules_of(text: str) -> tuple[int, ...] | None:
    """Read the MODULE argument; a wrong one prints usage."""
    try:
        return parse_modules(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="MODULE") from None
