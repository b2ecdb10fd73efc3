"""Patterns of packets, from their text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.errors import ConfigError
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.pattern import PacketPattern


@pytest.mark.parametrize(
    ("text", "image_id", "module", "expected"),
    [
        ("*:*:*", 7, 3, [0, 1, 2, 3, 4, 5]),
        ("5:*:0-2,4", 5, 9, [0, 1, 2, 4]),
        ("5:*:0-2,4", 6, 9, []),
        ("/10:2:/3", 20, 2, [0, 3]),
        ("/10:2:/3", 21, 2, []),
        ("/10:2:/3", 20, 3, []),
        (" 1-3 , 8 : 0 : 5 ", 8, 0, [5]),
        ("*:*:5-99", 1, 0, [5]),
    ],
)
def test_a_pattern_names_images_modules_and_positions(
    text: str, image_id: int, module: int, expected: list[int]
) -> None:
    assert np.flatnonzero(PacketPattern.parse(text).mask(image_id, module, 6)).tolist() == expected


@pytest.mark.parametrize(
    "text",
    ["", "1:2", "1:2:3:4", "a:*:*", "-1:*:*", "3-1:*:*", "/0:*:*", "*:*:", "1,,2:*:*", "*" * 300,
     "\u0661:*:*", "1:1:" + "9" * 20],
)  # fmt: skip
def test_what_is_no_pattern_is_refused_with_what_it_is(text: str) -> None:
    with pytest.raises(ConfigError, match="drop pattern"):
        PacketPattern.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_pattern_or_a_clear_error(text: str) -> None:
    try:
        pattern = PacketPattern.parse(text)
    except ConfigError:
        return
    assert PacketPattern.parse(pattern.text) == pattern


def test_packets_of_a_pattern_are_dropped_and_noted() -> None:
    faults = Faults(drop_patterns=(PacketPattern.parse("2:1:0-1"), PacketPattern.parse("*:*:3")))
    assert faults.any
    assert faults.kept(2, 1, 5).tolist() == [False, False, True, False, True]
    assert faults.kept(2, 0, 5).tolist() == [True, True, True, False, True]
    assert faults.dropped == [(2, 1, 0), (2, 1, 1), (2, 1, 3), (2, 0, 3)]


def test_a_module_dies_after_so_many_images() -> None:
    faults = Faults(dead_modules=frozenset({1}), dead_after=2)
    for image_id in (1, 2, 1, 2):
        faults.begin_image()
        faults.kept(image_id, 1, 2)
    assert faults.dropped == [(1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1)]
