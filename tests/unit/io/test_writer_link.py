"""The driver's link to a writer, played by the two sockets that a writer opens."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import zmq

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
