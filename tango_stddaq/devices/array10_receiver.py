"""Tango class of the array-1.0 receiver."""

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import counter_attributes, serve
from tango_stddaq.devices.camera_receiver import CameraReceiverDevice
from tango_stddaq.stages.array10_receiver import Array10Receiver


class StdDaqArray10Receiver(CameraReceiverDevice):
    """Receives the images of a camera over array-1.0 and publishes them; owns the image ring."""

    stage_type = Array10Receiver

    locals().update(counter_attributes(Array10Receiver.counters_spec))

    def make_stage(self, config: DaqConfig) -> Array10Receiver:
        return Array10Receiver(config, self.Address, self.Connections, self.SocketType.lower())


def main() -> None:
    """Run the device server."""
    serve(StdDaqArray10Receiver)


if __name__ == "__main__":
    main()
