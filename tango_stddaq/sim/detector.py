"""Simulated detectors: pictures cut into packets by the same layout code that the receivers use."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tango_stddaq.codecs import dump
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import Detector
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.errors import FileError
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.picture import DiffractionPicture
from tango_stddaq.sim.sender import Pace, PacketSender, clean_errors


class SimulatedDetector:
    """Sends the images of a detector over UDP.

    Parameters
    ----------
    config
        Of the detector to play.
    host
        Where the receivers run.
    """

    def __init__(self, config: DaqConfig, host: str = "127.0.0.1") -> None:
        self.config = config
        self.detector = detector_of(config)
        self._host = host
        self._picture = DiffractionPicture(config.sizes.shape, np.dtype(f"<u{config.bit_depth // 8}"))
        self._seen = visible_pixels(self.detector, config)

    def raw(self, image_id: int) -> np.ndarray:
        """Return the image as the detector sends it, with what lies in the gaps."""
        return self._picture.image(image_id)

    def truth(self, image_id: int) -> np.ndarray:
        """Return the image as it must arrive: (height, width), gaps 0."""
        return np.where(self._seen, self._picture.image(image_id), 0).astype(self._picture.dtype)

    def run(
        self,
        n_images: int,
        rate_hz: float,
        first_id: int = 1,
        faults: Faults | None = None,
        on_image: Callable[[int], None] | None = None,
    ) -> Faults:
        """Send images; returns the faults with what was really left out."""
        faults = faults if faults is not None else Faults()
        pace = Pace(rate_hz)
        with PacketSender(self._host) as sender:
            for image_id in range(first_id, first_id + n_images):
                frames = self.frames(image_id)
                pace.wait()
                self.send(sender, image_id, frames, faults, pace)
                if on_image is not None:
                    on_image(image_id)
        return faults

    def record(self, directory: Path, n_images: int, first_id: int = 1) -> None:
        """Write the packets to `<port>.dat`, one dump a connection, instead of sending them.

        Raises
        ------
        FileError
            If a dump exists already or cannot be written.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                dumps = {
                    connection: stack.enter_context(
                        (directory / f"{self.config.start_udp_port + connection}.dat").open("xb")
                    )
                    for connection in self.detector.connections
                }
                sizes = self.detector.packet_sizes()
                for image_id in range(first_id, first_id + n_images):
                    for connection, packets in self.frames(image_id).items():
                        for packet, size in zip(packets, sizes, strict=True):
                            dumps[connection].write(dump.encode(packet[:size].data))
        except OSError as error:
            raise FileError(f"{error.filename}: cannot be written: {error.strerror}") from error

    def frames(self, image_id: int) -> dict[int, np.ndarray]:
        """Return the packets of an image by connection, in the order in which they are sent."""
        image = self._picture.image(image_id)
        return {
            connection: self.detector.packets(image, image_id, connection)
            for connection in self.detector.connections_of(image_id)
        }

    def send(
        self,
        sender: PacketSender,
        image_id: int,
        frames: dict[int, np.ndarray],
        faults: Faults,
        pace: Pace,
    ) -> None:
        """Send the packets of one image, spread over its period, as the faults leave them."""
        sizes = self.detector.packet_sizes()
        header_bytes = self.detector.layout.header.itemsize
        for part, (connection, packets) in enumerate(frames.items()):
            pace.fraction(part, len(frames))
            sent, n_bytes = faults.apply(image_id, connection, packets, sizes, header_bytes)
            with clean_errors():
                sender.send(self.config.start_udp_port + connection, sent, n_bytes)


def visible_pixels(detector: Detector, config: DaqConfig) -> np.ndarray:
    """Return which pixels of the image belong to a module, (height, width) bool."""
    placement, sizes = detector.placement, config.sizes
    seen = np.zeros(sizes.slot_bytes, bool)
    starts = placement.offsets.reshape(-1, 1)
    seen[starts + np.arange(placement.piece_bytes)] = True
    return seen.reshape(sizes.height, sizes.width, -1)[:, :, 0]


def report(n_images: int, faults: Faults) -> str:
    """Return what was sent as one line of JSON."""
    incomplete = sorted({image_id for image_id, _, _ in faults.dropped})
    return json.dumps(
        {
            "sent": n_images,
            "dropped_packets": len(faults.dropped),
            "incomplete_ids": incomplete,
            "duplicated_packets": faults.n_duplicated,
            "corrupted_packets": faults.n_corrupted,
            "truncated_packets": faults.n_truncated,
            "reordered_packets": faults.n_reordered,
        }
    )
