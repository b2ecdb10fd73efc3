"""Messages held back."""

import pytest

from tango_stddaq.processing.delay import DelayLine, most_waiting


def test_a_message_goes_on_when_its_time_has_come_and_not_before() -> None:
    line = DelayLine(10.0, limit=100)
    line.put(1.0, 7, b"seven")
    line.put(3.0, 8, b"eight")
    assert line.take(10.9) == []
    assert line.take(11.0) == [(7, b"seven")]
    assert len(line) == 1
    assert line.take(13.5) == [(8, b"eight")]
    assert line.n_early == 0


def test_the_oldest_make_room_before_their_time() -> None:
    line = DelayLine(10.0, limit=2)
    for image_id in range(5):
        line.put(0.0, image_id, b"%d" % image_id)
    assert line.take(1.0) == [(0, b"0"), (1, b"1"), (2, b"2")]
    assert line.n_early == 3
    assert line.take_all() == [(3, b"3"), (4, b"4")]
    assert len(line) == 0


@pytest.mark.parametrize(
    ("n_slots", "waiting"), [(1000, 2), (1500, 502), (4, 2), (50, 25), (999, 499), (1, 1)]
)
def test_fewer_images_wait_than_the_ring_has_slots(n_slots: int, waiting: int) -> None:
    assert most_waiting(n_slots) == waiting
