"""array-1.0 receiver: images of any source that speaks the protocol of the live stream."""

from collections.abc import Sequence

import numpy as np

from tango_stddaq.codecs import array10
from tango_stddaq.stages.camera_receiver import CameraImage, CameraReceiver


class Array10Receiver(CameraReceiver):
    """`image_id` is the header's frame. Parameters are those of `CameraReceiver`."""

    name = "array10-recv"

    def _decode(self, frames: Sequence[memoryview]) -> CameraImage | None:
        if len(frames) != 2:
            raise ValueError(f"array-1.0 message of {len(frames)} frames; 2 are needed")
        image_id, pixels = array10.decode(bytes(frames[0]), frames[1])

        def write_to(out: np.ndarray) -> None:
            little = out.view(pixels.dtype.newbyteorder("<"))
            np.copyto(little.reshape(pixels.shape), pixels)

        return CameraImage(image_id, (pixels.shape[0], pixels.shape[1]), pixels.dtype, write_to)
