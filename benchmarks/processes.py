"""Stages and senders in processes of their own, as they run in production, and what each one cost."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from tango_stddaq import config as config_module
from tango_stddaq.config import DaqConfig
from tango_stddaq.stages.base import Stage

_SPAWN = multiprocessing.get_context("spawn")


def cpu_s() -> float:
    """Return the CPU seconds that this process has used, its system calls included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Child:
    """A process that answers questions: any function sent to it is called there with its object."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        self.name = name
        here, there = _SPAWN.Pipe()
        self._pipe: Connection = here
        self._process = _SPAWN.Process(target=_serve, args=(there, make, arguments), daemon=True)
        self._process.start()
        there.close()
        self._answer()

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Call a function of a module with the child's object, there; return what it returns."""
        self.begin(question)
        return self._answer()

    def begin(self, question: Callable[[Any], Any]) -> None:
        """Ask without waiting for the answer, which `end` returns."""
        self._pipe.send(question)

    def end(self) -> Any:
        """Return the answer to what `begin` asked."""
        return self._answer()

    def _answer(self) -> Any:
        kind, value = self._pipe.recv()
        if kind == "error":
            raise RuntimeError(f"{self.name}: {value}")
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        made = make(*arguments)
        pipe.send(("ok", None))
        while True:
            question = pipe.recv()
            pipe.send(("ok", question(made)))
    except EOFError:
        if isinstance(made, Stage):
            made.stop()
    except Exception as error:  # the parent shall know
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def start_stage(kind: type[Stage], config: dict[str, Any], arguments: dict[str, Any]) -> Stage:
    """Run a stage in this process."""
    stage = kind(config_module.from_dict(config), **arguments)
    stage.start()
    return stage


def counters_of(stage: Stage) -> tuple[dict[str, int], float]:
    """Return a stage's counters and the CPU seconds of its process."""
    stage._tick()
    return dict(stage.counters), cpu_s()


@contextmanager
def stages(config: DaqConfig, *kinds: tuple[type[Stage], dict[str, Any]]) -> Iterator[list[Child]]:
    """Run stages in processes of their own, in this order; they end with the block."""
    data = config.model_dump(mode="json")
    children: list[Child] = []
    try:
        for kind, arguments in kinds:
            children.append(Child(kind.name, start_stage, kind, data, arguments))
        time.sleep(0.3)  # sockets find each other
        yield children
    finally:
        for child in reversed(children):
            child.close()
