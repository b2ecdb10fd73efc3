"""Buffers that ZeroMQ sends from: busy as long as somebody may read them, then free again."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from tango_stddaq.errors import ChannelError
from tango_stddaq.io.send_buffers import SendBuffers

N_BYTES = 100_000


@pytest.fixture
def pair() -> Iterator[tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]]:
    """A sender and a receiver over TCP; after the context has ended nothing uses the buffers."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as out, context.socket(zmq.PULL) as handle:
        for each in (out, handle):
            each.setsockopt(zmq.LINGER, 0)
        port = out.bind_to_random_port("tcp://127.0.0.1")
        handle.connect(f"tcp://127.0.0.1:{port}")
        assert out.poll(10_000, zmq.POLLOUT)
        yield out, handle


def wait_free(buffers: SendBuffers) -> None:
    deadline = time.monotonic() + 10
    while buffers.n_busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill_and_send(buffers: SendBuffers, out: "zmq.Socket[bytes]", value: int, flags: int = 0) -> int:
    number = buffers.free()
    assert number is not None
    buffers[number][:] = value
    buffers.send(out, number, N_BYTES, flags)
    return number


def test_bytes_arrive_and_the_lowest_buffer_is_used_again(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    out, handle = pair
    buffers = SendBuffers(N_BYTES, 10)
    for value in range(50):
        assert fill_and_send(buffers, out, value) == 0
        assert handle.recv() == bytes([value]) * N_BYTES
        wait_free(buffers)
    assert len(buffers._arrays) == 4


def test_the_pool_grows_to_its_limit_and_shrinks_again(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    out, handle = pair
    buffers = SendBuffers(N_BYTES, 300)
    handle.setsockopt(zmq.RCVHWM, 1)
    n_sent = 0
    while buffers.free() is not None and out.poll(200, zmq.POLLOUT):
        fill_and_send(buffers, out, n_sent % 256)
        n_sent += 1
    assert 4 < len(buffers._arrays) <= 300
    for at in range(n_sent):  # in order, and nobody wrote over what had not been sent
        assert handle.recv() == bytes([at % 256]) * N_BYTES
    wait_free(buffers)
    buffers.shrink()
    buffers.shrink()
    assert len(buffers._arrays) == 4


def test_none_is_free_while_all_are_held() -> None:
    buffers = SendBuffers(16, 6)
    for number in range(6):
        assert buffers.free() == number
        buffers._busy[number] = 1
    assert buffers.free() is None
    buffers._busy[3] = 0
    assert buffers.free() == 3


def test_a_part_of_a_buffer_can_be_one_frame_of_several(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    out, handle = pair
    buffers = SendBuffers(N_BYTES, 10)
    buffers[0][:] = np.arange(N_BYTES, dtype=np.uint8)
    buffers.send(out, 0, 10, zmq.SNDMORE)
    out.send(b"after")
    assert handle.recv_multipart() == [bytes(range(10)), b"after"]


def test_what_zeromq_refuses_is_an_error_and_frees_the_buffer() -> None:
    buffers = SendBuffers(N_BYTES, 10)
    with zmq.Context() as context, context.socket(zmq.PULL) as wrong:
        with pytest.raises(ChannelError, match="not sent"):
            buffers.send(wrong, 0, 10)
        assert buffers.n_busy == 0
