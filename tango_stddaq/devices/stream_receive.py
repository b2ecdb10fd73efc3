"""Tango class of a stream receiver."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.stream_receive import StreamReceive


class StdDaqStreamReceive(StageDevice):
    """Receives a part of every image, or every n-th image, from another server."""

    stage_type = StreamReceive

    Address = device_property(
        dtype=str, default_value="", doc="ZeroMQ address of the sender: tcp://HOST:PORT."
    )
    Part = device_property(dtype=int, default_value=0, doc="Which of the senders it is, from 0.")

    locals().update(counter_attributes(StreamReceive.counters_spec))

    def make_stage(self, config: DaqConfig) -> StreamReceive:
        return StreamReceive(config, self.Address, self.Part)

    @attribute(dtype=str, label="last fault", doc="Why a message was dropped the last time.")
    def lastFault(self) -> str:
        return "" if self._stage is None else cast(StreamReceive, self._stage).last_fault


def main() -> None:
    """Run the device server."""
    serve(StdDaqStreamReceive)


if __name__ == "__main__":
    main()
