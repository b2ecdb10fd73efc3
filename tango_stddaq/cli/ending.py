"""How a command ends when it is told to: after TERM and a closed terminal as orderly as after Ctrl-C."""

import signal
import sys
from types import FrameType
from typing import Final, NoReturn

from tango_stddaq.io import processes

_AGAIN_S: Final = 0.01


class Terminated(SystemExit):
    """A signal ended the program; the code is that of the shell's custom, 143 after TERM."""


ENDED: Final = (KeyboardInterrupt, Terminated)
"""What a command catches that runs until it is told to end: to be told is no failure."""


def end_in_order() -> None:
    """Let TERM and a closed terminal raise `Terminated` in the main thread: context managers clean up.

    Python cannot raise anything in a destructor or in a callback from C: it prints what was raised and
    goes on. llvmlite is full of both, so what arrives while code is compiled would be lost. It is raised
    again until it gets through.
    """
    for number in endings():
        if number != signal.SIGINT:  # Python does that itself
            signal.signal(number, _terminate)
    show = sys.unraisablehook

    def raise_again(lost: "sys.UnraisableHookArgs") -> None:
        if not isinstance(lost.exc_value, ENDED):
            show(lost)
            return
        kind, arguments = type(lost.exc_value), lost.exc_value.args

        def again(_number: int, _frame: FrameType | None) -> NoReturn:
            raise kind(*arguments)

        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)

    sys.unraisablehook = raise_again


def endings() -> tuple[signal.Signals, ...]:
    """Return the signals that end this program; a closed terminal is none for who runs under `nohup`."""
    stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(n for n in processes.ENDINGS if not (stays and n == signal.SIGHUP))


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated(128 + number)
