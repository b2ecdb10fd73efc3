"""A simulated detector or camera that runs like a stage: started, paused, told to misbehave, stopped."""

import time
from typing import ClassVar

from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.sim.camera import SimulatedCamera
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.sender import Pace, PacketSender
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter


class Simulator(Stage):
    """Sends `n_images` images and ends by itself.

    Parameters
    ----------
    host
        Where the receivers of a UDP detector run.

    Attributes
    ----------
    rate_set_hz, n_images, first_id
        Of the next start; 0 images means until stopped.
    faults
        Of packets; may be replaced while it runs. Cameras have none.
    paused
        Whether it waits.
    """

    name = "simulator"
    main_counter = "images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("images", "images", "Images sent."),
        Counter("missing_packets", "packets", "Packets that will be missing at the receiver."),
        Counter("duplicated", "packets", "Packets sent twice."),
        Counter("corrupted", "packets", "Packets sent with a broken header."),
        Counter("truncated", "packets", "Packets sent cut to half."),
        Counter("reordered", "packets", "Packets that changed places."),
    )

    def __init__(self, config: DaqConfig, host: str = "127.0.0.1") -> None:
        super().__init__(config)
        self.rate_set_hz = 10.0
        self.n_images = 0
        self.first_id = 1
        self.faults = Faults()
        self.paused = False
        self._host = host
        self._detector: SimulatedDetector | None = None
        self._sender: PacketSender | None = None
        self._camera: SimulatedCamera | None = None
        if config.detector_type in CAMERAS:
            config.require_camera_address()
        else:
            self._detector = SimulatedDetector(config, host)
        self._next_id = 1
        self._n_sent = 0
        self._next_s = 0.0

    def restart_ids(self) -> None:
        """Count from `first_id` again, as a detector that was restarted."""
        self._next_id = self.first_id

    def _open(self) -> None:
        self._next_id, self._n_sent, self._next_s = self.first_id, 0, time.monotonic()
        if self._detector is not None:
            self._sender = PacketSender(self._host)
        else:
            self._camera = SimulatedCamera.of(self.config)

    def _turn(self) -> None:
        delay_s = self._next_s - time.monotonic()
        if self.paused or delay_s > 0:
            self._stop.wait(TURN_S if self.paused else min(delay_s, TURN_S))
            return
        period_s = 1 / self.rate_set_hz if self.rate_set_hz > 0 else 0.0
        self._next_s = max(self._next_s + period_s, time.monotonic() - period_s)
        if self._detector is not None and self._sender is not None:
            frames = self._detector.frames(self._next_id)
            self._detector.send(self._sender, self._next_id, frames, self.faults, Pace(0))
        elif self._camera is not None:
            self._camera.send(self._next_id)
        self._next_id += 1
        self._n_sent += 1
        self.counters["images"] += 1
        if self._n_sent == self.n_images:
            self._stop.set()

    def _tick(self) -> None:
        faults = self.faults
        self.counters["missing_packets"] = len(faults.dropped)
        self.counters["duplicated"] = faults.n_duplicated
        self.counters["corrupted"] = faults.n_corrupted
        self.counters["truncated"] = faults.n_truncated
        self.counters["reordered"] = faults.n_reordered

    def _describe(self) -> str:
        if self.paused:
            return f"Paused before image {self._next_id}."
        return f"Sending image {self._next_id}, {self.rate_hz:.1f} Hz."

    def _close(self) -> None:
        if self._sender is not None:
            self._sender.close()
        if self._camera is not None:
            self._camera.close()
        self._sender = self._camera = None
