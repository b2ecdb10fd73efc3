"""Joining frames to images: order, waiting, stragglers and restarts."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.detectors.layout import FRAME_HEADER, FRAME_HEADER_BYTES, HEADER_MARK
from tango_stddaq.processing import joining
from tango_stddaq.processing.joining import STATE
from tango_stddaq.processing.slots import MAX_IMAGE_ID
from tango_stddaq.processing.synchronize import MAX_FRAMES
from tango_stddaq.processing.synchronize import Synchronizer as Compiled

PACKETS_PER_FRAME = 100


@dataclass(frozen=True)
class Frame:
    """A frame header; epoch 0: of an existing program. `note`: a byte of the detector's own."""

    image_id: int
    module: int
    n_missing_packets: int = 0
    epoch: int = 0
    note: int = 0

    def record(self) -> np.ndarray:
        header = np.zeros(1, FRAME_HEADER)
        header["image_id"], header["n_missing_packets"] = self.image_id, self.n_missing_packets
        header["module_id"] = 10 * self.module
        if self.epoch:
            header["mark"], header["epoch"] = HEADER_MARK, self.epoch
        header.view(np.uint8)[20] = self.note
        return header


@dataclass(frozen=True)
class JoinedImage:
    image_id: int
    n_missing_packets: int
    missing_modules: tuple[int, ...]
    note: int
    epoch: int = 0


def take(compiled: Compiled, headers: np.ndarray, now_ns: int = 0) -> np.ndarray:
    """Join frames as the synchronizer's loop does; returns the images that may go on."""
    arrays = compiled.arrays()
    arrays[1][STATE["now_ns"]] = now_ns
    # A view: a copy of structured records would leave out the bytes between their fields.
    frames = headers.view(np.uint8).reshape(-1, FRAME_HEADER_BYTES)
    return compiled.joined[: joining.take(frames, *arrays)]


class Synchronizer:
    """One frame at a time; the modules have the numbers 0, 10, 20, ..."""

    def __init__(self, n_modules: int, queue_size: int) -> None:
        self.compiled = Compiled(tuple(10 * m for m in range(n_modules)), queue_size, PACKETS_PER_FRAME)

    def add(self, frame: Frame) -> list[JoinedImage]:
        return self.images(take(self.compiled, frame.record()))

    def flush(self) -> list[JoinedImage]:
        return self.images(self.compiled.flush())

    def images(self, joined: np.ndarray) -> list[JoinedImage]:
        found = []
        for at, one in enumerate(joined):
            missing = self.compiled.missing_modules(at)
            assert one["n_missing_modules"] == len(missing)
            found.append(
                JoinedImage(
                    int(one["image_id"]),
                    int(one["n_missing_packets"]),
                    missing,
                    int(one["header"][20]),
                    int(one["epoch"]),
                )
            )
        return found

    def __getattr__(self, name: str) -> int:
        return getattr(self.compiled, name)


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
    assert (image.image_id, image.n_missing_packets, image.missing_modules) == (7, 0, ())
    assert synchronizer.n_waiting == 0


def test_missing_packets_add_up() -> None:
    synchronizer = Synchronizer(2, 5)
    synchronizer.add(Frame(1, 0, n_missing_packets=3, note=1))
    (image,) = synchronizer.add(Frame(1, 1, n_missing_packets=4, note=2))
    assert (image.n_missing_packets, image.note) == (7, 1)


def test_a_complete_image_waits_for_the_older_one() -> None:
    synchronizer = Synchronizer(2, 5)
    assert feed(synchronizer, [(1, 0), (2, 0), (2, 1)]) == []
    assert ids(feed(synchronizer, [(1, 1)])) == [1, 2]


def test_an_incomplete_image_waits_for_queue_size_images_and_no_longer() -> None:
    synchronizer = Synchronizer(2, 3)
    assert feed(synchronizer, [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]) == []
    images = feed(synchronizer, [(4, 0)])
    assert ids(images) == [1, 2, 3]
    assert images[0].missing_modules == (1,)


def test_an_incomplete_image_has_its_time_however_fast_others_come() -> None:
    compiled = Compiled((0, 10), 3, PACKETS_PER_FRAME, patience_ns=50, max_waiting=8)

    def add(image_id: int, module: int, now_ns: int) -> list[int]:
        return take(compiled, Frame(image_id, module).record(), now_ns)["image_id"].tolist()

    assert add(1, 0, 100) == []
    for image_id in range(2, 7):
        assert add(image_id, 0, 110) == add(image_id, 1, 110) == []
    assert add(1, 1, 149) == [1, 2, 3, 4, 5, 6]  # the straggler is not late

    assert add(7, 0, 200) == []
    for image_id in range(8, 12):
        assert add(image_id, 0, 210) == add(image_id, 1, 210) == []
    assert add(12, 0, 250) == [7, 8, 9, 10, 11]  # it had its time
    assert add(7, 1, 251) == []
    assert compiled.n_late == 1

    for image_id in range(13, 20):
        add(image_id, 0, 252)
    assert compiled.n_waiting == 8
    assert add(20, 0, 252) == [12]  # nobody waits for it beyond what may wait


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


def test_an_epoch_outlasts_frames_of_existing_programs_between() -> None:
    synchronizer = Synchronizer(3, 5)
    for frame in (Frame(5, 1), Frame(5, 0, epoch=3), Frame(6, 1), Frame(6, 1)):
        assert synchronizer.add(frame) == []
    images = synchronizer.add(Frame(5, 0, epoch=4))  # not the frame 0 of image 5 that came before
    assert [(one.image_id, one.missing_modules, one.epoch) for one in images] == [
        (5, (2,), 3),
        (6, (0, 2), 0),
    ]
    assert (synchronizer.n_restarts, synchronizer.n_duplicate) == (1, 1)
    synchronizer.add(Frame(5, 1))
    (image,) = synchronizer.add(Frame(5, 2))
    assert image.epoch == 4


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


def test_a_frame_cannot_miss_more_packets_than_it_has() -> None:
    (image,) = Synchronizer(1, 5).add(Frame(1, 0, n_missing_packets=2**63))
    assert image.n_missing_packets == PACKETS_PER_FRAME


@pytest.mark.parametrize("frame", [Frame(2**64 - 1, 0), Frame(MAX_IMAGE_ID + 1, 0), Frame(1, 2)])
def test_foreign_frames_are_counted_and_dropped(frame: Frame) -> None:
    synchronizer = Synchronizer(2, 5)
    assert synchronizer.add(frame) == []
    assert (synchronizer.n_foreign, synchronizer.n_waiting) == (1, 0)


def test_gaps_in_the_ids_are_counted_once() -> None:
    synchronizer = Synchronizer(1, 5)
    feed(synchronizer, [(5, 0), (6, 0), (9, 0), (9, 0), (10, 0), (100, 0)])
    assert synchronizer.n_skipped == 2 + 89
    synchronizer.reset_counts()
    assert (synchronizer.n_skipped, synchronizer.n_late) == (0, 0)


def test_many_frames_at_once_are_as_many_frames_one_by_one() -> None:
    rng = np.random.default_rng(5)
    frames = [
        Frame(int(image_id + rng.integers(-6, 7)) % 2**40, int(rng.integers(70)), epoch=1)
        for image_id in np.repeat(np.arange(100, 160), 70)
    ]
    one_by_one, at_once = Synchronizer(70, 20), Synchronizer(70, 20)
    expected = [image for frame in frames for image in one_by_one.add(frame)]
    records = np.frombuffer(b"".join(frame.record().tobytes() for frame in frames), FRAME_HEADER)
    found = [
        image
        for first in range(0, len(records), MAX_FRAMES)
        for image in at_once.images(take(at_once.compiled, records[first : first + MAX_FRAMES]))
    ]
    assert found == expected
    assert at_once.flush() == one_by_one.flush()
    assert len(found) > 30


def test_memory_is_used_again_for_ever() -> None:
    synchronizer = Synchronizer(2, 3)
    found = []
    for image_id in range(5000):
        found += synchronizer.add(Frame(image_id, 0, epoch=1))
        if image_id % 3:
            found += synchronizer.add(Frame(image_id, 1, epoch=1))
    assert ids(found) + ids(synchronizer.flush()) == list(range(5000))
