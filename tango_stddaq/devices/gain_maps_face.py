"""What the Tango classes that convert Jungfrau pixels have in common: their gain maps."""

from typing import cast

from tango.server import attribute, command, device_property

from tango_stddaq.devices.base import READ_WRITE, StageDevice, tango_errors
from tango_stddaq.stages.converting import ConvertingStage


class GainMapsFace(StageDevice):
    """Loads gain maps while the stage runs."""

    GainsFile = device_property(
        dtype=str,
        default_value="",
        doc="HDF5 file with the gain maps of a converted Jungfrau; empty: see the configuration.",
    )
    PedestalsFile = device_property(
        dtype=str, default_value="", doc="HDF5 file with its pedestals, if not in GainsFile."
    )

    @property
    def converting(self) -> ConvertingStage:
        """The stage."""
        return cast(ConvertingStage, self.stage)

    @attribute(
        dtype=str, access=READ_WRITE, label="gains file",
        doc="HDF5 file with the gain maps in use. Writing it loads them, without a gap.",
    )  # fmt: skip
    def gainsFile(self) -> str:
        return self.converting.gains_file if self._stage is not None else ""

    @gainsFile.write
    @tango_errors
    def gainsFile(self, value: str) -> None:
        self.converting.load_gain_maps(value, self.converting.pedestals_file)

    @attribute(
        dtype=str, access=READ_WRITE, label="pedestals file",
        doc="HDF5 file with the pedestals in use, empty if gainsFile has them. Writing it loads them.",
    )  # fmt: skip
    def pedestalsFile(self) -> str:
        return self.converting.pedestals_file if self._stage is not None else ""

    @pedestalsFile.write
    @tango_errors
    def pedestalsFile(self, value: str) -> None:
        self.converting.load_gain_maps(self.converting.gains_file, value)

    @command(doc_in="Read the gain maps again from gainsFile and pedestalsFile, without a gap.")
    @tango_errors
    def ReloadGainMaps(self) -> None:
        self.converting.load_gain_maps(self.converting.gains_file, self.converting.pedestals_file)
