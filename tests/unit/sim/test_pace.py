"""The pace of images: in the order of due times, never early, made up after a delay."""

import time

import pytest

from tango_stddaq.sim.pace import Pace

SLACK_S = 0.001
"""Below what was asked for: parts that are due so soon go together. Nothing here is an upper bound."""


@pytest.mark.parametrize(("rate_hz", "parts"), [(50.0, 1), (100.0, 4), (20_000.0, 1), (12_000.0, 8)])
def test_images_come_no_faster_than_the_rate(rate_hz: float, parts: int) -> None:
    pace = Pace(rate_hz)
    assert pace.rate_hz == pytest.approx(rate_hz)
    assert pace.due_in_s() <= 0
    started = time.monotonic()
    n = 6 if rate_hz < 1000 else 400
    for _ in range(n):
        for part in range(parts):
            pace.wait(part, parts)
    assert time.monotonic() - started >= (n - 1) / rate_hz - SLACK_S


def test_a_rate_of_0_does_not_wait() -> None:
    pace = Pace(0)
    pace.wait()
    assert pace.rate_hz == 0
    assert pace.due_in_s() == 0


def test_the_due_times_do_not_drift() -> None:
    pace = Pace(1000)
    pace.wait()
    first = pace.state.copy()
    for _ in range(20):
        pace.wait()
    assert pace.state[1] - first[1] == pytest.approx(20e6)


def test_a_delay_is_made_up_without_a_burst() -> None:
    pace = Pace(100)
    pace.wait()
    time.sleep(0.1)
    started = time.monotonic()
    for _ in range(6):  # all of them are overdue
        pace.wait()
    assert time.monotonic() - started >= 5 * 0.004 - SLACK_S


def test_a_higher_rate_takes_effect_at_once() -> None:
    pace = Pace(0.001)
    pace.wait()
    assert pace.due_in_s() > 100
    pace.rate_hz = 100
    assert pace.due_in_s() < 1
    pace.rate_hz = 0.001
    pace.wait()
    pace.restart()
    assert pace.due_in_s() == 0
