"""The driver's link to a writer, played by the two sockets that a writer opens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.codecs import writer_action
from tango_stddaq.codecs.writer_action import (
    Action,
    CloseFile,
    ConfirmLastImage,
    CreateFile,
    RecordImage,
    Response,
)
from tango_stddaq.errors import ChannelError
from tango_stddaq.io import channels
from tango_stddaq.stages.writer_link import WriterLink
from tango_stddaq.stages.writer_links import WriterLinks

from .test_image_file import metadata_of, small_config

WAIT_MS = 5000


@dataclass
class Writer:
    """The other end, as an existing writer opens it."""

    actions: "zmq.Socket[bytes]"
    replies: "zmq.Socket[bytes]"

    def take(self) -> Action:
        assert self.actions.poll(WAIT_MS)
        return writer_action.decode(self.actions.recv())

    def answer(self, response: Response) -> None:
        self.answer_bytes(writer_action.encode_response(response))

    def answer_bytes(self, data: bytes) -> None:
        assert self.replies.poll(WAIT_MS, zmq.POLLOUT)
        self.replies.send(data)


@pytest.fixture
def link(detector_name: str) -> Iterator[WriterLink]:
    link = WriterLink(small_config(detector_name), 0)
    yield link
    link.close()


@pytest.fixture
def writer(detector_name: str, link: WriterLink) -> Iterator[Writer]:
    replies = channels.bind(zmq.PUSH, channels.ipc_address(detector_name, "writer-0"))
    actions = channels.connect(zmq.PULL, channels.ipc_address(detector_name, "driver-0"))
    assert link._out.poll(WAIT_MS, zmq.POLLOUT)  # they have found each other, in both directions
    while not link._is_connected:
        link.pump()
    yield Writer(actions, replies)
    channels.close(actions)
    channels.close(replies)


def reply_of(link: WriterLink) -> Response:
    assert link._replies.poll(WAIT_MS)
    reply = link.take_reply()
    assert reply is not None
    return reply


def test_actions_arrive_in_order_whoever_starts_first(link: WriterLink, detector_name: str) -> None:
    actions: list[Action] = [CreateFile("/data/a0.h5", 1000)]
    actions += [RecordImage(metadata_of(image_id)) for image_id in range(1000)]
    actions += [ConfirmLastImage(), CloseFile()]
    for action in actions:
        link.send(action)
    replies = channels.bind(zmq.PUSH, channels.ipc_address(detector_name, "writer-0"))
    into = channels.connect(zmq.PULL, channels.ipc_address(detector_name, "driver-0"))
    found: list[Action] = []
    while len(found) < len(actions):
        link.pump()
        if into.poll(100):
            found.append(writer_action.decode(into.recv()))
    channels.close(into)
    channels.close(replies)
    assert found == actions


def test_reply_comes_back(link: WriterLink, writer: Writer) -> None:
    assert link.take_reply() is None
    link.send(CreateFile("/data/a0.h5"))
    assert writer.take() == CreateFile("/data/a0.h5")
    writer.answer(Response(False, "disk full", 3, 1))
    assert reply_of(link) == Response(False, "disk full", 3, 1)
    assert link.take_reply() is None


def test_reply_that_is_none_is_a_failure_not_a_crash(link: WriterLink, writer: Writer) -> None:
    link.send(CloseFile())
    writer.answer_bytes(b"\xff\xff\xff")
    assert not reply_of(link).ok


def test_writer_that_takes_nothing_is_stuck_longer_and_longer(link: WriterLink) -> None:
    link.send(CloseFile())
    first = link.stuck_s()
    link.pump()
    assert link.stuck_s() > first


def test_writer_that_takes_everything_is_not_stuck(link: WriterLink, writer: Writer) -> None:
    link.send(ConfirmLastImage())
    while link.stuck_s() > 0:
        link.pump()
    assert writer.take() == ConfirmLastImage()


def test_actions_dropped_do_not_arrive(link: WriterLink, detector_name: str) -> None:
    link.send(CreateFile("/data/old.h5"))
    link.drop_stale()
    link.send(CreateFile("/data/new.h5"))
    replies = channels.bind(zmq.PUSH, channels.ipc_address(detector_name, "writer-0"))
    into = channels.connect(zmq.PULL, channels.ipc_address(detector_name, "driver-0"))
    while not into.poll(50):
        link.pump()
    assert writer_action.decode(into.recv()) == CreateFile("/data/new.h5")
    channels.close(into)
    channels.close(replies)


def rows_of(numbers: range) -> tuple[np.ndarray, np.ndarray]:
    """A `RecordImage` for each number."""
    rows, lengths = np.zeros((len(numbers), 512), np.uint8), np.zeros(len(numbers), np.int64)
    for row, number in enumerate(numbers):
        data = np.frombuffer(writer_action.encode(RecordImage(metadata_of(number))), np.uint8)
        rows[row, : data.size], lengths[row] = data, data.size
    return rows, lengths


def test_batches_of_images_keep_their_order_beyond_what_the_writer_takes(
    link: WriterLink, detector_name: str
) -> None:
    replies = channels.bind(zmq.PUSH, channels.ipc_address(detector_name, "writer-0"))
    into = channels.connect(zmq.PULL, channels.ipc_address(detector_name, "driver-0"), hwm=10)
    while not (link._is_connected and link._out.poll(10, zmq.POLLOUT)):
        link.pump()
    expected: list[Action] = []
    for first in range(0, 10_000, 1000):
        link.send_images(*rows_of(range(first, first + 1000)), 1, 2)
        expected += [RecordImage(metadata_of(number)) for number in range(first + 1, first + 1000, 2)]
        if first == 5000:
            link.send(ConfirmLastImage())
            expected.append(ConfirmLastImage())
    assert link.has_waiting  # the queues of both sockets are full
    found: list[Action] = []
    while len(found) < len(expected):
        link.pump()
        while into.poll(0):
            found.append(writer_action.decode(into.recv()))
    assert found == expected
    assert not link.has_waiting
    channels.close(into)
    channels.close(replies)


class Taker:
    """A writer's link that keeps what it is given."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def send_images(self, rows: np.ndarray, lengths: np.ndarray, first: int = 0, step: int = 1) -> None:
        self.taken += rows[first : len(lengths) : step, 0].tolist()


@given(st.integers(1, 7), st.lists(st.integers(0, 20), max_size=10))
def test_images_go_round_robin_however_they_are_batched(n_writers: int, sizes: list[int]) -> None:
    links = WriterLinks.__new__(WriterLinks)
    takers, meta = [Taker() for _ in range(n_writers)], Taker()
    links.writers, links.meta = cast("list[WriterLink]", takers), cast("WriterLink", meta)
    n_before = 0
    for size in sizes:
        numbers = np.arange(n_before, n_before + size, dtype=np.uint8)
        links.dispatch(n_before, numbers.reshape(-1, 1), np.ones(size, np.int64))
        n_before += size
    assert [taker.taken for taker in takers] == [
        list(range(first, n_before, n_writers)) for first in range(n_writers)
    ]
    assert meta.taken == list(range(n_before))


def test_file_name_too_long_for_a_message_is_an_error_and_nothing_waits(
    link: WriterLink, writer: Writer
) -> None:
    with pytest.raises(ValueError, match="is the file name too long"):
        link.send(CreateFile("/" + "x" * 600))
    link.send(CloseFile())
    assert writer.take() == CloseFile()


def test_second_driver_is_refused(link: WriterLink, detector_name: str) -> None:
    with pytest.raises(ChannelError, match=f"{detector_name}-driver-0"):
        WriterLink(small_config(detector_name), link.writer_id)
