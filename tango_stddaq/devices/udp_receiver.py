"""Tango class of the UDP receiver."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import counter_attributes, serve
from tango_stddaq.devices.gain_maps_face import GainMapsFace
from tango_stddaq.processing.module_sets import parse_modules
from tango_stddaq.stages.udp_receiver import ReceiveMode, UdpReceiver


class StdDaqUdpReceiver(GainMapsFace):
    """Receives the packets of one or many detector modules straight into the image ring."""

    stage_type = UdpReceiver

    Modules = device_property(
        dtype=str, default_value="all", doc="Modules to receive: all, 7, 0-15 or 0,2,5."
    )
    Mode = device_property(
        dtype=str, default_value="direct", doc="direct: into the image ring; frames: frame rings."
    )
    FrameTimeout = device_property(
        dtype=float, default_value=0.5, doc="Seconds without packets after which a frame is ended."
    )

    locals().update(counter_attributes(UdpReceiver.counters_spec))

    def make_stage(self, config: DaqConfig) -> UdpReceiver:
        return UdpReceiver(
            config,
            parse_modules(self.Modules),
            ReceiveMode(self.Mode),
            self.FrameTimeout,
            gains_file=self.GainsFile,
            pedestals_file=self.PedestalsFile,
        )

    @attribute(
        dtype=("DevULong64",),
        max_dim_x=1024,
        unit="packets",
        label="missing packets per module",
        doc="Packets missing so far of each module, in the order of moduleNumbers.",
    )
    def missingPacketsPerModule(self) -> list[int]:
        return [] if self._stage is None else self._receiver().missing_per_module.tolist()

    @attribute(dtype=("DevULong",), max_dim_x=1024, label="modules", doc="Modules this receiver serves.")
    def moduleNumbers(self) -> list[int]:
        return [] if self._stage is None else list(self._receiver().modules)

    @attribute(
        dtype="DevULong64",
        unit="bytes",
        label="receive buffer",
        doc="Kernel receive buffer of each port as it was granted; see net.core.rmem_max.",
    )
    def receiveBufferBytes(self) -> int:
        return 0 if self._stage is None else self._receiver().buffer_bytes

    def _receiver(self) -> UdpReceiver:
        return cast(UdpReceiver, self.stage)


def main() -> None:
    """Run the device server."""
    serve(StdDaqUdpReceiver)


if __name__ == "__main__":
    main()
