"""Tango class of the data converter."""

from tango.server import device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import counter_attributes, serve
from tango_stddaq.devices.gain_maps_face import GainMapsFace
from tango_stddaq.processing.module_sets import parse_modules
from tango_stddaq.stages.data_convert import DataConvert


class StdDaqDataConvert(GainMapsFace):
    """Brings the raw frames of a receiver in frames mode to their places in the image ring."""

    stage_type = DataConvert

    Modules = device_property(
        dtype=str, default_value="all", doc="Modules to convert: all, 7, 0-15 or 0,2,5."
    )

    locals().update(counter_attributes(DataConvert.counters_spec))

    def make_stage(self, config: DaqConfig) -> DataConvert:
        return DataConvert(config, parse_modules(self.Modules), self.GainsFile, self.PedestalsFile)


def main() -> None:
    """Run the device server."""
    serve(StdDaqDataConvert)


if __name__ == "__main__":
    main()
