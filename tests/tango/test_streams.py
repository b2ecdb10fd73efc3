"""Streams as Tango devices: what a property says is what clients receive."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tango
import zmq
from tango import DevState

from tango_stddaq.control.plan import ServerPlan, plan
from tango_stddaq.devices.system import System
from tango_stddaq.sim.detector import SimulatedDetector

from ..conftest import eiger_config
from .conftest import wait_until

pytestmark = pytest.mark.tango


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """An Eiger with two more streams than its configuration says."""
    directory = tmp_path_factory.mktemp("streams")
    config = eiger_config(f"T{os.getpid()}-{uuid.uuid4().hex[:8]}", ring_slots=200)
    path = directory / "config.json"
    path.write_text(config.model_dump_json(exclude_unset=True))

    def server(kind: str, module: str, **properties: list[str]) -> ServerPlan:
        name = f"{config.detector_name}/stddaq/more-{module}"
        values = {"ConfigFile": [str(path)], "Address": ["tcp://127.0.0.1:*"], **properties}
        return ServerPlan(kind, f"tango_stddaq.devices.{module}", "more", name, values)

    more = (
        server(
            "StdDaqLiveStream", "live_stream", Protocol=["bsread"], Compression=["bitshuffle_lz4"],
            Mode=["batch"], ModeNumbers=["2", "5"],
        ),
        server("StdDaqMetadataStream", "metadata_stream", Suffix=["image"]),
    )  # fmt: skip
    whole = plan(config, path)
    with System(config, replace(whole, stages=(*whole.stages, *more)), directory / "logs") as running:
        yield running


@pytest.fixture
def live(system: System) -> tango.DeviceProxy:
    return system.device(system.plan.stages[-2])


@pytest.fixture
def metadata(system: System) -> tango.DeviceProxy:
    return system.device(system.plan.stages[-1])


@contextmanager
def client(device: tango.DeviceProxy) -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context() as context, context.socket(zmq.SUB) as handle:
        handle.setsockopt(zmq.LINGER, 0)
        handle.setsockopt(zmq.SUBSCRIBE, b"")
        handle.connect(device.address)
        wait_until(lambda: device.nActiveConnections == 1, 10)
        yield handle
    wait_until(lambda: device.nActiveConnections == 0, 10)


def test_properties_choose_protocol_compression_and_images(
    system: System, live: tango.DeviceProxy
) -> None:
    assert live.protocol == "bsread bitshuffle_lz4"
    assert live.mode == "batch [2, 5.0]"
    with client(live) as handle:
        SimulatedDetector(system.config).run(12, 50.0)
        found = []
        for _ in range(5):
            assert handle.poll(10_000)
            main, header, data, stamp = handle.recv_multipart()
            found.append(json.loads(main)["pulse_id"])
            (channel,) = json.loads(header)["channels"]
            assert channel["shape"] == [1030, 514]
            assert channel["compression"] == "bitshuffle_lz4"
            assert int.from_bytes(data[:8], "big") == 514 * 1030 * 2
            assert len(stamp) == 16
        assert found == [1, 5, 6, 10, 11]
        wait_until(lambda: live.skipped == 7, 10)
        lines = list(live.clients)
        assert len(lines) == 1
        assert "127.0.0.1:" in lines[0]
        assert "0 lost" in lines[0]


def test_metadata_are_published_over_tcp(system: System, metadata: tango.DeviceProxy) -> None:
    with client(metadata) as handle:
        SimulatedDetector(system.config).run(3, 50.0, first_id=101)
        for image_id in (101, 102, 103):
            assert handle.poll(10_000)
            assert handle.recv()[:2] == bytes([8, image_id])  # field 1, a number
        wait_until(lambda: metadata.messages >= 3, 10)
    assert metadata.state() == DevState.RUNNING


def test_wrong_properties_leave_the_device_in_fault_with_the_reason(
    system: System, live: tango.DeviceProxy
) -> None:
    database = tango.Database(*system.tango_host.rsplit(":", 1))
    name = live.dev_name()
    for wrong, words in (
        ({"Protocol": ["video"]}, ("video", "array-1.0, bsread")),
        ({"Compression": ["gzip"]}, ("gzip", "none, bitshuffle_lz4")),
        ({"Mode": ["sometimes"]}, ("sometimes", "forward, batch", "periodic")),
        ({"ModeNumbers": ["7", "5"]}, ("batch", "[7.0, 5.0]", "n <= m")),
        ({"Address": ["nowhere"]}, ("nowhere", "tcp://HOST:PORT")),
    ):
        before = {key: list(database.get_device_property(name, key)[key]) for key in wrong}
        database.put_device_property(name, wrong)
        live.Init()
        assert live.state() == DevState.FAULT
        assert not [word for word in words if word not in live.status()], live.status()
        database.put_device_property(name, before)
        live.Init()
        assert live.state() == DevState.RUNNING


def test_the_new_class_describes_itself(metadata: tango.DeviceProxy) -> None:
    infos = [i for i in metadata.attribute_list_query_ex() if i.name not in ("State", "Status")]
    assert not [i.name for i in infos if i.description in ("", "No description") or not i.label]
    assert np.isfinite(metadata.rate)
