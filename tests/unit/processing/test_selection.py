"""Which images a live stream sends."""

import pytest

from tango_stddaq.config_entries import LiveStreamConfig
from tango_stddaq.processing.selection import Selector, selector


def sent(select: Selector, rate_hz: float, seconds: float, start_s: float = 1000.0) -> list[int]:
    """Offer images at a steady rate; return the ids that are sent."""
    return [i for i in range(round(rate_hz * seconds)) if select(i, start_s + i / rate_hz)]


def test_forward_sends_everything() -> None:
    assert sent(selector(LiveStreamConfig(type="forward")), 10, 1) == list(range(10))


def test_batch_goes_by_the_image_id_alone() -> None:
    select = selector(LiveStreamConfig(type="batch", config=(2, 5)))
    assert [i for i in range(95, 108) if select(i, 0.0)] == [95, 96, 100, 101, 105, 106]
    assert [i for i in (2**64 - 3, 2**64 - 2, 2**64 - 1) if select(i, 0.0)] == [2**64 - 1]


def test_batch_of_all_sends_everything() -> None:
    assert sent(selector(LiveStreamConfig(type="batch", config=(3, 3))), 10, 1) == list(range(10))


def test_periodic_sends_n_consecutive_images_at_the_start_of_every_period() -> None:
    select = selector(LiveStreamConfig(type="periodic", config=(3, 2)))
    found = sent(select, rate_hz=64, seconds=2)
    assert found == [start + i for start in (0, 32, 64, 96) for i in range(3)]


def test_periodic_keeps_its_rate_where_it_does_not_divide_the_image_rate() -> None:
    select = selector(LiveStreamConfig(type="periodic", config=(1, 10)))
    assert len(sent(select, rate_hz=33, seconds=10)) == pytest.approx(100, abs=1)


def test_periodic_does_not_make_up_for_a_pause_by_a_burst() -> None:
    select = selector(LiveStreamConfig(type="periodic", config=(1, 1)))
    assert sent(select, 10, 1) == [0]
    assert sent(select, 10, 1, start_s=2000.0) == [0]


def test_periodic_sends_all_when_images_are_slower_than_the_period() -> None:
    assert sent(selector(LiveStreamConfig(type="periodic", config=(1, 50))), 5, 2) == list(range(10))
