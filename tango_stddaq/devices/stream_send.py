"""Tango class of a stream sender."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve
from tango_stddaq.stages.stream_send import StreamSend


class StdDaqStreamSend(StageDevice):
    """Sends a part of every image, or every n-th image, to other servers."""

    stage_type = StreamSend

    Address = device_property(
        dtype=str, default_value="", doc="ZeroMQ address to bind: tcp://HOST:PORT."
    )
    Part = device_property(dtype=int, default_value=0, doc="Which of the senders this is, from 0.")
    Suffix = device_property(dtype=str, default_value="image", doc="Images to send.")

    locals().update(counter_attributes(StreamSend.counters_spec))

    def make_stage(self, config: DaqConfig) -> StreamSend:
        return StreamSend(config, self.Address, self.Part, self.Suffix)

    @attribute(dtype=str, label="address", doc="Address that receivers connect to.")
    def address(self) -> str:
        return self.Address if self._stage is None else cast(StreamSend, self._stage).endpoint

    @attribute(
        dtype=(str,),
        max_dim_x=1024,
        label="receivers",
        doc="One line for each receiver: its address, how far behind it is, what it lost.",
    )
    def clients(self) -> list[str]:
        return [] if self._stage is None else cast(StreamSend, self._stage).clients


def main() -> None:
    """Run the device server."""
    serve(StdDaqStreamSend)


if __name__ == "__main__":
    main()
