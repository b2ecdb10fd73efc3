"""CPU lists, and threads that keep to them."""

import os
import threading

import pytest

from tango_stddaq.errors import ConfigError
from tango_stddaq.io import cpus
from tango_stddaq.io.cpus import parse_cpus, running_on

OURS = frozenset(os.sched_getaffinity(0))


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lets us use eight CPUs, whatever this one does."""
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3, 4, 5, 6, 9})


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2-5", {2, 3, 4, 5}),
        ("0,2", {0, 2}),
        (" 0 , 4 - 6 ,9", {0, 4, 5, 6, 9}),
        ("3", {3}),
        ("3-3,3", {3}),
        ("", None),
        ("  ", None),
    ],
)
def test_lists_and_ranges_are_read(text: str, expected: set[int] | None) -> None:
    assert parse_cpus(text) == expected


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("7", "no CPU 7 "),
        ("5-8", "no CPU 7-8 "),
        ("5-2", "'5-2' is not a range"),
        ("all", ""),
        ("0-", ""),
        ("-1", ""),
        ("1,,2", ""),
        ("0-1-2", ""),
        ("0-999999999999", ""),
        ("²", ""),
    ],
)
def test_a_wrong_list_names_the_cpus_there_are(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cpus(text)
    assert what in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "allowed are CPUs out of 0-6,9" in str(caught.value)


def test_threads_started_meanwhile_keep_to_the_cpus() -> None:
    one = frozenset({min(OURS)})
    may_look, seen = threading.Event(), []

    def look() -> None:
        may_look.wait(10)
        seen.append(frozenset(os.sched_getaffinity(0)))

    thread = threading.Thread(target=look)
    with running_on(one):
        assert frozenset(os.sched_getaffinity(0)) == one
        thread.start()
    assert frozenset(os.sched_getaffinity(0)) == OURS
    may_look.set()
    thread.join()
    assert seen == [one]


def test_the_thread_is_free_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), running_on(frozenset({min(OURS)})):
        raise ZeroDivisionError
    assert frozenset(os.sched_getaffinity(0)) == OURS


def test_no_list_changes_nothing() -> None:
    with running_on(None):
        assert frozenset(os.sched_getaffinity(0)) == OURS
