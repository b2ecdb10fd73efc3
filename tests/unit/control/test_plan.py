"""Which servers a configuration needs."""

from pathlib import Path

import pytest

from tango_stddaq.config import from_dict
from tango_stddaq.control.plan import plan
from tango_stddaq.control.registration import dsconfig, startup_level
from tango_stddaq.errors import ConfigError
from tango_stddaq.sim import demo_config

from ...conftest import eiger_config


def test_writers_follow_the_compressor_that_feeds_them(detector_name: str) -> None:
    config = eiger_config(
        detector_name,
        number_of_writers=2,
        compressors=[{"method": "h5bitshuffle_lz4"}, {"method": "blosc2"}],
        writer_source="blosc2",
    )
    stages = plan(config, Path("config.json")).stages
    classes = [server.tango_class for server in stages]
    compressors = [server for server in stages if server.tango_class == "StdDaqCompressor"]
    assert [s.properties["Method"] for s in compressors] == [["h5bitshuffle_lz4"], ["blosc2"]]
    assert [s.device for s in compressors] == [
        f"{detector_name}/stddaq/compressor-{i}" for i in range(2)
    ]
    for server in stages:
        if server.tango_class in ("StdDaqFileWriter", "StdDaqWriterDriver"):
            assert server.properties["Suffix"] == ["blosc2"]
    # A ring is there before those who read it, and all of them before packets come.
    assert classes.index("StdDaqModuleSync") < classes.index("StdDaqCompressor")
    assert classes.index("StdDaqCompressor") < classes.index("StdDaqFileWriter")
    assert classes[-1] == "StdDaqUdpReceiver"


def test_no_compressor_without_being_asked_for(detector_name: str) -> None:
    stages = plan(eiger_config(detector_name), Path("config.json")).stages
    assert "StdDaqCompressor" not in [server.tango_class for server in stages]
    suffixes = {tuple(s.properties["Suffix"]) for s in stages if "Suffix" in s.properties}
    assert suffixes == {("image",)}


def test_a_gigafrost_with_writers_has_a_metadata_writer_and_its_driver_knows(detector_name: str) -> None:
    for n_writers in (0, 2):
        config = from_dict(demo_config.build("gigafrost", detector_name, 16, n_writers))
        stages = {s.tango_class: s for s in plan(config, Path("config.json"), ("/data",)).stages}
        assert ("StdDaqMetaWriter" in stages) == (n_writers > 0)
        told = stages["StdDaqWriterDriver"].properties.get("MetadataWriter")
        assert told == (["true"] if n_writers else None)
    assert stages["StdDaqMetaWriter"].device == f"{detector_name}/stddaq/meta-writer-0"
    assert stages["StdDaqMetaWriter"].properties["OutputRoots"] == ["/data"]


def test_only_a_gigafrost_has_a_metadata_writer(detector_name: str) -> None:
    stages = plan(eiger_config(detector_name), Path("config.json")).stages
    assert "StdDaqMetaWriter" not in [server.tango_class for server in stages]
    assert not [s for s in stages if "MetadataWriter" in s.properties]


def test_dsconfig_gets_every_server_with_its_device_and_properties() -> None:
    system = plan(eiger_config("D", number_of_writers=2), Path("/etc/stddaq/D.json"), ("/data",), True)
    servers = dsconfig(system)["servers"]
    for server in system.servers:
        device = servers[server.tango_class][server.instance][server.tango_class][server.device]
        assert device["properties"] == {k: v for k, v in server.properties.items() if v}
    assert sum(len(instances) for instances in servers.values()) == len(system.servers)
    assert servers["StdDaqFileWriter"].keys() == {"D-0", "D-1"}


def test_stages_start_before_the_facade_and_the_simulator_last() -> None:
    system = plan(eiger_config("D"), Path("c.json"), simulate=True)
    levels = {server.tango_class: startup_level(system, server) for server in system.servers}
    assert (levels.pop("StdDaq"), levels.pop("StdDaqSimulator")) == (2, 3)
    assert set(levels.values()) == {1}


def test_a_live_stream_says_in_the_configuration_what_it_speaks(tmp_path: Path) -> None:
    streams = {
        "tcp://*:9001": {"type": "forward"},
        "tcp://*:9002": {
            "type": "periodic", "config": [1, 5], "protocol": "bsread", "compression": "bitshuffle_lz4",
            "source": "delay-filter",
        },
    }  # fmt: skip
    stages = plan(eiger_config("T", live_stream_configs=streams), tmp_path / "config.json").stages
    plain, other = (entry.properties for entry in stages if entry.tango_class == "StdDaqLiveStream")
    assert set(plain) == {"ConfigFile", "Address"}
    wanted = {
        "Protocol": ["bsread"], "Compression": ["bitshuffle_lz4"],
        "MetadataSuffix": ["delay-filter"], "ImageSuffix": ["delay-filter"],
    }  # fmt: skip
    assert {name: other[name] for name in wanted} == wanted


def test_array10_is_not_compressed() -> None:
    streams = {"tcp://*:9001": {"type": "forward", "compression": "bitshuffle_lz4"}}
    with pytest.raises(ConfigError, match="allowed with protocol 'bsread' only"):
        eiger_config("T", live_stream_configs=streams)
