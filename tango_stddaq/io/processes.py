"""Child processes that never outlive their parent, and signals that come at the wrong time."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LEASH: Final = "STDDAQ_PARENT_PID"


def leash_environment() -> dict[str, str]:
    """Return an environment in which a server of ours ends when this process does."""
    return {**os.environ, _LEASH: str(os.getpid())}


def leash_command(command: list[str]) -> list[str]:
    """Return a command that runs any program so that it ends when this process does."""
    return [sys.executable, "-m", __name__, *command]


ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a program."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals that end the program wait until the block is done.

    A child that was started when one comes must be known to who ends it. The signals are not blocked:
    the child would inherit that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    old = {
        number: signal.signal(number, lambda came, _frame: waiting.append(came))
        for number in ENDINGS
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for came in waiting:
            signal.raise_signal(came)


def hear_endings() -> None:
    """Let the signals that end a program come through.

    Tango's Starter blocks them for itself, and what it starts inherits that: such a server would not end
    before it is killed, and leave its shared memory behind.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, where the parent has asked for it."""
    parent = os.environ.get(_LEASH)
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked
        sys.exit(f"the parent process {parent} is gone")


if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 -- a list, no shell
