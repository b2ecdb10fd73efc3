"""Tango class of the array-1.0 receiver."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.array10_receiver import Array10Receiver


class StdDaqArray10Receiver(StageDevice):
    """Receives the images of a camera over array-1.0 and publishes them; owns the image ring."""

    stage_type = Array10Receiver

    Address = device_property(
        dtype=str, default_value="", doc="ZeroMQ address that the camera binds: tcp://HOST:PORT."
    )
    Connections = device_property(
        dtype=int, default_value=4, doc="Parallel connections; one is opened with SocketType sub."
    )
    SocketType = device_property(
        dtype=str, default_value="pull", doc="pull: the camera binds PUSH; sub: it binds PUB."
    )

    locals().update(counter_attributes(Array10Receiver.counters_spec))

    def make_stage(self, config: DaqConfig) -> Array10Receiver:
        return Array10Receiver(config, self.Address, self.Connections, self.SocketType.lower())

    @attribute(
        dtype=str, label="last fault", doc="Why a message was dropped the last time; empty if none was."
    )
    def lastFault(self) -> str:
        return "" if self._stage is None else cast(Array10Receiver, self.stage).last_fault


def main() -> None:
    """Run the device server."""
    serve(StdDaqArray10Receiver)


if __name__ == "__main__":
    main()
