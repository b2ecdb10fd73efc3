"""What the Tango classes of camera receivers have in common."""

from typing import cast

from tango.server import attribute, device_property

from tango_stddaq.devices.base import StageDevice
from tango_stddaq.stages.camera_receiver import CameraReceiver


class CameraReceiverDevice(StageDevice):
    """Where the camera is, how it is connected to, and what was wrong with its messages."""

    Address = device_property(
        dtype=str, default_value="", doc="ZeroMQ address that the camera binds: tcp://HOST:PORT."
    )
    Connections = device_property(
        dtype=int, default_value=4, doc="Parallel connections; one is opened with SocketType sub."
    )
    SocketType = device_property(
        dtype=str, default_value="pull", doc="pull: the camera binds PUSH; sub: it binds PUB."
    )

    @attribute(
        dtype=str, label="last fault", doc="Why a message was dropped the last time; empty if none was."
    )
    def lastFault(self) -> str:
        return "" if self._stage is None else cast(CameraReceiver, self._stage).last_fault
