"""Replay of recorded packets: the dumps of all modules, image by image, at a given rate."""

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tango_stddaq.codecs import dump
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.errors import FileError
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.pace import Pace
from tango_stddaq.sim.sender import PacketSender, split


@dataclass(frozen=True, slots=True)
class Recording:
    """The packets of all modules.

    Attributes
    ----------
    frames
        Image id to module to the packets, in the order in which they were recorded.
    """

    frames: dict[int, dict[int, list[memoryview]]]

    @property
    def image_ids(self) -> list[int]:
        """The ids, increasing."""
        return sorted(self.frames)


def load(directory: Path, config: DaqConfig) -> Recording:
    """Read `<port>.dat` or `<port>.dat.xz` for every module.

    Raises
    ------
    FileError
        If a dump is missing, cannot be read, or holds something else.
    """
    detector = detector_of(config)
    frames: dict[int, dict[int, list[memoryview]]] = {}
    for module in detector.connections:
        path = _find(directory, config.start_udp_port + module)
        try:
            data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            for packet in dump.decode(data):
                if len(packet) < detector.layout.header.itemsize:
                    raise ValueError(f"a packet of {len(packet)} bytes")
                header = np.frombuffer(packet, detector.layout.header, 1)
                image_id = int(header[detector.layout.number_field][0])
                frames.setdefault(image_id, {}).setdefault(module, []).append(packet)
        except (OSError, ValueError, lzma.LZMAError) as error:
            raise FileError(f"{path}: cannot be replayed: {error}") from error
    return Recording(frames)


def replay(
    recording: Recording,
    config: DaqConfig,
    rate_hz: float,
    host: str = "127.0.0.1",
    faults: Faults | None = None,
    on_image: Callable[[int], None] | None = None,
) -> Faults:
    """Send a recording; returns the faults with what was really left out."""
    faults = faults if faults is not None else Faults()
    pace = Pace(rate_hz)
    header_bytes = detector_of(config).layout.header.itemsize
    with PacketSender(host) as sender:
        for image_id in recording.image_ids:
            modules = recording.frames[image_id]
            for part, (module, packets) in enumerate(sorted(modules.items())):
                pace.wait(part, len(modules))
                for group in split(packets):
                    sizes = np.full(len(group), group.shape[1])
                    sent, n_bytes = faults.apply(image_id, module, group, sizes, header_bytes)
                    sender.send(config.start_udp_port + module, sent, n_bytes)
            if on_image is not None:
                on_image(image_id)
    return faults


def _find(directory: Path, port: int) -> Path:
    if not directory.is_dir():
        raise FileError(f"{directory}: is not a directory")
    for name in (f"{port}.dat", f"{port}.dat.xz"):
        if (directory / name).is_file():
            return directory / name
    raise FileError(f"{directory}: has neither {port}.dat nor {port}.dat.xz")
