"""The claims of a ring's slots, and the epochs of image ids."""

import threading

import numpy as np
import pytest

from tango_stddaq.processing import slots
from tango_stddaq.processing.slots import EMPTY_CLAIM, EPOCH_MASK, INDEX_ENTRY, INDEX_HEADER, WRITING


@pytest.fixture
def entry() -> np.ndarray:
    entry = np.zeros(1, INDEX_ENTRY)
    entry["claim"] = EMPTY_CLAIM
    return entry


def header_of(epoch: int, head: int = EMPTY_CLAIM) -> np.ndarray:
    header = np.zeros(1, INDEX_HEADER)
    header["epoch"], header["head"] = epoch, head
    return header


def claim(entry: np.ndarray, image_id: int, epoch: int) -> bool:
    return slots.claim_slot(entry.ctypes.data, image_id, epoch)


def test_an_empty_slot_may_be_claimed_by_several_for_one_image(entry: np.ndarray) -> None:
    assert claim(entry, 5, 1)
    assert claim(entry, 5, 1)
    assert int(entry["claim"][0]) == WRITING | 1 << 48 | 5


@pytest.mark.parametrize(("image_id", "epoch", "allowed"), [(15, 1, True), (4, 1, False), (0, 2, True)])
def test_a_slot_goes_to_later_images_only(
    entry: np.ndarray, image_id: int, epoch: int, allowed: bool
) -> None:
    claim(entry, 5, 1)
    assert claim(entry, image_id, epoch) is allowed


def test_a_published_image_is_not_written_again(entry: np.ndarray) -> None:
    entry["claim"] = 1 << 48 | 5
    assert not claim(entry, 5, 1)


def test_an_earlier_epoch_is_too_late_whatever_the_id_also_after_the_wrap(entry: np.ndarray) -> None:
    claim(entry, 0, 1)
    assert not claim(entry, 1000, EPOCH_MASK)
    assert claim(entry, 0, 2)


def test_images_are_published_but_those_whose_slot_another_one_takes() -> None:
    index = np.zeros(4096 + 4 * 32, np.uint8)
    header, entries = index[:4096].view(INDEX_HEADER), index[4096:].view(INDEX_ENTRY)
    header["epoch"], header["head"] = 7, EMPTY_CLAIM
    entries["claim"] = EMPTY_CLAIM
    at = index.ctypes.data
    for image_id, slot in ((4, 0), (9, 1), (6, 2)):
        assert slots.claim_slot(at + 4096 + slot * 32, image_id, 3)
    published = np.ones(4, bool)
    # 5 lost its slot to 9; 7 was written by an existing program, without a claim
    ids, epochs = np.array([4, 5, 6, 7]), np.array([3, 3, 0, 0])
    slots.publish_slots(at, 4, ids, epochs, published)
    assert published.tolist() == [True, False, True, True]
    assert entries["claim"].tolist() == [3 << 48 | 4, WRITING | 3 << 48 | 9, 3 << 48 | 6, 7 << 48 | 7]
    assert entries["generation"].tolist() == [1, 0, 1, 1]
    assert entries["image_id"][[0, 2, 3]].tolist() == [4, 6, 7]
    assert header["head"] == 7 << 48 | 7
    assert not slots.holds_slot(at + 4096, 4, 3)
    assert slots.holds_slot(at + 4096 + 32, 9, 3)


@pytest.mark.parametrize(
    "claim", [WRITING | 4 << 48 | 5, 4 << 48 | 5, EMPTY_CLAIM, WRITING | 3 << 48 | 9]
)
def test_an_image_of_an_epoch_is_published_only_where_it_was_claimed_for(claim: int) -> None:
    index = np.zeros(4096 + 4 * 32, np.uint8)
    entries = index[4096:].view(INDEX_ENTRY)
    entries["claim"] = claim
    published = np.ones(1, bool)
    slots.publish_slots(index.ctypes.data, 4, np.array([5]), np.array([3]), published)
    assert not published[0]
    assert (int(entries["claim"][1]), int(entries["generation"][1])) == (claim, 0)
    is_same_id = claim & 0xFFFF == 5
    assert slots.is_of_other_epoch(index.ctypes.data, 4, 5, 3) is is_same_id
    entries["claim"] = WRITING | 3 << 48 | 5
    assert not slots.is_of_other_epoch(index.ctypes.data, 4, 5, 3)


def test_two_receivers_make_one_new_epoch_and_never_zero() -> None:
    header = header_of(EPOCH_MASK)
    assert slots.next_epoch(header.ctypes.data, EPOCH_MASK) == 1
    assert slots.next_epoch(header.ctypes.data, EPOCH_MASK) == 1
    assert slots.is_later_epoch(1, EPOCH_MASK)
    assert not slots.is_later_epoch(EPOCH_MASK, 1)


@pytest.mark.parametrize(
    ("head", "first_id", "epoch"),
    [
        (EMPTY_CLAIM, 0, 3),
        (3 << 48 | 9, 10, 3),
        (3 << 48 | 9, 9, 4),
        (2 << 48 | 9, 1, 3),
    ],
)
def test_first_image_begins_an_epoch_only_if_a_later_one_is_published_in_it(
    head: int, first_id: int, epoch: int
) -> None:
    header = header_of(3, head)
    assert slots.first_epoch(header.ctypes.data, first_id) == epoch
    assert slots.current_epoch(header.ctypes.data) == epoch


@pytest.mark.parametrize(
    ("head", "image_id", "epoch"),
    [
        (EMPTY_CLAIM, 100, 2),
        (2 << 48 | 99, 100, 2),
        (3 << 48 | 99, 100, 3),
        (3 << 48 | 100, 100, 2),
        (3 << 48 | 49, 100, 2),
        (3 << 48 | 50, 100, 3),
    ],
)
def test_a_receiver_follows_an_epoch_whose_images_are_near_its_own(
    head: int, image_id: int, epoch: int
) -> None:
    header = header_of(3, head)
    assert slots.joined_epoch(header.ctypes.data, 2, image_id, 50) == epoch


def test_threads_that_claim_at_once_leave_the_latest_image(entry: np.ndarray) -> None:
    claim(entry, 0, 1)
    ids = np.random.default_rng(1).permutation(4000).tolist()

    def work(mine: list[int]) -> None:
        for image_id in mine:
            claim(entry, image_id, 1)

    threads = [threading.Thread(target=work, args=(ids[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(entry["claim"][0]) == WRITING | 1 << 48 | 3999
