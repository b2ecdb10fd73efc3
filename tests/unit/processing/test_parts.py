"""How images are cut into parts, against the numbers of the interface contract."""

from typing import Any

import pytest

from tango_stddaq.config import DaqConfig, from_dict
from tango_stddaq.errors import ConfigError
from tango_stddaq.processing.parts import carries, part_of, parts_of


def config_of(kind: str, height: int, width: int, **changes: Any) -> DaqConfig:
    return from_dict(
        {
            "detector_name": "P",
            "detector_type": kind,
            "n_modules": 1,
            "bit_depth": 16,
            "image_pixel_height": height,
            "image_pixel_width": width,
            "start_udp_port": 5000,
            "module_positions": {},
            **changes,
        }
    )


def test_parts_of_the_largest_gigafrost_image() -> None:
    parts = parts_of(config_of("gigafrost", 2016, 2016))
    size = 2016 * 2016 * 2 // 8
    assert [(p.offset, p.n_bytes, p.existing_n_bytes) for p in parts] == [
        (i * size, size, size) for i in range(8)
    ]


@pytest.mark.parametrize(
    ("kind", "bit_depth", "base"),
    [
        ("eiger", 16, 3106 * 3264 * 4),
        ("jungfrau-raw", 16, 1024 * 512 * 32 * 2),
        ("jungfrau-converted", 16, 1024 * 512 * 32 * 4),
        ("gigafrost", 16, 2016 * 2016 * 2),
    ],
)
def test_a_small_image_takes_only_the_first_parts(kind: str, bit_depth: int, base: int) -> None:
    config = config_of(kind, 1200, 1100, bit_depth=bit_depth)
    image, size = config.sizes.slot_bytes, base // 8
    parts = parts_of(config)
    assert len(parts) == -(-image // size)
    assert [p.offset for p in parts] == [i * base // 8 for i in range(len(parts))]
    assert parts[-1].end == image
    assert part_of(config, len(parts)) is None
    assert part_of(config, len(parts) - 1) == parts[-1]


def test_all_forwarders_cut_the_configured_image() -> None:
    parts = parts_of(config_of("pco", 100, 80, use_all_forwarders=True))
    assert [(p.offset, p.n_bytes) for p in parts] == [(i * 2000, 2000) for i in range(8)]


def test_a_camera_needs_all_forwarders() -> None:
    with pytest.raises(ConfigError, match=r"use_all_forwarders.*pco.*allowed is true"):
        parts_of(config_of("pco", 100, 80))


@pytest.mark.parametrize(("height", "width", "n"), [(2016, 2016, 10), (2016, 2016, 7), (97, 89, 9)])
@pytest.mark.parametrize("use_all", [True, False])
def test_every_byte_is_in_exactly_one_part(height: int, width: int, n: int, use_all: bool) -> None:
    config = config_of(
        "gigafrost" if height == 2016 else "eiger",
        height,
        width,
        max_number_of_forwarders_spawned=n,
        use_all_forwarders=use_all,
    )
    parts = parts_of(config)
    assert parts[0].offset == 0
    assert [p.end for p in parts[:-1]] == [p.offset for p in parts[1:]]
    assert parts[-1].end == config.sizes.slot_bytes
    assert all(0 <= p.n_bytes - p.existing_n_bytes <= n for p in parts)
    assert len(parts) <= n


def test_the_existing_cut_of_a_gigafrost_by_ten_leaves_two_bytes_out() -> None:
    config = config_of("gigafrost", 2016, 2016, max_number_of_forwarders_spawned=10)
    parts = parts_of(config)
    assert sum(p.n_bytes for p in parts) - sum(p.existing_n_bytes for p in parts) == 2


def test_an_image_smaller_than_its_forwarders_has_parts_of_one_byte_at_least() -> None:
    config = config_of("eiger", 1, 3, max_number_of_forwarders_spawned=10, use_all_forwarders=True)
    taken = [part for i in range(10) if (part := part_of(config, i)) is not None]
    assert sum(part.n_bytes for part in taken) == config.sizes.slot_bytes
    assert all(part.n_bytes for part in taken)


def test_whole_images_go_to_the_senders_in_turn() -> None:
    config = config_of("pco", 10, 10, sender_sends_full_images=True, max_number_of_forwarders_spawned=3)
    assert [[i for i in range(7) if carries(config, n, i)] for n in range(3)] == [
        [0, 3, 6],
        [1, 4],
        [2, 5],
    ]
    whole = part_of(config, 2)
    assert whole is not None
    assert (whole.offset, whole.n_bytes) == (0, 200)
    assert part_of(config, 3) is None


def test_a_negative_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="part -1: allowed are numbers from 0"):
        part_of(config_of("eiger", 514, 1030), -1)
