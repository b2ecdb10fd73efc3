"""BSREAD receiver: images of a PCO or another camera, the first channel of bsread messages."""

from collections.abc import Sequence
from functools import partial

from tango_stddaq.codecs import bsread
from tango_stddaq.config import DaqConfig
from tango_stddaq.model import PcoMetadata
from tango_stddaq.stages.camera_receiver import CameraImage, CameraReceiver


class BsreadReceiver(CameraReceiver):
    """`image_id` is the pulse id; the metadata says the pulse's timestamp and the channel's name.

    Parameters are those of `CameraReceiver`.
    """

    name = "bsread-recv"

    def __init__(
        self,
        config: DaqConfig,
        address: str,
        n_connections: int = 4,
        socket_type: str = "pull",
        reorder_timeout_s: float = 0.5,
    ) -> None:
        super().__init__(config, address, n_connections, socket_type, reorder_timeout_s)
        self._decoder = bsread.Decoder()

    def _decode(self, frames: Sequence[memoryview]) -> CameraImage | None:
        message = self._decoder.decode(frames)
        if not len(message.data):  # the channel has no value for this pulse
            return None
        channel = message.channel
        return CameraImage(
            message.main.pulse_id,
            channel.shape,
            channel.dtype,
            partial(bsread.unpack, channel, message.data),
            PcoMetadata(*message.main.timestamp, channel.name),
        )
