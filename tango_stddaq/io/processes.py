"""Child processes that never outlive their parent."""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LEASH: Final = "STDDAQ_PARENT_PID"


def leash_environment() -> dict[str, str]:
    """Return an environment in which a server of ours ends when this process does."""
    return {**os.environ, _LEASH: str(os.getpid())}


def leash_command(command: list[str]) -> list[str]:
    """Return a command that runs any program so that it ends when this process does."""
    return [sys.executable, "-m", __name__, *command]


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
