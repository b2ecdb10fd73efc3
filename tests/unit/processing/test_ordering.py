"""Order across connections: what leaves, when, and what is dropped as late, duplicate or restarted."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.processing.ordering import Reorderer


class Clocked:
    """A reorderer with a clock that the test sets; remembers what left it."""

    def __init__(self, n_connections: int = 4, window: int = 64) -> None:
        self.order: Reorderer[int] = Reorderer(n_connections, window, timeout_s=0.2, idle_s=1.0)
        self.now_s = 0.0
        self.left: list[int] = []

    def add(self, connection: int, *ids: int) -> "Clocked":
        for image_id in ids:
            self._note(self.order.add(connection, image_id, -image_id, self.now_s))
        return self

    def wait(self, seconds: float) -> "Clocked":
        self.now_s += seconds
        self._note(self.order.expire(self.now_s))
        return self

    def _note(self, released: list[tuple[int, int]]) -> None:
        assert all(item == -image_id for image_id, item in released)
        self.left += [image_id for image_id, _ in released]

    @property
    def dropped(self) -> tuple[int, int, int]:
        return self.order.n_late, self.order.n_duplicate, self.order.n_restarts


def test_one_connection_holds_nothing_back() -> None:
    clocked = Clocked(1).add(0, 5, 7, 100)
    assert clocked.left == [5, 7, 100]


def test_an_image_leaves_when_every_connection_has_a_newer_one() -> None:
    clocked = Clocked(2).add(0, 10)
    assert clocked.left == []
    assert clocked.add(1, 20).left == [10]
    assert clocked.add(0, 30).left == [10, 20]
    assert clocked.order.n_waiting == 1


def test_the_next_id_leaves_at_once() -> None:
    clocked = Clocked(4).add(0, 1).wait(0.2).add(1, 2).add(2, 3)
    assert clocked.left == [1, 2, 3]


def test_what_waits_too_long_leaves_with_everything_below_it() -> None:
    clocked = Clocked(2).add(0, 10).wait(0.1).add(0, 8).wait(0.2)
    assert clocked.left == [8, 10]
    assert clocked.add(1, 9).add(1, 12).wait(0.25).left == [8, 10, 12]
    assert clocked.dropped == (1, 0, 0)


def test_a_slow_connection_is_waited_for_as_long_as_it_delivers() -> None:
    clocked = Clocked(2).add(0, 10, 50, 60)
    for image_id in (20, 30, 40):
        clocked.wait(0.15).add(1, image_id)
    assert clocked.left == [10, 20, 30, 40]
    assert clocked.wait(0.25).left == [10, 20, 30, 40, 50, 60]


def test_a_full_window_lets_the_lowest_go() -> None:
    clocked = Clocked(2, window=3).add(0, 10, 20, 30, 40, 50)
    assert clocked.left == []
    assert clocked.add(0, 60, 70).left == [10, 20]


def test_a_full_window_is_not_filled_further_but_by_those_that_lag_behind() -> None:
    clocked = Clocked(3, window=3).add(0, 10, 20).add(1, 5)
    assert [clocked.order.wants(c) for c in range(3)] == [False, False, True]
    assert clocked.add(2, 7).left == [5]
    assert [clocked.order.wants(c) for c in range(3)] == [False, True, False]
    assert clocked.add(1, 12).left == [5, 7]


def test_a_connection_that_fell_silent_is_not_waited_for() -> None:
    clocked = Clocked(2).add(1, 2).add(0, 4).wait(0.9).add(0, 6).wait(0.9).add(0, 8, 10)
    assert clocked.left == [2, 4, 6, 8, 10]


def test_after_a_silence_of_all_connections_each_is_waited_for_again() -> None:
    clocked = Clocked(2).add(0, 2).add(1, 4).wait(0.2).wait(5).add(1, 8).add(0, 6).wait(0.2)
    assert (clocked.left, clocked.dropped) == ([2, 4, 6, 8], (0, 0, 0))


def test_duplicates_are_dropped_waiting_or_gone() -> None:
    clocked = Clocked(1).add(0, 1, 1, 2, 2, 3, 1, 4)
    assert (clocked.left, clocked.dropped) == ([1, 2, 3, 4], (0, 3, 0))
    clocked = Clocked(2).add(0, 10).add(1, 10).add(0, 20).add(1, 20).wait(0.2)
    assert (clocked.left, clocked.dropped) == ([10, 20], (0, 2, 0))


def test_one_image_sent_over_and_over_is_no_restart() -> None:
    clocked = Clocked(1).add(0, 1, 2, 3).add(0, *[2] * 50).add(0, 4)
    assert (clocked.left, clocked.dropped) == ([1, 2, 3, 4], (0, 50, 0))


def test_an_old_image_once_is_no_restart_even_before_a_silence() -> None:
    clocked = Clocked(1).add(0, 10, 12, 11).wait(2).add(0, 13)
    assert (clocked.left, clocked.dropped) == ([10, 12, 13], (1, 0, 0))


def test_a_restart_after_a_silence_is_known_at_once() -> None:
    clocked = Clocked(1).add(0, 100, 101).wait(1.5).add(0, 1, 2)
    assert (clocked.left, clocked.dropped) == ([100, 101, 1, 2], (0, 0, 1))


def test_a_restart_without_a_pause_loses_nothing() -> None:
    clocked = Clocked(1).add(0, *range(1, 101)).add(0, *range(20))
    assert (clocked.left, clocked.dropped) == ([*range(1, 101), *range(20)], (0, 0, 1))


def test_a_restart_that_sends_few_images_is_known_when_they_end() -> None:
    clocked = Clocked(1).add(0, 100, 101).add(0, 1, 2, 3).wait(0.5)
    assert clocked.left == [100, 101]
    assert (clocked.wait(0.6).left, clocked.dropped) == ([100, 101, 1, 2, 3], (0, 0, 1))


def test_images_from_before_a_restart_that_lag_behind_are_late() -> None:
    clocked = Clocked(2).add(0, *range(100, 120, 2)).add(1, *range(101, 119, 2))
    clocked.add(0, *range(1, 21, 2)).add(1, 119, 2)
    assert clocked.left[:20] == [*range(100, 119), 1]
    assert clocked.dropped == (1, 0, 1)
    clocked.add(1, *range(4, 22, 2))
    assert clocked.left[19:] == list(range(1, 21))


@given(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=80), st.randoms())
@settings(deadline=None)
def test_connections_that_lag_within_the_window_lose_nothing(
    n_connections: int, steps: list[int], rng: random.Random
) -> None:
    ids = [sum(steps[: i + 1]) for i in range(len(steps))]
    queues = {c: ids[c::n_connections] for c in range(n_connections)}
    clocked = Clocked(n_connections, window=100)
    while any(queues.values()):
        connection = rng.choice([c for c, queue in queues.items() if queue])
        clocked.add(connection, queues[connection].pop(0))
    clocked.wait(0.2)
    assert (clocked.left, clocked.dropped) == (ids, (0, 0, 0))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.floats(0, 2)), max_size=120))
@settings(deadline=None)
def test_whatever_comes_every_image_leaves_or_is_counted_and_ids_rise_between_restarts(
    arrivals: list[tuple[int, int, float]],
) -> None:
    clocked = Clocked(4, window=5)
    for connection, image_id, pause_s in arrivals:
        clocked.add(connection, image_id).wait(max(0.0, pause_s - 1))
        assert clocked.order.n_waiting <= 5 + 4 + 8
    clocked.wait(2).wait(2)
    late, duplicate, restarts = clocked.dropped
    assert clocked.order.n_waiting == 0
    assert len(clocked.left) + late + duplicate == len(arrivals)
    falls = sum(b <= a for a, b in zip(clocked.left, clocked.left[1:], strict=False))
    assert falls <= restarts
