"""Rates, ranges of ids, and the ledger of an acquisition."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.stats import LOSS_REASONS, IdRanges, Ledger, LossReason, Rate, to_ranges


def test_a_rate_is_measured_over_the_window_only() -> None:
    rate = Rate(window_s=2.0)
    assert rate.update(0.0, 0) == 0.0
    assert rate.update(1.0, 100) == 100.0
    assert rate.update(2.0, 200) == 100.0
    for second in range(3, 8):
        last = rate.update(float(second), 200)
    assert last == 0.0


def test_a_rate_starts_anew_when_its_counter_was_reset() -> None:
    rate = Rate()
    rate.update(0.0, 1000)
    assert rate.update(1.0, 0) == 0.0
    assert rate.update(2.0, 10) == 10.0


def test_a_rate_needs_time_to_pass() -> None:
    rate = Rate()
    rate.update(5.0, 0)
    assert rate.update(5.0, 10) == 0.0


@given(st.sets(st.integers(0, 60)), st.randoms(use_true_random=False))
def test_id_ranges_are_a_set_whatever_the_order(ids: set[int], random: Random) -> None:
    shuffled = sorted(ids)
    random.shuffle(shuffled)
    found = to_ranges(shuffled)
    assert list(found) == sorted(ids)
    assert found.count == len(ids)
    assert [i for i in range(62) if i in found] == sorted(ids)
    assert found.ids(limit=3) == sorted(ids)[:3]


def test_a_long_run_is_one_range() -> None:
    found = IdRanges()
    found.add_range(5, 2**40)
    found.add(2**40 + 1)
    found.add_range(9, 8)
    assert found.ranges() == [(5, 2**40 + 1)]
    assert found.count == 2**40 - 3
    assert found.ids(limit=2) == [5, 6]
    assert found.ids(limit=0) == []


def test_too_many_ranges_are_only_counted() -> None:
    found = IdRanges(max_ranges=2)
    for image_id in (1, 3, 5, 7):
        found.add(image_id)
    assert found.count == 4
    assert found.truncated
    assert list(found) == [1, 3]


def test_every_image_of_a_ledger_is_in_exactly_one_bin() -> None:
    ledger = Ledger(requested=20, complete=10, incomplete_ids=to_ranges([3, 4]))
    ledger.lost_ids[LossReason.NOT_RECEIVED].add_range(13, 15)
    ledger.lost_ids[LossReason.WRITE_ERROR].add(16)
    assert (ledger.stored, ledger.lost, ledger.expected) == (12, 4, 16)
    assert ledger.summary() == {
        "requested": 20,
        "expected": 16,
        "complete": 10,
        "incomplete": 2,
        "lost": 4,
        "incomplete_ids": [[3, 4]],
        "lost_ids": {"not_received": [[13, 15]], "write_error": [[16, 16]]},
    }


@pytest.mark.parametrize("reason", LOSS_REASONS)
def test_ledgers_share_no_bins(reason: LossReason) -> None:
    Ledger().lost_ids[reason].add(1)
    assert Ledger().lost == 0
