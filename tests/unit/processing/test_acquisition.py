"""The table of states, and the account of an acquisition's images."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tango_stddaq.errors import AcquisitionError
from tango_stddaq.model import Status
from tango_stddaq.processing.acquisition import (
    DEFAULT_N_IMAGES,
    RUNNING,
    TRANSITIONS,
    Account,
    DriverStatus,
    Settlement,
    check_transition,
    difference,
    ranges_of,
)
from tango_stddaq.stats import IdRanges, Ledger, LossReason


def as_ranges(ids: set[int]) -> list[tuple[int, int]]:
    return ranges_of(np.array(sorted(ids), np.uint64))


def settle(
    account: Account,
    *blocks: list[int],
    status: dict[int, Status] | None = None,
    overwritten: Sequence[tuple[int, int]] = (),
) -> Ledger:
    """Settle from what files hold, block by block."""
    settlement = Settlement(account)
    for first, last in overwritten:
        settlement.add_lost(first, last, LossReason.OVERWRITTEN)
    for ids in blocks:
        states = [(status or {}).get(image_id, Status.GOOD_IMAGE) for image_id in ids]
        settlement.add_stored(np.array(ids, np.uint64), np.array(states, np.uint64))
    return settlement.ledger()


def take(account: Account, *image_ids: int) -> list[int]:
    """Offer images; return those that shall be stored."""
    return [image_id for image_id in image_ids if account.take(image_id, Status.GOOD_IMAGE)]


def test_status_words_and_default_count_are_those_that_clients_know() -> None:
    assert {str(status) for status in DriverStatus} == {
        "idle", "started", "creating_file", "file_created", "waiting_for_first_image", "recording",
        "saving_file", "file_saved", "stop", "error", "rejected",
    }  # fmt: skip
    assert DEFAULT_N_IMAGES == 16777215


def test_a_good_acquisition_runs_through_all_states_back_to_idle() -> None:
    way = ["started", "creating_file", "file_created", "waiting_for_first_image", "recording",
           "saving_file", "file_saved", "idle"]  # fmt: skip
    status = DriverStatus.IDLE
    for word in way:
        status = check_transition(status, DriverStatus(word))
    assert status is DriverStatus.IDLE


@pytest.mark.parametrize("status", DriverStatus)
def test_every_state_leads_back_to_idle_and_running_ones_can_fail(status: DriverStatus) -> None:
    reached = {status}
    while more := {new for old in reached for new in TRANSITIONS[old]} - reached:
        reached |= more
    assert DriverStatus.IDLE in reached
    assert (DriverStatus.ERROR in TRANSITIONS[status]) == (status in RUNNING)


def test_a_forbidden_transition_names_what_is_allowed() -> None:
    with pytest.raises(AcquisitionError, match=r"recording cannot follow idle; allowed are .*started"):
        check_transition(DriverStatus.IDLE, DriverStatus.RECORDING)


def test_images_before_start_id_and_after_the_last_one_are_left_out() -> None:
    account = Account(3, start_id=10)
    assert take(account, 8, 9, 10, 11, 12, 13) == [10, 11, 12]
    assert account.done
    assert (account.first_id, account.last_id) == (10, 12)


def test_the_account_starts_with_the_first_image_seen() -> None:
    account = Account(2)
    assert take(account, 1000, 1001) == [1000, 1001]
    assert account.not_received.count == 0


def test_a_gap_in_ids_counts_as_lost() -> None:
    account = Account(5)
    assert take(account, 1, 4, 5) == [1, 4, 5]
    assert list(account.not_received) == [2, 3]
    assert account.done


@pytest.mark.parametrize("after_gap", [6, 7, 100])
def test_a_gap_over_the_end_ends_the_acquisition_and_counts_only_its_own_images(after_gap: int) -> None:
    account = Account(5)
    assert take(account, 1, after_gap) == [1]
    assert list(account.not_received) == [2, 3, 4, 5]
    assert account.done


def test_a_gap_of_a_camera_loses_nothing() -> None:
    account = Account(3, ids_are_contiguous=False)
    assert take(account, 10, 20, 30) == [10, 20, 30]
    assert account.provisional().lost == 0


@pytest.mark.parametrize("again", [1, 50, 149, 150])
def test_ids_that_go_back_end_the_acquisition_even_below_start_id(again: int) -> None:
    account = Account(1000, start_id=100)
    take(account, 149, 150)
    with pytest.raises(AcquisitionError, match=f"went back from 150 to {again}"):
        account.take(again, Status.GOOD_IMAGE)


def test_after_the_last_image_a_restart_of_the_detector_does_not_matter() -> None:
    account = Account(1)
    take(account, 50)
    assert not account.take(1, Status.GOOD_IMAGE)


def test_every_image_that_is_not_good_counts_as_incomplete() -> None:
    account = Account(10)
    for image_id, status in enumerate(Status):
        account.take(image_id, status)
    ledger = account.provisional()
    assert (ledger.complete, ledger.incomplete, ledger.requested) == (1, 3, 10)
    assert list(ledger.incomplete_ids) == [0, 2, 3]


def test_the_final_ledger_says_what_the_files_hold_and_why_the_rest_is_not_there() -> None:
    account = Account(6)
    take(account, 1, 2, 3, 5, 6)
    found = settle(account, [1], [3, 6], status={3: Status.MISSING_PACKETS}, overwritten=[(2, 3)])
    assert (found.complete, list(found.incomplete_ids)) == (2, [3])
    assert list(found.lost_ids[LossReason.NOT_RECEIVED]) == [4]
    assert list(found.lost_ids[LossReason.OVERWRITTEN]) == [2]
    assert list(found.lost_ids[LossReason.WRITE_ERROR]) == [5]
    assert found.expected == 6


def test_what_a_writer_calls_overwritten_counts_only_where_it_was_asked_to_store_it() -> None:
    account = Account(4)
    take(account, 10, 11, 12, 13)
    found = settle(account, [10, 13], overwritten=[(11, 11), (5, 9), (13, 500), (11, 11)])
    assert list(found.lost_ids[LossReason.OVERWRITTEN]) == [11]
    assert list(found.lost_ids[LossReason.WRITE_ERROR]) == [12]


def test_no_image_is_forgotten_when_there_are_too_many_ranges_to_keep() -> None:
    account = Account(10, ids_are_contiguous=False, dispatched=IdRanges(max_ranges=3))
    take(account, *range(0, 100, 10))
    ledger = settle(account, [0, 90], overwritten=[(10, 10), (40, 40)])
    lost = ledger.lost_ids[LossReason.WRITE_ERROR]
    assert list(ledger.lost_ids[LossReason.OVERWRITTEN]) == [10, 40]
    assert (list(lost), lost.count, lost.truncated) == ([], 6, True)
    assert ledger.expected == 10


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_difference_of_ranges_is_that_of_sets(these: set[int], those: set[int]) -> None:
    found = difference(as_ranges(these), as_ranges(those))
    assert [k for first, last in found for k in range(first, last + 1)] == sorted(these - those)


@given(
    st.integers(1, 40), st.integers(0, 20), st.booleans(), st.sets(st.integers(0, 80)), st.data()
)  # fmt: skip
def test_every_image_ends_in_exactly_one_bin(
    n_images: int, start_id: int, contiguous: bool, seen: set[int], data: st.DataObject
) -> None:
    account = Account(n_images, start_id, contiguous)
    dispatched = take(account, *sorted(seen))
    stored = [image_id for image_id in dispatched if data.draw(st.booleans())]
    provisional = account.provisional()
    cut = data.draw(st.integers(0, len(stored)))
    ledger = settle(account, stored[:cut], stored[cut:])
    assert ledger.expected == provisional.expected <= n_images
    assert account.done == (ledger.expected == n_images)
    bins = [*stored, *(image_id for lost in ledger.lost_ids.values() for image_id in lost)]
    assert len(bins) == len(set(bins)) == ledger.expected
    if contiguous and bins:
        assert sorted(bins) == list(range(min(bins), min(bins) + len(bins)))


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.sampled_from(Status)), max_size=40),
    st.integers(1, 30),
    st.integers(0, 5),
    st.booleans(),
    st.lists(st.integers(1, 10), max_size=8),
    st.sampled_from([0, 2**48, 2**63 - 1]),
)
@example([(1, Status.GOOD_IMAGE), (0, Status.GOOD_IMAGE)], 5, 0, True, [], 2**63 - 1)
def test_many_images_at_once_are_accounted_for_like_one_by_one(
    steps: list[tuple[int, Status]],
    n_images: int,
    start_id: int,
    contiguous: bool,
    cuts: list[int],
    before: int,
) -> None:
    ids = np.cumsum([step for step, _ in steps], dtype=np.int64)
    ids += min(before, 2**63 - 1 - int(ids.max(initial=0)))
    status = np.array([int(status) for _, status in steps], np.int64)
    one_by_one = Account(n_images, start_id, contiguous)
    together = Account(n_images, start_id, contiguous)
    expected: list[bool] = []
    went_back = ""
    for image_id, state in zip(ids.tolist(), status.tolist(), strict=True):
        try:
            expected.append(one_by_one.take(image_id, state))
        except AcquisitionError as error:
            went_back = str(error)
            break
    found: list[bool] = []
    why = ""
    for part_ids, part_status in zip(
        np.split(ids, np.cumsum(cuts).clip(max=ids.size)),
        np.split(status, np.cumsum(cuts).clip(max=ids.size)),
        strict=True,
    ):
        wanted, why = together.take_all(part_ids, part_status)
        found += wanted.tolist()
        if why:
            break
    assert why == went_back
    assert found[: len(expected)] == expected
    assert not any(found[len(expected) :])
    for name in ("n_dispatched", "first_id", "last_id", "done"):
        assert getattr(together, name) == getattr(one_by_one, name)
    for name in ("incomplete", "not_received", "dispatched"):
        assert getattr(together, name).ranges() == getattr(one_by_one, name).ranges()
