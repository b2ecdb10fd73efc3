"""Simulated detectors: pictures cut into packets by the same layout code that the receivers use."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tango_stddaq.codecs import dump
from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import Detector
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.errors import FileError
from tango_stddaq.sim.course import Course
from tango_stddaq.sim.cycle import PacketCycle, cycle_length
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.picture import N_MARKS, DiffractionPicture
from tango_stddaq.sim.transmission import Throughput, Transmission


class SimulatedDetector:
    """Sends the images of a detector over UDP.

    Parameters
    ----------
    config
        Of the detector to play.
    host
        Where the receivers run.
    cycle
        Images whose packets are made in advance, so that compiled code sends them as fast as the system
        can; 0 makes the packets of each image when it is sent. Image `i` of a cycle shows the picture of
        `i % cycle`; the first pixel of each module's frame is `i % 251`, so that ids remain told apart.
    gso
        Let the kernel cut the packets of a cycle out of large messages.

    Raises
    ------
    ConfigError
        If the cycle does not fit in memory.
    """

    def __init__(
        self, config: DaqConfig, host: str = "127.0.0.1", cycle: int = 0, gso: bool = True
    ) -> None:
        self.config = config
        self.detector = detector_of(config)
        self.cycle = cycle_length(self.detector, cycle) if cycle else 0
        self.sent = Throughput(0, 0, 0, 0.0)
        """Of the last run, also of one that was cut short."""
        self._host = host
        self._gso = gso
        self._picture = DiffractionPicture(config.sizes.shape, np.dtype(f"<u{config.bit_depth // 8}"))
        self._seen = visible_pixels(self.detector, config)
        n_modules = len(self.detector.modules)
        self._marks = (
            self.detector.placement.offsets[:n_modules, 0, 0] // config.sizes.dtype.numpy.itemsize
        )
        self._packets: PacketCycle | None = None

    def raw(self, image_id: int) -> np.ndarray:
        """Return the image as the detector sends it, with what lies in the gaps."""
        if not self.cycle:
            return self._picture.image(image_id)
        image = self._picture.image(image_id % self.cycle)
        image.reshape(-1)[self._marks] = image_id % N_MARKS
        return image

    def truth(self, image_id: int) -> np.ndarray:
        """Return the image as it must arrive: (height, width), gaps 0."""
        return np.where(self._seen, self.raw(image_id), 0).astype(self._picture.dtype)

    def prepare(self) -> bool:
        """Make the packets of one more image of the cycle; returns whether all are made."""
        if not self.cycle:
            return True
        if self._packets is None:
            self._packets = PacketCycle(self.detector, self.raw, self.cycle)
        return self._packets.make_next()

    def transmission(self) -> Transmission:
        """Open the line to the receivers, once all packets of the cycle are made."""
        while not self.prepare():
            pass
        return Transmission(
            self.config, self.detector, self.frames, self._packets, self._host, self._gso
        )

    def run(
        self,
        n_images: int,
        rate_hz: float,
        first_id: int = 1,
        faults: Faults | None = None,
        on_image: Callable[[int], None] | None = None,
        course: Course = Course(),  # noqa: B008
    ) -> Faults:
        """Send images; returns the faults with what was really left out, and sets `sent`."""
        faults = faults if faults is not None else Faults()
        with self.transmission() as transmission:
            transmission.pace.rate_hz = rate_hz
            try:
                for begin, n, pause_s in course.stretches(n_images, first_id):
                    if pause_s:
                        time.sleep(pause_s)
                        transmission.pace.restart()
                    done = 0
                    while done < n:
                        n_sent = transmission.send(begin + done, n - done, faults)
                        if on_image is not None:
                            for image_id in range(begin + done, begin + done + n_sent):
                                on_image(image_id)
                        done += n_sent
            finally:
                self.sent = transmission.throughput
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
        if self._packets is not None and self._packets.make_next():
            return self._packets.frames(image_id)
        image = self.raw(image_id)
        return {
            connection: self.detector.packets(image, image_id, connection)
            for connection in self.detector.connections_of(image_id)
        }


def visible_pixels(detector: Detector, config: DaqConfig) -> np.ndarray:
    """Return which pixels of the image belong to a module, (height, width) bool."""
    placement, sizes = detector.placement, config.sizes
    seen = np.zeros(sizes.slot_bytes, bool)
    starts = placement.offsets.reshape(-1, 1)
    seen[starts + np.arange(placement.piece_bytes)] = True
    return seen.reshape(sizes.height, sizes.width, -1)[:, :, 0]


def report(n_images: int, faults: Faults, sent: Throughput | None = None) -> str:
    """Return what was sent as one line of JSON; with how fast it was, if that is given."""
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
            **(speed(sent) if sent is not None else {}),
        }
    )


def speed(sent: Throughput) -> dict[str, float]:
    """Return how much was sent and how fast, as `stddaq simulate` reports it."""
    return {
        "packets": sent.packets,
        "bytes": sent.n_bytes,
        "seconds": round(sent.seconds, 6),
        "images_per_s": round(sent.images_per_s, 3),
        "bytes_per_s": round(sent.bytes_per_s),
    }
