"""The course of a run: stretches of ids with pauses and a restart between them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango_stddaq.sim.course import Course


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        (Course(), [(7, 10, 0)]),
        (Course(pause_after=4, pause_s=2), [(7, 4, 0), (11, 6, 2)]),
        (Course(restart_after=4), [(7, 4, 0), (7, 6, 0)]),
        (Course(pause_after=4, pause_s=2, restart_after=4), [(7, 4, 0), (7, 6, 2)]),
        (Course(pause_after=6, pause_s=2, restart_after=4), [(7, 4, 0), (7, 2, 0), (9, 4, 2)]),
        (Course(pause_after=10, restart_after=99), [(7, 10, 0)]),
    ],
)
def test_stretches(course: Course, expected: list[tuple[int, int, float]]) -> None:
    assert list(course.stretches(10, 7)) == expected


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_no_image_is_lost_between_stretches(pause: int, restart: int, n: int) -> None:
    stretches = list(Course(pause, 1, restart).stretches(n, 1))
    assert sum(images for _, images, _ in stretches) == n
    assert sum(bool(pause_s) for _, _, pause_s in stretches) == (0 < pause < n)
    ids = [first + i for first, images, _ in stretches for i in range(images)]
    restarts = sum(later <= before for before, later in pairwise(ids))
    assert restarts == (0 < restart < n)
