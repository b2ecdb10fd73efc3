"""`metadata-stream`: an internal metadata stream on a TCP address, byte for byte."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ChannelError, ConfigError
from tango_stddaq.io import channels
from tango_stddaq.stages.metadata_stream import MetadataStream

from ..conftest import free_tcp_port
from .programs import refused as refused_call
from .programs import running as program_running
from .programs import save
from .stages import running
from .test_camera_receivers import wait_until

pytestmark = pytest.mark.system

PAST = b"\x08\x05\xf2\x3f\x03new"
"""Image 5 with a field 1022 that only a reader of tomorrow knows."""


@contextmanager
def client(address: str) -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context() as context, context.socket(zmq.SUB) as handle:
        handle.setsockopt(zmq.LINGER, 0)
        handle.setsockopt(zmq.SUBSCRIBE, b"")
        handle.connect(address)
        yield handle


@contextmanager
def source(config: DaqConfig, suffix: str) -> Iterator["zmq.Socket[bytes]"]:
    handle = channels.bind(zmq.XPUB, channels.ipc_address(config.detector_name, suffix))
    try:
        yield handle
    finally:
        channels.close(handle)


@pytest.mark.parametrize("suffix", ["image", "delay-filter"])
def test_messages_arrive_byte_for_byte(config: DaqConfig, suffix: str) -> None:
    stage = MetadataStream(config, "tcp://127.0.0.1:*", suffix)
    messages = [b"\x08%c" % number for number in range(1, 100)] + [PAST, b"", b"rubbish"]
    with source(config, suffix) as out, running(stage):
        assert out.poll(10_000)
        with client(stage.endpoint) as one, client(stage.endpoint) as two:
            wait_until(lambda: stage.counters["n_active_connections"] == 2)
            for message in messages:
                out.send(message)
            for handle in (one, two):
                found = []
                while len(found) < len(messages):
                    assert handle.poll(10_000)
                    found.append(handle.recv())
                assert found == messages
        wait_until(lambda: stage.counters["n_active_connections"] == 0)
        assert stage.counters["messages"] == len(messages)
        assert stage.counters["bytes"] == sum(map(len, messages))


def test_a_source_that_comes_later_and_restarts_is_found(config: DaqConfig) -> None:
    stage = MetadataStream(config, "tcp://127.0.0.1:*")
    with running(stage), client(stage.endpoint) as handle:
        wait_until(lambda: stage.counters["n_active_connections"] == 1)
        for number in (1, 2):
            with source(config, "image") as out:
                assert out.poll(10_000)
                out.send(b"\x08%c" % number)
                assert handle.poll(10_000)
                assert handle.recv() == b"\x08%c" % number


def test_a_client_that_never_reads_holds_up_nobody(config: DaqConfig) -> None:
    stage = MetadataStream(config, "tcp://127.0.0.1:*")
    n_messages = 2000
    with source(config, "image") as out, running(stage):
        assert out.poll(10_000)
        with client(stage.endpoint) as reader, client(stage.endpoint):
            wait_until(lambda: stage.counters["n_active_connections"] == 2)
            for _ in range(n_messages):
                out.send(PAST)
            for _ in range(n_messages):
                assert reader.poll(10_000)
                reader.recv()


@pytest.mark.expects_errors
def test_addresses_that_cannot_be_bound_are_named(config: DaqConfig) -> None:
    with pytest.raises(ConfigError, match="'here'"):
        MetadataStream(config, "here")
    first = MetadataStream(config, "tcp://127.0.0.1:*")
    with running(first), pytest.raises(ChannelError, match="in use"):
        MetadataStream(config, first.endpoint).start()


def test_the_program_takes_the_arguments_of_the_existing_one(config: DaqConfig, tmp_path: Path) -> None:
    path = save(config, tmp_path / "config.json")
    refused_call("stage", "metadata-stream", path, words=("Usage:",))
    refused_call("stage", "metadata-stream", path, "here", words=("'here'", "allowed"))
    address = f"tcp://127.0.0.1:{free_tcp_port()}"
    with source(config, "filter") as out:
        call = ("stage", "metadata-stream", path, address, "-s", "filter")
        with program_running(tmp_path / "log", *call) as program:
            assert out.poll(30_000)
            with client(address) as handle:
                deadline = time.monotonic() + 20
                while not handle.poll(100):  # until the client's subscription has arrived
                    assert time.monotonic() < deadline
                    out.send(PAST)
                assert handle.recv() == PAST
            code, seconds = program.end()
            assert (code, seconds < 4) == (0, True), program.output
            assert f"metadata-stream,detector={config.detector_name}" in program.output
