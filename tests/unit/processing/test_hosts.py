"""Which server runs where, and over which ports hosts talk to each other."""

from pathlib import Path
from typing import Any

import pytest

from tango_stddaq.config import DaqConfig
from tango_stddaq.control.plan import plan
from tango_stddaq.errors import ConfigError
from tango_stddaq.processing.hosts import (
    check_host,
    order_port,
    sender_port,
    writer_channels,
    writers_of,
)

from ...conftest import eiger_config

THREE = {
    "recv": {"address": "10.0.0.1", "writers": [0]},
    "disk1": {"address": "10.0.0.2", "writers": [1, 3]},
    "disk2": {"address": "10.0.0.3", "writers": [2]},
}


def config_of(name: str, **changes: Any) -> DaqConfig:
    return eiger_config(
        name,
        **{
            "number_of_writers": 4,
            "max_number_of_forwarders_spawned": 2,
            "use_all_forwarders": True,
            "hosts": THREE,
            **changes,
        },
    )


def test_no_two_channels_share_a_port(detector_name: str) -> None:
    config = config_of(detector_name)
    remote = [channels for i in range(4) if (channels := writer_channels(config, i)) is not None]
    assert len(remote) == 3
    assert writer_channels(config, 0) is None  # beside the driver
    assert writer_channels(config, "meta") is None
    ports = [order_port(config), sender_port(config, 0), sender_port(config, 1)]
    ports += [int(address.rsplit(":", 1)[1]) for pair in remote for address in pair]
    assert len(set(ports)) == len(ports)
    assert all(driver.startswith("tcp://10.0.0.1:") for driver, _ in remote)
    channels = writer_channels(config, 3)
    assert channels is not None
    assert channels[1].startswith("tcp://10.0.0.2:")


def test_one_host_talks_over_the_names_of_the_contract(detector_name: str) -> None:
    config = config_of(detector_name, hosts={})
    assert [writer_channels(config, i) for i in range(4)] == [None] * 4
    assert writers_of(config, "") == (0, 1, 2, 3)
    assert {server.host for server in plan(config, Path("c.json")).servers} == {""}


@pytest.mark.parametrize("whole", [False, True])
def test_every_host_has_what_it_needs_in_the_order_of_its_start(detector_name: str, whole: bool) -> None:
    config = config_of(detector_name, sender_sends_full_images=whole)
    system = plan(config, Path("c.json"), ("/data",))
    by_host = {
        host: [s.tango_class.removeprefix("StdDaq") for s in system.servers if s.host == host]
        for host in THREE
    }
    sync = "MetadataSync" if whole else "StreamSync"
    receivers = ["StreamReceive"] * 2
    assert by_host["disk1"] == [sync, "FileWriter", "FileWriter", *receivers]
    assert by_host["disk2"] == [sync, "FileWriter", *receivers]
    assert by_host["recv"].count("StreamSend") == 2
    assert by_host["recv"].count("MetadataStream") == whole
    assert by_host["recv"][0] == "ModuleSync"
    assert by_host["recv"][-2:] == ["UdpReceiver", ""]
    assert len({s.device for s in system.servers}) == len(system.servers)
    assert len({s.server for s in system.servers}) == len(system.servers)
    assert set(system.facade.properties["StageDevices"]) == {s.device for s in system.stages}
    assert all(
        s.properties["OutputRoots"] == ["/data"]
        for s in system.servers
        if s.tango_class == "StdDaqFileWriter"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"number_of_writers": 5}, r"writers \[0, 1, 2, 3\].*5 writers"),
        ({"number_of_writers": 3}, r"writers \[0, 1, 2, 3\]"),
        ({"forward_port": 65530}, "forward_port 65530: last port"),
        ({"compressors": [{"method": "blosc2"}]}, "compressors: allowed are none"),
        ({"hosts": {"a": {"address": "10.0.0.1; rm"}}}, "address"),
        ({"hosts": {"a/b": {"address": "10.0.0.1"}}}, "hosts"),
    ],
)
def test_hosts_that_do_not_fit_are_refused(
    detector_name: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(detector_name, **changes)


def test_an_unknown_host_is_named_with_those_there_are(detector_name: str) -> None:
    config = config_of(detector_name)
    check_host(config, "disk1")
    with pytest.raises(ConfigError, match=r"host 'disk9': allowed.*recv, disk1, disk2"):
        check_host(config, "disk9")
