"""A stage as a program: a command of `stddaq stage` that runs until it is told to end."""

import functools
import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

import typer

from tango_stddaq import config as config_module
from tango_stddaq.cli.ending import endings
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError, StageError
from tango_stddaq.io import logs
from tango_stddaq.io.cpus import parse_cpus, running_on
from tango_stddaq.stages.base import Stage

Cpus = Annotated[
    str, typer.Option("--cpus", help="CPUs that the stage may use, like 2-5 or 0,2; else all.")
]


def stage_command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of its own, with the options that all stages have."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(*arguments: Any, cpus: str = "", **more: Any) -> None:
            try:
                allowed = parse_cpus(cpus)
            except ConfigError as error:
                raise typer.BadParameter(str(error), param_hint="--cpus") from None
            with running_on(allowed):
                function(*arguments, **more)

        own = inspect.signature(function)
        shared = inspect.Parameter("cpus", inspect.Parameter.KEYWORD_ONLY, default="", annotation=Cpus)
        call.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*own.parameters.values(), shared]
        )
        call.__annotations__ = {**function.__annotations__, "cpus": Cpus}
        app.command(name)(call)
        return function

    return register


def load(path: Path) -> DaqConfig:
    """Read the configuration and set up the log as it says."""
    config = config_module.load(path)
    logs.configure("stddaq", config.log_level)
    logs.note_unknown_keys(config.unknown_keys)
    return config


_START_POLL_S: Final = 0.05
_START_END_S: Final = 1.0
"""After so long a start that was told to end is taken to be compiling."""


def run(stage: Stage) -> None:
    """Run a stage until it is told to end.

    Raises
    ------
    StageError
        If the stage ended by an error.
    """
    stage.report.replaces_program()
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in endings():
        signal.signal(number, end)
    failures: list[BaseException] = []

    def start() -> None:
        try:
            stage.start()
        except BaseException as error:  # the main thread raises it
            failures.append(error)

    # A signal must not interrupt the compiler. What a stage compiles, it compiles before it makes
    # anything: who is told to end meanwhile can just go.
    starting = threading.Thread(target=start, name="start", daemon=True)
    starting.start()
    while starting.is_alive():
        starting.join(_START_POLL_S)
        if ended.is_set():
            starting.join(_START_END_S)
            if starting.is_alive():
                logging.shutdown()
                os._exit(0)
    if failures:
        raise failures[0]
    while not ended.wait(0.2):
        if not stage.running:
            raise StageError(stage.error or f"{stage.title} ended by itself")
    stage.stop(2.0)
