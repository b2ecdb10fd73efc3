"""A simulated detector or camera that runs like a stage: started, paused, told to misbehave, stopped."""

from typing import ClassVar, Final

from tango_stddaq.config import CAMERAS, DaqConfig
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.errors import ConfigError
from tango_stddaq.sim.camera import SimulatedCamera
from tango_stddaq.sim.cycle import cycle_length
from tango_stddaq.sim.detector import SimulatedDetector
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.pace import Pace
from tango_stddaq.sim.transmission import Transmission
from tango_stddaq.stages.base import TURN_S, Stage
from tango_stddaq.stats import Counter

_NO_END: Final = 2**62


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
    cycle
        Images whose packets are made in advance, at the next start; 0 for none. Cameras have none.
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
        self.cycle = 0
        self.paused = False
        self._host = host
        self._is_camera = config.detector_type in CAMERAS
        if self._is_camera:
            config.require_camera_address()
        else:
            detector_of(config)  # what is wrong with it shows now
        self._detector: SimulatedDetector | None = None
        self._made_for = 0
        self._transmission: Transmission | None = None
        self._camera: SimulatedCamera | None = None
        self._pace = Pace(0)
        self._next_id = 1
        self._n_sent = 0
        self._restart = False

    @property
    def has_packets(self) -> bool:
        """Whether it sends packets, which faults can hit; a camera sends whole images."""
        return not self._is_camera

    def set_cycle(self, n_images: int) -> None:
        """Set `cycle`.

        Raises
        ------
        ConfigError
            If so many images do not fit in memory, or there are no packets.
        """
        if n_images and self._is_camera:
            raise ConfigError(f"cycle {n_images}: a camera sends whole images; allowed is 0")
        self.cycle = cycle_length(detector_of(self.config), n_images) if n_images else 0

    def restart_ids(self) -> None:
        """Count from `first_id` again, as a detector that was restarted."""
        self._restart = True

    def _open(self) -> None:
        self._next_id, self._n_sent, self._restart = self.first_id, 0, False
        if self._is_camera:
            self._camera = SimulatedCamera.of(self.config)
            self._pace = Pace(self.rate_set_hz)
            return
        if self._detector is None or self._made_for != self.cycle:
            self._detector, self._made_for = None, self.cycle  # at no time two cycles in memory
            self._detector = SimulatedDetector(self.config, self._host, self.cycle)

    def _turn(self) -> None:
        if self._detector is not None and self._transmission is None:
            # The packets of a cycle take a while: one image a turn, so that a stop is heard.
            if self._detector.prepare():
                self._transmission = self._detector.transmission()
                self._pace = self._transmission.pace
            return
        if self.paused:
            self._pace.restart()
            self._stop.wait(TURN_S)
            return
        self._pace.rate_hz = self.rate_set_hz
        delay_s = self._pace.due_in_s()
        if delay_s > TURN_S:
            self._stop.wait(TURN_S)
            return
        if self._restart:
            self._next_id, self._restart = self.first_id, False
        n = 1
        if self._transmission is not None:
            left = self.n_images - self._n_sent if self.n_images else _NO_END
            n = self._transmission.send(self._next_id, left, self.faults)
        elif self._camera is not None:
            self._pace.wait()
            self._camera.send(self._next_id)
        self._next_id += n
        self._n_sent += n
        self.counters["images"] += n
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
        if self._detector is not None and self._transmission is None:
            return f"Making the packets of {self.cycle} images."
        if self.paused:
            return f"Paused before image {self._next_id}."
        return f"Sending image {self._next_id}, {self.rate_hz:.1f} Hz."

    def _close(self) -> None:
        if self._transmission is not None:
            self._transmission.close()
        if self._camera is not None:
            self._camera.close()
        self._transmission = self._camera = None
