"""The configuration file: defaults, sizes, and errors that name key, value and what is allowed."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq import config
from tango_stddaq.config import DaqConfig
from tango_stddaq.config_entries import LiveStreamConfig
from tango_stddaq.config_sizes import segment_bytes
from tango_stddaq.errors import ConfigError
from tango_stddaq.model import Dtype

MANDATORY: dict[str, Any] = {
    "detector_name": "EG05M",
    "detector_type": "eiger",
    "n_modules": 4,
    "bit_depth": 16,
    "image_pixel_height": 514,
    "image_pixel_width": 1030,
    "start_udp_port": 50020,
    "module_positions": {"0": [0, 0, 513, 255], "2": [0, 513, 513, 258]},
}


def parse(**changes: Any) -> DaqConfig:
    return config.parse(json.dumps({**MANDATORY, **changes}))


def error_of(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    return str(caught.value)


def test_defaults_are_those_of_the_contract() -> None:
    defaults = parse().model_dump(exclude=set(MANDATORY))
    assert defaults == {
        "hosts": {},
        "forward_port": 7100,
        "log_level": "info",
        "stats_collection_period": 10,
        "ram_buffer_gb": 0,
        "max_number_of_forwarders_spawned": 8,
        "use_all_forwarders": False,
        "sender_sends_full_images": False,
        "module_sync_queue_size": 50,
        "gpfs_block_size": 16777216,
        "number_of_writers": 0,
        "delay_filter_timeout": 10,
        "switch_user_active": False,
        "writer_user_id": None,
        "file_mode": None,
        "gains_file": "",
        "pedestals_file": "",
        "file_group": None,
        "submodule_info": {},
        "live_stream_configs": {},
        "influxdb": None,
        "ring_slots": None,
        "ring_memory": {"prefault": False, "huge_pages": False, "lock": False},
        "camera_address": None,
        "camera_protocol": "bsread",
        "compressors": (),
        "filters": (),
        "stages": (),
        "writer_source": "image",
    }


@pytest.mark.parametrize("key", MANDATORY)
def test_every_mandatory_key_is_named_when_missing(key: str) -> None:
    rest = {k: value for k, value in MANDATORY.items() if k != key}
    with pytest.raises(ConfigError, match=rf"{key}: is missing; expected: \w+"):
        config.from_dict(rest)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bit_depth": 12}, ["bit_depth", "12", "8, 16 or 32"]),
        ({"detector_type": "pilatus"}, ["detector_type", '"pilatus"', "'gigafrost'", "'eiger'"]),
        ({"n_modules": 0}, ["n_modules", "0", "greater than or equal to 1"]),
        ({"log_level": "loud"}, ["log_level", '"loud"', "'debug'"]),
        ({"log_level": 3}, ["log_level", "3", "'debug'"]),
        ({"detector_name": "a/b"}, ["detector_name", '"a/b"', "pattern"]),
        ({"detector_name": "a\n"}, ["detector_name", "pattern"]),
        ({"detector_name": "\ud800"}, ["detector_name", "unicode"]),
        ({"start_udp_port": 65533}, ["start_udp_port 65533", "65536", "at most 65535"]),
        ({"ram_buffer_gb": float("inf")}, ["ram_buffer_gb", "Infinity"]),
        ({"ram_buffer_gb": 1e308}, ["ram_buffer_gb", "1e+308", "less than or equal to"]),
        ({"ram_buffer_gb": -1}, ["ram_buffer_gb", "-1", "greater than or equal to 0"]),
        ({"stats_collection_period": 0}, ["stats_collection_period", "0", "greater than 0"]),
        ({"writer_user_id": 2**31}, ["writer_user_id", "2147483648"]),
        ({"module_positions": {"4": [0, 0, 513, 255]}}, ["module_positions", "'4'", "0 to 3"]),
        ({"module_positions": {"01": [0, 0, 513, 255]}}, ["module_positions", "'01'", "0 to 3"]),
        ({"module_positions": {"٣": [0, 0, 513, 255]}}, ["module_positions", "0 to 3"]),
        ({"module_positions": {"0": [0, 0, 513, 255], "2": [513, 9, 0, 0]}}, ["'2'", "lies over"]),
        ({"module_positions": {"0": [0, 0, 1030, 255]}}, ["[0, 0, 1030, 255]", "1030 x 514"]),
        ({"module_positions": {"0": [0, -1, 513, 254]}}, ["module_positions.0.1", "-1"]),
        ({"module_positions": {"0": [0, 0, 513]}}, ["module_positions.0.3", "missing"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_naming_key_value_and_what_is_allowed(
    changes: dict[str, Any], expected: list[str]
) -> None:
    error = error_of(**changes)
    assert [text for text in expected if text not in error] == []


def test_all_faults_are_reported_at_once() -> None:
    error = error_of(bit_depth=1, n_modules=0, number_of_writers=-1)
    assert len(error.splitlines()) == 4


@pytest.mark.parametrize(
    ("written", "level"),
    [("WARN", "warning"), ("err", "error"), ("Debug", "debug"), ("OFF", "off"), ("trace", "trace")],
)
def test_log_levels_are_taken_in_any_case_and_by_their_short_names(written: str, level: str) -> None:
    assert parse(log_level=written).log_level == level


@pytest.mark.parametrize("key", ["sizes", "segment", "comment", "unknown_keys"])
def test_unknown_keys_are_kept_and_shadow_nothing(key: str) -> None:
    parsed = parse(**{key: "mine"})
    assert parsed.unknown_keys == [key]
    assert parsed.model_dump()[key] == "mine"
    assert parsed.sizes == parse().sizes
    assert parsed.segment("image") == "EG05M-image"


@pytest.mark.parametrize(
    ("detector_type", "bit_depth", "dtype", "slot_bytes"),
    [
        ("eiger", 8, Dtype.UINT8, 514 * 1030),
        ("eiger", 16, Dtype.UINT16, 514 * 1030 * 2),
        ("eiger", 32, Dtype.UINT32, 514 * 1030 * 4),
        ("pco", 16, Dtype.UINT16, 514 * 1030 * 2),
        ("jungfrau-raw", 16, Dtype.UINT16, 514 * 1030 * 2),
        ("jungfrau-converted", 16, Dtype.FLOAT32, 514 * 1030 * 4),
        ("gigafrost", 32, Dtype.UINT16, 514 * 1030 * 2),
    ],
)
def test_a_slot_holds_one_converted_image(
    detector_type: str, bit_depth: int, dtype: Dtype, slot_bytes: int
) -> None:
    sizes = parse(detector_type=detector_type, bit_depth=bit_depth).sizes
    assert (sizes.dtype, sizes.slot_bytes, sizes.shape) == (dtype, slot_bytes, (514, 1030))


@pytest.mark.parametrize(
    ("changes", "n_slots"),
    [
        ({}, 1000),
        ({"ram_buffer_gb": 0.5}, 1000),  # 507 images
        ({"ram_buffer_gb": 10}, 10 * 2**30 // 1_058_840),
        ({"ring_slots": 50}, 50),
        ({"ring_slots": 50, "ram_buffer_gb": 10}, 50),
    ],
)
def test_slots_fill_the_buffer_but_are_at_least_1000(changes: dict[str, Any], n_slots: int) -> None:
    assert parse(**changes).sizes.n_slots == n_slots


def test_a_segment_is_rounded_up_to_2_mib() -> None:
    assert segment_bytes(1, 1) == 2 * 2**20
    assert segment_bytes(2, 2**20) == 2 * 2**20
    assert segment_bytes(2, 2**20 + 1) == 4 * 2**20
    assert parse().sizes.segment_bytes == 505 * 2 * 2**20  # 1000 * 514 * 1030 * 2 = 1 058 840 000


@pytest.mark.parametrize(
    ("block", "images"), [(16777216, 15), (1_058_840, 1), (1_058_839, 1), (1, 1), (2_117_680, 2)]
)
def test_a_chunk_holds_as_many_images_as_fit_a_block_and_at_least_one(block: int, images: int) -> None:
    assert parse(gpfs_block_size=block).sizes.images_per_chunk == images


def test_live_streams_are_read() -> None:
    streams = parse(
        live_stream_configs={
            "tcp://*:5000": {"type": "forward"},
            "tcp://127.0.0.1:5001": {"type": "batch", "config": [2, 10]},
            "tcp://host:5002": {"type": "periodic", "config": [1, 0.5]},
            "tcp://*:5003": {"type": "forward", "config": []},
        }
    ).live_stream_configs
    assert [stream.config for stream in streams.values()] == [None, (2, 10), (1, 0.5), None]


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("batch", None), ("batch", [0, 5]), ("batch", [6, 5]), ("batch", [1, 2.5]), ("periodic", [1, 0]),
        ("batch", [1, float("inf")]), ("periodic", [1, float("nan")]), ("periodic", [1]),
    ],
)  # fmt: skip
def test_a_live_stream_without_sensible_numbers_is_refused(kind: str, numbers: Any) -> None:
    error = error_of(live_stream_configs={"tcp://*:5000": {"type": kind, "config": numbers}})
    assert "live_stream_configs.tcp://*:5000" in error


@pytest.mark.parametrize("address", ["ipc:///tmp/a", "tcp://*", "*:5000", "tcp://*:5000\n"])
def test_a_live_stream_needs_a_tcp_address(address: str) -> None:
    error = error_of(live_stream_configs={address: {"type": "forward"}})
    assert repr(address) in error
    assert "tcp://HOST:PORT" in error


@pytest.mark.parametrize(
    "text",
    [b"", b"[1]", b"null", b"\xff", "{", "[" * 100_000, '{"a": 1, "a": 2}', '{"a": ' + "9" * 5000 + "}"],
)
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"^x\.json: "):
        config.parse(text, "x.json")


def test_a_huge_document_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ConfigError, match=str(config.MAX_CONFIG_BYTES)):
        config.parse(" " * (config.MAX_CONFIG_BYTES + 1))


def test_a_file_is_loaded_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "daq.json"
    with pytest.raises(ConfigError, match=rf"{path}: cannot be read"):
        config.load(path)
    path.write_text(json.dumps({**MANDATORY, "bit_depth": 1}))
    with pytest.raises(ConfigError, match=rf"^{path}:\n  bit_depth"):
        config.load(path)
    path.write_text(json.dumps(MANDATORY))
    assert config.load(str(path)) == parse()
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path)


TEXTS = st.text("ab0-/\0\ud800", max_size=4)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*DaqConfig.model_fields, "other"])


@given(st.dictionaries(KEYS, JSON_VALUES, max_size=4))
def test_any_json_gives_sizes_or_a_config_error(changes: dict[str, Any]) -> None:
    try:
        parsed = parse(**changes)
    except ConfigError as error:
        assert any(key in str(error) for key in changes)  # noqa: PT017
    else:
        sizes = parsed.sizes
        assert sizes.segment_bytes >= sizes.n_slots * sizes.slot_bytes > 0


@given(st.integers(1, 2**40), st.integers(1, 2**30))
def test_a_segment_holds_its_slots_and_wastes_less_than_a_page(n_slots: int, slot_bytes: int) -> None:
    n_bytes = segment_bytes(n_slots, slot_bytes)
    assert n_bytes % (2 * 2**20) == 0
    assert 0 <= n_bytes - n_slots * slot_bytes < 2 * 2**20


def test_the_schema_describes_every_key() -> None:
    properties = config.schema()["properties"]
    assert set(properties) == set(DaqConfig.model_fields)
    assert all("description" in entry for entry in properties.values())


def test_a_stream_config_is_frozen() -> None:
    stream = LiveStreamConfig(type="forward")
    with pytest.raises(ValueError, match="frozen"):
        stream.type = "batch"


def test_compressors_have_defaults_and_a_suffix() -> None:
    loaded = parse(compressors=[{"method": "h5bitshuffle_lz4"}, {"method": "blosc2", "level": 9}])
    first, second = loaded.compressors
    assert (first.suffix, second.suffix) == ("h5bitshuffle-lz4", "blosc2")
    assert (first.threads, first.level, first.block_size, first.source) == (1, 5, 0, "image")
    assert second.level == 9


@pytest.mark.parametrize(
    ("compressors", "words"),
    [
        ([{"method": "gzip"}], ["compressors.0.method", "h5bitshuffle_lz4"]),
        ([{}], ["compressors.0.method: is missing"]),
        ([{"method": "blosc2", "threads": 0}], ["compressors.0.threads"]),
        ([{"method": "blosc2", "level": 10}], ["compressors.0.level"]),
        ([{"method": "blosc2"}, {"method": "blosc2"}], ["compressors 1", "stands there twice"]),
        ([{"method": "blosc2", "source": "blosc2"}], ["source 'blosc2' is compressed already"]),
        ([{"method": "blosc2", "source": "../x"}], ["compressors.0.source"]),
        ([{"method": "h5bitshuffle_lz4", "block_size": 24}], ["block_size 24", "multiples of 16"]),
    ],
)
def test_wrong_compressors_are_named(compressors: list[dict[str, Any]], words: list[str]) -> None:
    text = error_of(compressors=compressors)
    assert not [word for word in words if word not in text], text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"filters": [{"kind": "median"}]}, ["filters.0.kind", "gigafrost"]),
        ({"filters": [{"kind": "delay"}] * 2}, ["filters 1", "stands there twice"]),
        ({"filters": [{"kind": "gigafrost"}]}, ["filters 0", "store_image", "eiger"]),
        ({"filters": [{"kind": "delay", "source": "delay-filter"}]}, ["waits for itself"]),
        (
            {
                "filters": [{"kind": "delay", "source": "blosc2"}],
                "compressors": [{"method": "blosc2", "source": "delay-filter"}],
            },
            ["waits for itself", "delay-filter < blosc2"],
        ),
        (
            {
                "filters": [{"kind": "delay", "source": "blosc2"}],
                "compressors": [
                    {"method": "blosc2"}, {"method": "h5bitshuffle_lz4", "source": "delay-filter"},
                ],
            },
            ["compressors 1", "compressed already"],
        ),
    ],
)  # fmt: skip
def test_filters_that_cannot_work_are_named(settings: dict[str, Any], words: list[str]) -> None:
    text = error_of(**settings)
    assert not [word for word in words if word not in text], text


def test_pixels_of_a_filter_lie_in_the_ring_of_its_source() -> None:
    alone = parse()
    assert [alone.ring_of(s) for s in ("image", "filter", "delay-filter", "roi")] == [
        "image", "image", "image", "roi",
    ]  # fmt: skip
    chain = parse(filters=[{"kind": "delay", "source": "blosc2"}], compressors=[{"method": "blosc2"}])
    assert chain.ring_of("delay-filter") == "blosc2"


def test_a_gap_behind_what_leaves_images_out_is_no_loss() -> None:
    chain = parse(
        filters=[{"kind": "delay", "source": "roi"}],
        compressors=[{"method": "blosc2", "source": "delay-filter"}],
    )
    said = {suffix: chain.leaves_images_out(suffix) for suffix in ("image", "filter", "roi", "blosc2")}
    assert said == {"image": False, "filter": True, "roi": True, "blosc2": True}
    assert not parse(compressors=[{"method": "blosc2"}]).leaves_images_out("blosc2")


def test_an_option_of_the_memory_that_is_not_there_is_refused() -> None:
    allowed = "`prefault`, `huge_pages`, `lock`"
    with pytest.raises(ConfigError, match=rf"ring_memory.hugepages: .* not permitted.*{allowed}"):
        parse(ring_memory={"hugepages": True})
    assert parse(ring_memory={"lock": True}).ring_memory.lock


def test_influxdb_needs_an_address_without_a_password_and_a_bucket() -> None:
    good = {"url": "https://influx.facility.org:8086", "bucket": "daq"}
    assert parse(influxdb=good).influxdb.timeout_s == 5
    assert parse().influxdb is None
    assert "influxdb.bucket" in error_of(influxdb={"url": "http://a:1"})
    assert "influxdb.url" in error_of(influxdb={**good, "url": "http://me:secret@a:1"})
    assert "influxdb.token" in error_of(influxdb={**good, "token": "secret"})  # it belongs to a file


@pytest.mark.parametrize(
    ("spelling", "level"),
    [
        ("INFO", "info"), ("Warn", "warning"), ("err", "error"), (" debug ", "debug"),
        ("TRACE", "trace"), ("Critical", "critical"), ("OFF", "off"),
    ],
)  # fmt: skip
def test_a_log_level_may_be_spelt_in_any_way_of_the_contract(spelling: str, level: str) -> None:
    assert parse(log_level=spelling).log_level == level
