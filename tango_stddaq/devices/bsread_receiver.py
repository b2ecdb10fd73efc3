"""Tango class of the BSREAD receiver."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.bsread_receiver import BsreadReceiver


class StdDaqBsreadReceiver(StageDevice):
    """Receives the images of a camera over BSREAD and publishes them; owns the image ring."""

    stage_type = BsreadReceiver

    Address = device_property(
        dtype=str, default_value="", doc="ZeroMQ address that the camera binds: tcp://HOST:PORT."
    )
    Connections = device_property(
        dtype=int, default_value=4, doc="Parallel connections; one is opened with SocketType sub."
    )
    SocketType = device_property(
        dtype=str, default_value="pull", doc="pull: the camera binds PUSH; sub: it binds PUB."
    )

    locals().update(counter_attributes(BsreadReceiver.counters_spec))

    def make_stage(self, config: DaqConfig) -> BsreadReceiver:
        return BsreadReceiver(config, self.Address, self.Connections, self.SocketType.lower())

    @attribute(
        dtype=str, label="last fault", doc="Why a message was dropped the last time; empty if none was."
    )
    def lastFault(self) -> str:
        return "" if self._stage is None else cast(BsreadReceiver, self.stage).last_fault


def main() -> None:
    """Run the device server."""
    serve(StdDaqBsreadReceiver)


if __name__ == "__main__":
    main()
