"""Images gathered from several connections: order, loss, restarts; every piece in one bin."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.processing.gather import Gathered, Gatherer


def three(queue_size: int = 50, max_waiting: int = 50) -> Gatherer[str]:
    return Gatherer(lambda _id: (0, 1, 2), queue_size, max_waiting)


def ids(images: list[Gathered[str]]) -> list[tuple[int, list[int]]]:
    return [(image.image_id, sorted(image.missing)) for image in images]


def test_an_image_goes_on_with_its_last_piece() -> None:
    gatherer = three()
    assert gatherer.add(5, 1, "b", 0) == []
    assert gatherer.add(5, 0, "a", 0) == []
    (image,) = gatherer.add(5, 2, "c", 0)
    assert image.complete
    assert image.items == {0: "a", 1: "b", 2: "c"}


def test_images_go_on_in_order_although_a_later_one_is_complete_first() -> None:
    gatherer = three()
    for c in (0, 1):
        assert not [*gatherer.add(1, c, "", 0), *gatherer.add(2, c, "", 0)]
    gatherer.add(1, 2, "", 0)
    assert ids(gatherer.add(2, 2, "", 0)) == [(2, [])]


def test_who_delivered_a_newer_image_is_not_waited_for() -> None:
    gatherer = three()
    gatherer.add(1, 0, "", 0)
    gatherer.add(1, 1, "", 0)
    assert ids(gatherer.add(2, 2, "", 0)) == [(1, [2])]
    assert gatherer.add(2, 0, "", 0) == []
    assert ids(gatherer.add(2, 1, "", 0)) == [(2, [])]


def test_a_dead_connection_is_waited_for_no_longer_than_the_queue() -> None:
    gatherer = three(queue_size=4)
    released = []
    for image_id in range(1, 11):
        for c in (0, 1):
            released += gatherer.add(image_id, c, "", 0)
    assert ids(released) == [(image_id, [2]) for image_id in range(1, 7)]
    assert gatherer.n_waiting == 4
    assert ids(gatherer.flush()) == [(image_id, [2]) for image_id in range(7, 11)]


def test_a_connection_that_is_only_behind_is_waited_for_longer() -> None:
    gatherer = three(queue_size=4, max_waiting=8)
    for c in range(3):
        gatherer.add(1, c, "", 0)
    released = []
    for image_id in range(2, 12):
        for c in (0, 1):
            released += gatherer.add(image_id, c, "", 0.1)
    assert ids(released) == [(2, [2]), (3, [2])]
    assert ids(gatherer.add(4, 2, "", 0.2)) == [(4, [])]


def test_a_piece_of_an_image_that_went_on_is_late() -> None:
    gatherer = three()
    gatherer.add(3, 0, "", 0)
    assert ids(gatherer.flush()) == [(3, [1, 2])]
    assert gatherer.add(3, 1, "", 0) == []
    assert gatherer.n_late == 1


def test_a_piece_that_comes_twice_counts_once() -> None:
    gatherer = three()
    gatherer.add(3, 0, "a", 0)
    assert gatherer.add(3, 0, "b", 0) == []
    assert gatherer.n_duplicate == 1


def test_gaps_in_ids_are_counted() -> None:
    gatherer = three()
    for image_id in (1, 2, 6):
        for c in range(3):
            gatherer.add(image_id, c, "", 0)
    assert gatherer.n_skipped == 3


def test_ids_may_start_again_at_once() -> None:
    gatherer = three()
    for _run in range(2):
        for image_id in (1, 2, 3):
            assert not gatherer.add(image_id, 0, "", 0)
            assert not gatherer.add(image_id, 1, "", 0)
            assert ids(gatherer.add(image_id, 2, "", 0)) == [(image_id, [])]
    assert (gatherer.n_restarts, gatherer.n_late, gatherer.n_skipped) == (1, 0, 0)


def test_a_connection_that_lags_behind_a_restart_does_not_mix_two_runs() -> None:
    gatherer = three()
    gatherer.add(1, 0, "old", 0)
    gatherer.add(1, 1, "old", 0)
    gatherer.add(2, 0, "old", 0)
    gatherer.add(2, 1, "old", 0)
    gatherer.add(1, 0, "new", 0.1)
    gatherer.add(1, 1, "new", 0.1)
    assert [i.items for i in gatherer.add(1, 2, "old", 0.1)] == [{0: "old", 1: "old", 2: "old"}]
    assert [i.items for i in gatherer.add(2, 2, "old", 0.1)] == [{0: "old", 1: "old", 2: "old"}]
    assert [i.items for i in gatherer.add(1, 2, "new", 0.1)] == [{0: "new", 1: "new", 2: "new"}]


def test_a_connection_that_was_cut_off_during_a_restart_joins_again() -> None:
    gatherer = three()
    for c in range(3):
        gatherer.add(10, c, "", 0)
    for c in (0, 1):
        gatherer.add(11, c, "", 0.1)
    for image_id in range(1, 30):  # it starts again, without connection 2
        for c in (0, 1):
            gatherer.add(image_id, c, "", 1 + image_id / 10)
    released = []
    for image_id in (30, 31):
        for c in range(3):
            released += gatherer.add(image_id, c, "", 4 + image_id / 10)
    assert ids(released)[-2:] == [(30, []), (31, [])]


def test_pieces_that_do_not_say_where_they_come_from_are_counted() -> None:
    gatherer = three()
    assert not gatherer.add(1, None, "", 0)
    assert not gatherer.add(1, None, "", 0)
    (image,) = gatherer.add(1, None, "z", 0)
    assert (image.complete, image.n_anonymous, image.anonymous) == (True, 3, "z")
    gatherer.add(2, None, "", 0)
    (image,) = gatherer.flush()
    assert (image.complete, image.n_anonymous) == (False, 1)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.booleans()), max_size=200))
def test_every_piece_ends_in_one_bin_and_runs_go_up(pieces: list[tuple[int, int, bool]]) -> None:
    """Any order, any loss: no piece vanishes, and ids rise within a run."""
    gatherer: Gatherer[int] = Gatherer(lambda _id: (0, 1, 2), 2, 4)
    released: list[Gathered[int]] = []
    for at, (connection, image_id, flush) in enumerate(pieces):
        released += gatherer.add(image_id, connection, at, at * 0.3)
        if flush and at % 5 == 0:
            released += gatherer.flush()
        assert gatherer.n_waiting <= 4
    released += gatherer.flush()
    n_out = sum(len(image.items) for image in released)
    assert n_out + gatherer.n_late + gatherer.n_duplicate == len(pieces)
    assert not gatherer.n_waiting
    falls = sum(b.image_id <= a.image_id for a, b in pairwise(released))
    assert falls <= gatherer.n_restarts
