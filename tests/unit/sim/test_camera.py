"""The simulated camera: what it puts on the wire in each format."""

import numpy as np
import pytest
import zmq

from tango_stddaq.codecs import array10, bsread
from tango_stddaq.codecs.bsread_compression import BsreadCompression
from tango_stddaq.codecs.bsread_message import Channel
from tango_stddaq.errors import ChannelError
from tango_stddaq.io import channels
from tango_stddaq.sim.camera import CameraFormat, SimulatedCamera

U16 = np.dtype("<u2")


def test_images_change_with_the_id_and_the_roi_is_cut_out_of_them() -> None:
    with SimulatedCamera((40, 50), U16) as camera:
        whole = camera.truth(7)
        assert not np.array_equal(whole, camera.truth(8))
        camera.format = CameraFormat(roi=(3, 4, 20, 30))
        np.testing.assert_array_equal(camera.truth(7), whole[3:23, 4:34])


def test_bsread_messages_hold_the_truth() -> None:
    made = CameraFormat(
        "bsread", BsreadCompression.LZ4, BsreadCompression.BITSHUFFLE_LZ4, "big", (1, 2, 30, 20), "C"
    )
    with SimulatedCamera((40, 50), U16, made) as camera:
        found = bsread.Decoder().decode(camera.message(7))
        assert found.channel == Channel("C", (30, 20), "uint16", "big", BsreadCompression.LZ4)
        assert found.main.timestamp == found.timestamp == camera.timestamp(7)
        out = np.empty(found.channel.n_bytes, np.uint8)
        bsread.unpack(found.channel, found.data, out)
        np.testing.assert_array_equal(out.view(U16).reshape(30, 20), camera.truth(7))


@pytest.mark.parametrize("encoding", ["little", "big"])
def test_array10_messages_hold_the_truth(encoding: str) -> None:
    made = CameraFormat("array-1.0", encoding=encoding)  # type: ignore[arg-type]
    with SimulatedCamera((40, 50), U16, made) as camera:
        image_id, image = array10.decode(*camera.message(9))
        assert image_id == 9
        np.testing.assert_array_equal(image, camera.truth(9))


def test_push_hands_images_out_in_turn_and_waits_for_nobody_forever() -> None:
    with SimulatedCamera((8, 8), U16) as camera:
        with pytest.raises(ChannelError, match="no receiver took an image"):
            camera.send(1, timeout_s=0.01)
        handles = [channels.connect(zmq.PULL, camera.endpoint) for _ in range(2)]
        try:
            camera.wait_for_connections(2)
            camera.run(4, 0)
            ids = [
                [bsread.decode_main_header(handle.recv_multipart()[0]).pulse_id for _ in range(2)]
                for handle in handles
            ]
        finally:
            for handle in handles:
                channels.close(handle)
        assert sorted(ids) == [[1, 3], [2, 4]]
        assert camera.n_sent == 4


def test_pub_counts_its_subscribers() -> None:
    with SimulatedCamera((8, 8), U16, socket_type="pub") as camera:
        with pytest.raises(ChannelError, match="0 of 1"):
            camera.wait_for_connections(1, timeout_s=0.01)
        handle = channels.connect(zmq.SUB, camera.endpoint)
        try:
            camera.wait_for_connections(1)
            camera.send(5)
            assert handle.poll(5000)
        finally:
            channels.close(handle)
