"""Stages that run in the process of a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from tango_stddaq.stages.base import Stage


@contextmanager
def running(*stages: Stage) -> Iterator[None]:
    """Start them in this order, and stop them in the opposite one; none may have failed by then."""
    try:
        for stage in stages:
            stage.start()
        yield
    finally:
        for stage in reversed(stages):
            stage.stop()
    assert [stage.error for stage in stages] == [None] * len(stages)
