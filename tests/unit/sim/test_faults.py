"""Simulated faults: what is done is what is said, and the same seed does the same."""

import numpy as np
import pytest

from tango_stddaq.sim.faults import CORRUPT_BYTE, Faults

HEADER_BYTES = 4


def frame(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    packets = np.zeros((n, 20), np.uint8)
    packets[:, 0] = np.arange(n)
    return packets, np.full(n, 20)


def test_without_faults_a_frame_arrives_as_it_is() -> None:
    packets, sizes = frame()
    sent, n_bytes = Faults().apply(1, 0, packets, sizes, HEADER_BYTES)
    assert np.array_equal(sent, packets)
    assert np.array_equal(n_bytes, sizes)


def test_dropped_packets_are_those_that_do_not_arrive() -> None:
    faults = Faults(drop=0.2, drop_every=7)
    sent, _ = faults.apply(5, 3, *frame(), HEADER_BYTES)
    missing = sorted(set(range(200)) - set(sent[:, 0].tolist()))
    assert 28 < len(missing) < 120
    assert faults.dropped == [(5, 3, position) for position in missing]


def test_a_dead_module_sends_nothing_and_the_others_all() -> None:
    faults = Faults(dead_modules=frozenset({2}))
    assert len(faults.apply(1, 2, *frame(), HEADER_BYTES)[0]) == 0
    assert len(faults.apply(1, 3, *frame(), HEADER_BYTES)[0]) == 200
    assert len(faults.dropped) == 200


def test_corrupt_and_truncated_packets_count_as_missing() -> None:
    faults = Faults(corrupt=0.1, truncate=0.1)
    sent, n_bytes = faults.apply(1, 0, *frame(), HEADER_BYTES)
    broken = (sent[:, :HEADER_BYTES] == CORRUPT_BYTE).all(axis=1)
    assert (int(broken.sum()), int((n_bytes == 10).sum())) == (faults.n_corrupted, faults.n_truncated)
    assert faults.n_corrupted > 0 < faults.n_truncated
    assert len(faults.dropped) == faults.n_corrupted + faults.n_truncated


def test_duplicates_and_order() -> None:
    faults = Faults(duplicate=0.3, reorder=0.3)
    sent, _ = faults.apply(1, 0, *frame(), HEADER_BYTES)
    assert len(sent) == 200 + faults.n_duplicated
    assert sorted(set(sent[:, 0].tolist())) == list(range(200))
    assert faults.n_reordered > 0
    assert not faults.dropped


def test_the_same_seed_makes_the_same_faults() -> None:
    first, second = Faults(drop=0.5, seed=4), Faults(drop=0.5, seed=4)
    for faults in (first, second):
        faults.apply(1, 0, *frame(), HEADER_BYTES)
    assert first.dropped == second.dropped
    other = Faults(drop=0.5, seed=5)
    other.apply(1, 0, *frame(), HEADER_BYTES)
    assert other.dropped != first.dropped


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="fraction from 0 to 1"):
        Faults(duplicate=value)
