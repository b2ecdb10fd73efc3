"""ZeroMQ channels: addresses and options of the contract, one owner per name."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from tango_stddaq.errors import ChannelError
from tango_stddaq.io import channels

from ...conftest import free_tcp_port

OWN = """
import sys, zmq
from tango_stddaq.io import channels
handle = channels.bind(zmq.PUSH, sys.argv[1])
print("bound", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def address(detector_name: str) -> str:
    return channels.ipc_address(detector_name, "image")


def path_of(address: str) -> Path:
    return Path(address.removeprefix("ipc://"))


def exchange(out: "zmq.Socket[bytes]", into: "zmq.Socket[bytes]") -> bytes:
    out.send(b"hello")
    assert into.poll(5000)
    return into.recv()


def test_addresses_are_those_of_the_contract() -> None:
    assert channels.ipc_address("EG", "image") == "ipc:///tmp/EG-image"
    assert channels.ipc_address("EG", "driver-0") == "ipc:///tmp/EG-driver-0"


def test_channel_has_the_contract_options(address: str) -> None:
    handle = channels.bind(zmq.PUSH, address)
    options = [handle.getsockopt(option) for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER)]
    channels.close(handle)
    assert options == [50_000, 50_000, 0]


@pytest.mark.parametrize(("sender", "receiver"), [(zmq.PUSH, zmq.PULL), (zmq.PULL, zmq.PUSH)])
def test_messages_go_through_whoever_binds(address: str, sender: int, receiver: int) -> None:
    connected = channels.connect(receiver, address)
    bound = channels.bind(sender, address)
    ends = (bound, connected) if sender == zmq.PUSH else (connected, bound)
    assert exchange(*ends) == b"hello"
    channels.close(bound)
    channels.close(connected)


def test_socket_file_is_for_the_group_and_vanishes_at_close(address: str) -> None:
    handle = channels.bind(zmq.PUB, address)
    assert stat.S_IMODE(path_of(address).stat().st_mode) == 0o660
    channels.close(handle)
    channels.close(handle)
    assert not path_of(address).exists()


def test_second_bind_in_one_process_is_refused_and_leaves_the_first_alone(address: str) -> None:
    first = channels.bind(zmq.PUSH, address)
    with pytest.raises(ChannelError, match="is in use by another process"):
        channels.bind(zmq.PUSH, address)
    into = channels.connect(zmq.PULL, address)
    assert exchange(first, into) == b"hello"
    channels.close(first)
    channels.close(into)


def test_name_belongs_to_a_process_as_long_as_it_lives_even_if_it_is_stopped(address: str) -> None:
    command = [sys.executable, "-c", OWN, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"bound\n"
        for _ in range(2):
            with pytest.raises(ChannelError, match="is in use by another process"):
                channels.bind(zmq.PUSH, address)
            os.kill(owner.pid, signal.SIGSTOP)
        owner.kill()
    assert path_of(address).exists()
    handle = channels.bind(zmq.PUSH, address)
    into = channels.connect(zmq.PULL, address)
    assert exchange(handle, into) == b"hello"
    channels.close(handle)
    channels.close(into)


def test_name_whose_owner_has_no_room_for_connections_is_not_taken_over(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path_of(address)))
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for handle in waiting:
            handle.setblocking(False)
            handle.connect_ex(str(path_of(address)))
        with pytest.raises(ChannelError, match="is in use by another process"):
            channels.bind(zmq.PUSH, address)
        for handle in waiting:
            handle.close()
    path_of(address).unlink()


def test_file_that_is_no_socket_is_left_alone(address: str) -> None:
    path_of(address).write_text("precious")
    with pytest.raises(ChannelError, match="is not a socket; remove it"):
        channels.bind(zmq.PUSH, address)
    assert path_of(address).read_text() == "precious"
    path_of(address).unlink()


def test_tcp_address_in_use_is_refused() -> None:
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    first = channels.bind(zmq.PUB, address)
    with pytest.raises(ChannelError, match="is in use by another process"):
        channels.bind(zmq.PUB, address)
    channels.close(first)


def test_tcp_address_can_be_bound_again_right_after_it_was_closed() -> None:
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    for _ in range(20):
        channels.close(channels.bind(zmq.PUB, address))


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1", "ipc:///nowhere/at/all"])
def test_impossible_address_is_refused(address: str) -> None:
    with pytest.raises(ChannelError, match=address):
        channels.bind(zmq.PUB, address)


def test_impossible_address_is_not_connected_to() -> None:
    with pytest.raises(ChannelError, match="cannot be connected"):
        channels.connect(zmq.SUB, "nonsense")


def test_message_too_long_for_metadata_is_not_taken(address: str) -> None:
    out = channels.bind(zmq.PUSH, address)
    into = channels.connect(zmq.PULL, address)
    out.send(bytes(channels.MAX_MESSAGE_BYTES + 1))
    out.send(b"after")
    received = []
    while into.poll(1500 if not received else 0):
        received.append(len(into.recv()))
    assert channels.MAX_MESSAGE_BYTES + 1 not in received
    channels.close(out)
    channels.close(into)
