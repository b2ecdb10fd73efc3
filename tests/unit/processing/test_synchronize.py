"""Joining frames to images: order, waiting, stragglers and restarts."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.model import Frame, Status
from tango_stddaq.processing.synchronize import JoinedImage, Synchronizer


def feed(synchronizer: Synchronizer, frames: Iterable[tuple[int, int]]) -> list[JoinedImage]:
    """Add frames (image id, module) of an existing program; return what left."""
    return [one for image_id, module in frames for one in synchronizer.add(Frame(image_id, module))]


def ids(images: list[JoinedImage]) -> list[int]:
    return [image.image_id for image in images]


def test_an_image_leaves_when_all_its_modules_came() -> None:
    synchronizer = Synchronizer(3, 5)
    assert feed(synchronizer, [(7, 2), (7, 0)]) == []
    assert synchronizer.n_waiting == 1
    (image,) = feed(synchronizer, [(7, 1)])
    assert (image.image_id, image.status, image.missing_modules) == (7, Status.GOOD_IMAGE, ())
    assert synchronizer.n_waiting == 0


def test_missing_packets_add_up_and_decide_the_status() -> None:
    synchronizer = Synchronizer(2, 5)
    synchronizer.add(Frame(1, 0, n_missing_packets=3, header=b"first"))
    (image,) = synchronizer.add(Frame(1, 1, n_missing_packets=4, header=b"second"))
    assert (image.n_missing_packets, image.status) == (7, Status.MISSING_PACKETS)
    assert image.header == b"first"


def test_a_complete_image_waits_for_the_older_one() -> None:
    synchronizer = Synchronizer(2, 5)
    assert feed(synchronizer, [(1, 0), (2, 0), (2, 1)]) == []
    assert ids(feed(synchronizer, [(1, 1)])) == [1, 2]


def test_an_incomplete_image_waits_for_queue_size_images_and_no_longer() -> None:
    synchronizer = Synchronizer(2, 3)
    assert feed(synchronizer, [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]) == []
    images = feed(synchronizer, [(4, 0)])
    assert ids(images) == [1, 2, 3]
    assert (images[0].status, images[0].missing_modules) == (Status.MISSING_PACKETS, (1,))


def test_a_duplicate_counts_as_such_and_changes_nothing() -> None:
    synchronizer = Synchronizer(2, 5)
    synchronizer.add(Frame(1, 0))
    assert synchronizer.add(Frame(1, 0, n_missing_packets=9)) == []
    (image,) = synchronizer.add(Frame(1, 1))
    assert (synchronizer.n_duplicate, image.n_missing_packets) == (1, 0)


def test_flush_releases_everything_in_order() -> None:
    synchronizer = Synchronizer(2, 5)
    feed(synchronizer, [(3, 0), (1, 1), (2, 0)])
    images = synchronizer.flush()
    assert [(one.image_id, one.missing_modules) for one in images] == [(1, (0,)), (2, (1,)), (3, (1,))]
    assert synchronizer.flush() == []


def test_a_straggler_of_a_released_image_is_late() -> None:
    synchronizer = Synchronizer(2, 5)
    feed(synchronizer, [(i, m) for i in (1, 2) for m in (0, 1)])
    assert feed(synchronizer, [(2, 0), (1, 1)]) == []
    assert (synchronizer.n_late, synchronizer.n_restarts) == (2, 0)


@pytest.mark.parametrize("lag", [6, 11, 20, 150])
def test_a_module_that_lags_behind_is_late_and_no_restart(lag: int) -> None:
    synchronizer = Synchronizer(2, 5)
    frames = [
        (i - lag * m, m) for i in range(1, 300) for m in (0, 1) if i - lag * m > 0
    ]  # fmt: skip
    found = ids(feed(synchronizer, frames)) + ids(synchronizer.flush())
    assert found == list(range(1, 300))
    assert synchronizer.n_restarts == 0
    assert synchronizer.n_late == sum(m for _, m in frames)


def test_ids_of_an_existing_program_that_start_again_far_below_are_a_restart_at_once() -> None:
    synchronizer = Synchronizer(2, 5)
    feed(synchronizer, [(i, m) for i in range(1, 101) for m in (0, 1)])
    assert ids(feed(synchronizer, [(1, 0), (1, 1), (2, 1), (2, 0)])) == [1, 2]
    assert (synchronizer.n_restarts, synchronizer.n_late) == (1, 0)


def test_a_restart_close_below_is_told_from_stragglers_by_its_length() -> None:
    synchronizer = Synchronizer(1, 5)
    feed(synchronizer, [(i, 0) for i in range(1, 11)])
    assert ids(feed(synchronizer, [(i, 0) for i in range(1, 9)])) == [6, 7, 8]
    assert (synchronizer.n_restarts, synchronizer.n_late) == (1, 5)


def test_after_a_pause_a_lower_id_is_a_restart() -> None:
    synchronizer = Synchronizer(1, 5)
    feed(synchronizer, [(1, 0), (2, 0)])
    synchronizer.idle()
    assert ids(feed(synchronizer, [(1, 0)])) == [1]
    assert synchronizer.n_restarts == 1


def test_a_restart_releases_what_waited_before_it() -> None:
    synchronizer = Synchronizer(2, 5)
    feed(synchronizer, [(100, 0), (100, 1), (101, 0), (102, 0)])
    assert ids(feed(synchronizer, [(1, 0), (1, 1)])) == [101, 102, 1]


def test_a_new_epoch_is_a_restart_and_frames_of_the_old_one_are_late() -> None:
    synchronizer = Synchronizer(2, 5)
    synchronizer.add(Frame(10, 0, epoch=3))
    assert ids(synchronizer.add(Frame(9, 0, epoch=4))) == [10]
    assert synchronizer.add(Frame(10, 1, epoch=3)) == []
    assert ids(synchronizer.add(Frame(9, 1, epoch=4))) == [9]
    assert (synchronizer.n_restarts, synchronizer.n_late) == (1, 1)


def test_within_an_epoch_a_lower_id_is_late_however_far_below() -> None:
    synchronizer = Synchronizer(1, 5)
    synchronizer.add(Frame(1000, 0, epoch=3))
    synchronizer.idle()
    assert synchronizer.add(Frame(1, 0, epoch=3)) == []
    assert (synchronizer.n_restarts, synchronizer.n_late) == (0, 1)


def test_epochs_wrap_around() -> None:
    synchronizer = Synchronizer(1, 5)
    synchronizer.add(Frame(10, 0, epoch=0x7FFF))
    assert ids(synchronizer.add(Frame(1, 0, epoch=1))) == [1]


@given(
    st.integers(1, 4), st.integers(1, 6), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)))
)  # fmt: skip
def test_whatever_comes_ids_increase_and_every_frame_is_accounted_for(
    n_modules: int, queue_size: int, sent: list[tuple[int, int]]
) -> None:
    synchronizer = Synchronizer(n_modules, queue_size)
    frames = [Frame(image_id, module % n_modules, epoch=1) for image_id, module in sent]
    images: list[JoinedImage] = []
    for frame in frames:
        images += synchronizer.add(frame)
        assert synchronizer.n_waiting <= queue_size
    images += synchronizer.flush()
    assert ids(images) == sorted(set(ids(images)))
    n_joined = sum(n_modules - len(image.missing_modules) for image in images)
    assert n_joined + synchronizer.n_late + synchronizer.n_duplicate == len(frames)
    assert all((image.status == Status.GOOD_IMAGE) == (not image.missing_modules) for image in images)
