"""Tango class of the module synchronizer."""

from tango.server import device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.module_sync import ModuleSync


class StdDaqModuleSync(StageDevice):
    """Joins the frames of all modules to images and publishes them; owns the image ring."""

    stage_type = ModuleSync

    IdleTimeout = device_property(
        dtype=float,
        default_value=1.0,
        doc="Seconds without frames after which incomplete images go on as they are.",
    )

    locals().update(counter_attributes(ModuleSync.counters_spec))

    def make_stage(self, config: DaqConfig) -> ModuleSync:
        return ModuleSync(config, self.IdleTimeout)


def main() -> None:
    """Run the device server."""
    serve(StdDaqModuleSync)


if __name__ == "__main__":
    main()
