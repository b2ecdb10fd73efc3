"""What UDP receiver and data converter share: they bring the raw pixels of modules to their images."""

import logging
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import PixelFormat, Placement
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import gain_maps
from tango_stddaq.processing.assembly import Workspace
from tango_stddaq.processing.module_sets import module_label
from tango_stddaq.stages.base import Stage

_MAPS_TIMEOUT_S: Final = 1.0


class ConvertingStage(Stage):
    """Base of the stages that know where the pixels of modules belong.

    Parameters
    ----------
    modules
        UDP modules, as the detector numbers its connections; None for all.
    gains_file, pedestals_file
        HDF5 files with the maps of a Jungfrau whose pixels are converted, see `io/gain_maps.py`; ""
        for those of the configuration.
    """

    label_tag = "module"

    def __init__(
        self,
        config: DaqConfig,
        modules: Sequence[int] | None = None,
        label: str | None = None,
        gains_file: str = "",
        pedestals_file: str = "",
    ) -> None:
        self.detector = detector_of(config)
        self.modules = self.detector.select(modules)
        super().__init__(config, label if label is not None else module_label(self.modules))
        if not gains_file:
            gains_file, pedestals_file = config.gains_file, config.pedestals_file
        self.gains_file, self.pedestals_file = gains_file, pedestals_file
        self._rows = [self.detector.connections.index(module) for module in self.modules]
        self._workspace: Workspace | None = None
        self._new_maps: np.ndarray | None = None
        self._maps_taken = threading.Event()

    @property
    def converts(self) -> bool:
        """Whether pixels are converted with gain maps."""
        return self.detector.placement.format is PixelFormat.GAIN

    def load_gain_maps(self, gains_file: str, pedestals_file: str = "") -> None:
        """Check gain maps and use them from now on; a running stage goes on without a gap.

        Packets that come after the return are converted with the new ones.

        Raises
        ------
        ConfigError
            If they cannot be used, or nothing is converted with any: those in use stay.
        """
        if not self.converts:
            raise ConfigError(
                f"gain maps: {self.config.detector_type} is not converted with any; "
                "detector_type jungfrau-converted is"
            )
        maps = gain_maps.load(gains_file, pedestals_file, self.modules)
        self.gains_file, self.pedestals_file = gains_file, pedestals_file
        if self.running:
            self._maps_taken.clear()
            self._new_maps = maps
            self._maps_taken.wait(_MAPS_TIMEOUT_S)
        files = " and ".join(name for name in (gains_file, pedestals_file) if name)
        self.say(logging.INFO, f"[event] gain maps of {files}")

    def _take_new_maps(self) -> None:
        """Use the maps that were loaded since the last turn; call between two turns."""
        if self._new_maps is not None and self._workspace is not None:
            self._workspace.maps, self._new_maps = self._new_maps, None
            self._maps_taken.set()

    def _image_placement(self) -> Placement:
        """Return where the pixels of the modules belong in the image."""
        return self.detector.placement.take(self._rows)

    def _new_workspace(self, placement: Placement) -> Workspace:
        maps = None
        if placement.format is PixelFormat.GAIN:
            maps = gain_maps.load(self.gains_file, self.pedestals_file, self.modules)
        self._workspace = Workspace.of(self.detector.layout, placement, maps=maps)
        return self._workspace

    def _place_of(self, row: int) -> int:
        """Return the place of a connection's module among those of an image."""
        return row % len(self.detector.modules)
