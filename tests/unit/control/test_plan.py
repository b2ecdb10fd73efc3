"""Which servers a configuration needs."""

from pathlib import Path

from tango_stddaq.control.plan import plan

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
