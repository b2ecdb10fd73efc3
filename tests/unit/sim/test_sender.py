"""Faults: which packets a simulator leaves out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.sender import split


@pytest.mark.parametrize("drop_every", [0, -1])
def test_without_faults_everything_is_sent(drop_every: int) -> None:
    faults = Faults(drop_every)
    assert faults.kept(1, 0, 5).tolist() == [True] * 5
    assert faults.dropped == []


def test_every_nth_packet_is_left_out_counted_over_modules_and_images() -> None:
    faults = Faults(drop_every=3)
    assert faults.kept(1, 0, 4).tolist() == [True, True, False, True]
    assert faults.kept(1, 1, 4).tolist() == [True, False, True, True]
    assert faults.kept(2, 0, 1).tolist() == [False]
    assert faults.dropped == [(1, 0, 2), (1, 1, 1), (2, 0, 0)]


@given(st.integers(1, 9), st.lists(st.integers(0, 20), max_size=8))
def test_what_is_left_out_is_noted(drop_every: int, frames: list[int]) -> None:
    faults = Faults(drop_every)
    left_out = [
        (image_id, 4, int(packet))
        for image_id, n_packets in enumerate(frames)
        for packet in np.flatnonzero(~faults.kept(image_id, 4, n_packets))
    ]
    assert faults.dropped == left_out
    assert len(left_out) == sum(frames) // drop_every


def test_two_faults_share_nothing() -> None:
    Faults(1).kept(1, 0, 1)
    assert Faults(1).dropped == []


def test_packets_are_grouped_by_size_in_their_order() -> None:
    groups = split([b"ab", b"cd", b"e", b"fg"])
    assert [group.tobytes() for group in groups] == [b"abcd", b"e", b"fg"]
    assert [group.shape for group in groups] == [(2, 2), (1, 1), (1, 2)]
    assert split([]) == []
