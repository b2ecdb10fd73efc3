"""Compiled ZeroMQ calls between two real sockets."""

import threading
import time
from collections.abc import Iterator

import numba
import numpy as np
import pytest
import zmq

from tango_stddaq.errors import ChannelError
from tango_stddaq.io import channels, zmq_calls
from tango_stddaq.io.zmq_calls import handle_of, receive_rows, send_rows

WAIT_MS = 5000


@pytest.fixture
def pair(detector_name: str) -> Iterator[tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]]:
    address = channels.ipc_address(detector_name, "test")
    out = channels.bind(zmq.PUSH, address, 10)
    there = channels.connect(zmq.PULL, address, 10)
    assert out.poll(WAIT_MS, zmq.POLLOUT)
    yield out, there
    channels.close(there)
    channels.close(out)


def rows_of(*messages: bytes, room: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((len(messages), room), np.uint8)
    for row, data in zip(rows, messages, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows, np.array([len(data) for data in messages], np.int64)


def take(there: "zmq.Socket[bytes]", n: int, room: int = 8) -> list[bytes]:
    found: list[bytes] = []
    rows, lengths = np.zeros((n, room), np.uint8), np.zeros(n, np.int64)
    deadline_s = time.monotonic() + WAIT_MS / 1000
    while len(found) < n and time.monotonic() < deadline_s:
        n_new = receive_rows(handle_of(there), 20, rows, lengths)
        found += [rows[i, : lengths[i]].tobytes() for i in range(n_new)]
    return found


def test_messages_arrive_as_they_were_sent(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    out, there = pair
    messages = [b"a", b"", b"bcdefghi", b"jk"]
    assert send_rows(handle_of(out), *rows_of(*messages), 0, 1) == 4
    assert take(there, 4) == messages


def test_every_other_row_is_sent(pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]) -> None:
    out, there = pair
    assert send_rows(handle_of(out), *rows_of(b"0", b"1", b"2", b"3", b"4"), 1, 2) == 2
    assert take(there, 2) == [b"1", b"3"]


def test_a_row_of_negative_length_is_left_out(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    out, there = pair
    rows, lengths = rows_of(b"0", b"1", b"2")
    lengths[1] = -1
    assert send_rows(handle_of(out), rows, lengths, 0, 1) == 3
    assert take(there, 2) == [b"0", b"2"]
    assert not there.poll(50)


def test_of_a_longer_message_the_length_is_told(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    out, there = pair
    out.send(b"0123456789abc")
    out.send(b"next")
    rows, lengths = np.zeros((2, 8), np.uint8), np.zeros(2, np.int64)
    assert there.poll(WAIT_MS)
    n = receive_rows(handle_of(there), WAIT_MS, rows, lengths)
    if n == 1:
        n += receive_rows(handle_of(there), WAIT_MS, rows[1:], lengths[1:])
    assert (n, lengths.tolist()) == (2, [13, 4])
    assert rows[0].tobytes() == b"01234567"
    assert rows[1, :4].tobytes() == b"next"


def test_sending_ends_where_nobody_takes_it(detector_name: str) -> None:
    out = channels.bind(zmq.PUSH, channels.ipc_address(detector_name, "test"), 10)
    assert send_rows(handle_of(out), *rows_of(b"a", b"b"), 0, 1) == 0
    channels.close(out)


def test_receiving_waits_for_the_first_message_only(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    out, there = pair
    rows, lengths = np.zeros((4, 8), np.uint8), np.zeros(4, np.int64)
    assert receive_rows(handle_of(there), 0, rows, lengths) == 0
    assert receive_rows(handle_of(there), 10, rows, lengths) == 0
    later = threading.Timer(0.2, out.send, [b"x"])
    later.start()
    assert receive_rows(handle_of(there), WAIT_MS, rows, lengths) == 1
    later.join()


def test_an_error_is_raised_and_later_is_none(
    pair: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    out, _ = pair
    rows, lengths = np.zeros((1, 8), np.uint8), np.zeros(1, np.int64)
    found = receive_rows(handle_of(out), 0, rows, lengths)  # a PUSH socket receives nothing
    assert found < 0
    with pytest.raises(ChannelError, match="ZeroMQ: "):
        zmq_calls.check(found)
    for result in (0, 7, -zmq_calls.EAGAIN, -zmq_calls.EINTR):
        assert zmq_calls.check(result) == result


def test_what_zmq_poll_writes_to_is_not_freed_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As compiled: without the pass that by chance moved the end of an array behind the call."""
    monkeypatch.setattr(numba.config, "LLVM_REFPRUNE_PASS", 0)
    wait = numba.njit(zmq_calls.wait.py_func)
    wait.compile("(int64, int64)")
    (code,) = wait.inspect_llvm().values()
    (block,) = [part for part in code.split("\n\n") if "call i32 @zmq_poll(" in part]
    assert "@NRT_decref(ptr nonnull" not in block.split("@zmq_poll(")[0]
