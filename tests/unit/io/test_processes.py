"""Signals that come at the wrong time."""

import os
import signal
import time

import pytest

from tango_stddaq.io.processes import uninterrupted


def test_a_signal_waits_until_the_block_is_done() -> None:
    done = []

    @uninterrupted()
    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_child_is_not_deaf_to_what_its_parent_lets_wait() -> None:
    with uninterrupted():
        child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    time.sleep(0.2)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT
