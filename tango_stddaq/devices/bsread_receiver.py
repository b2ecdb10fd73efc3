"""Tango class of the BSREAD receiver."""

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import counter_attributes, serve
from tango_stddaq.devices.camera_receiver import CameraReceiverDevice
from tango_stddaq.stages.bsread_receiver import BsreadReceiver


class StdDaqBsreadReceiver(CameraReceiverDevice):
    """Receives the images of a camera over BSREAD and publishes them; owns the image ring."""

    stage_type = BsreadReceiver

    locals().update(counter_attributes(BsreadReceiver.counters_spec))

    def make_stage(self, config: DaqConfig) -> BsreadReceiver:
        return BsreadReceiver(config, self.Address, self.Connections, self.SocketType.lower())


def main() -> None:
    """Run the device server."""
    serve(StdDaqBsreadReceiver)


if __name__ == "__main__":
    main()
