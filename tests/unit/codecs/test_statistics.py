"""Statistics as lines of the InfluxDB line protocol."""

import platform

from tango_stddaq.codecs import statistics

HOST = platform.node()


def test_a_line_has_measurement_sorted_tags_fields_and_time() -> None:
    line = statistics.encode(
        "udp-recv",
        {"detector": "EG05M", "module": "3"},
        {"frames_counter": 1200, "repetition_rate_hz": 99.5},
        time_ns=1_700_000_000_000_000_001,
    )
    assert line == (
        f"udp-recv,detector=EG05M,host={HOST},module=3 "
        "frames_counter=1200i,repetition_rate_hz=99.5 1700000000000000001"
    )


def test_empty_tags_are_left_out_and_special_characters_escaped() -> None:
    line = statistics.encode("a b", {"detector": "x,y=z w", "source": ""}, {"n": 1}, 5)
    assert line == rf"a\ b,detector=x\,y\=z\ w,host={HOST} n=1i 5"


def test_a_line_stays_one_line() -> None:
    assert "\n" not in statistics.encode("m", {"detector": "a\nb"}, {"n": 1}, 5)


def test_a_rate_that_is_no_number_is_left_out() -> None:
    line = statistics.encode("m", {}, {"n": 1, "rate": float("nan")}, 5)
    assert line == f"m,host={HOST} n=1i 5"


def test_without_a_time_it_is_now() -> None:
    first, second = (int(statistics.encode("m", {}, {"n": 1}).rsplit(" ")[-1]) for _ in range(2))
    assert 10**18 < first <= second
