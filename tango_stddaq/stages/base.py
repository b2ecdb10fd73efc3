"""The shape that every stage has: settings, start, stop, a run loop in one thread, counters, an error.

A stage knows no Tango. A Tango device, the `stddaq stage` command or a test starts it, reads its
counters from another thread, and stops it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import ClassVar, Final

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import StageError, StdDaqError
from tango_stddaq.io.cpus import running_on
from tango_stddaq.stages.report import Report
from tango_stddaq.stats import Counter, Rate

TURN_S: Final = 0.02
"""Longest time a turn of a run loop may wait for input: the stage's reaction time to `stop`."""
ALARM_HOLD_S: Final = 10.0
_SELDOM_S: Final = 10.0
LOG_LINES: Final = 200


class StageState(StrEnum):
    """Where a stage is in its life."""

    STANDBY = "standby"
    """Not running: start it."""
    WAITING = "waiting"
    """Running, but it cannot work before another one is there."""
    RUNNING = "running"
    """Working."""
    ALARM = "alarm"
    """Working, but it lost or damaged data within the last seconds."""
    FAULT = "fault"
    """Stopped by an error; `error` says which. It can be started again."""


class Stage:
    """Base of all stages.

    Subclasses set `name`, `counters_spec` and `main_counter`, and implement `_open`, `_turn` and
    `_close`. `_turn` does what there is to do, or waits at most `TURN_S`, and returns.

    Parameters
    ----------
    config
        The configuration that all stages share.
    label
        Which of several equal stages this is (a module, a writer, an address); "" if there is one.
    """

    name: ClassVar[str]
    counters_spec: ClassVar[tuple[Counter, ...]]
    label_tag: ClassVar[str] = "source"
    """Tag of the statistics that tells equal stages apart: module, id or source."""
    main_counter: ClassVar[str]
    """The counter whose growth is the stage's rate."""

    def __init__(self, config: DaqConfig, label: str = "") -> None:
        self.config = config
        self.label = label
        self.counters: dict[str, int] = {spec.name: 0 for spec in self.counters_spec}
        self.error: str | None = None
        self.rate_hz = 0.0
        self.log = logging.getLogger(f"tango_stddaq.{self.name}")
        self.log_lines: deque[str] = deque(maxlen=LOG_LINES)
        self.on_tick: Callable[[], None] | None = None
        """Called a few times a second from the run loop; a Tango device pushes its events here."""
        self.cpus: frozenset[int] | None = None
        """CPUs of the run loop and of all threads that `start` starts; None: all. Read by `start`."""
        self.on_message: Callable[[int, str], None] | None = None
        """Called with level and text of every message; a Tango device logs them too."""
        self.report = Report(config, self.name, self.label_tag, label)
        self._rate = Rate()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_losses = 0
        self._last_loss_s = -ALARM_HOLD_S
        self._loss_text = ""
        self._reset_requested = threading.Event()

    # -- what others call --------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the run loop is alive."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def state(self) -> StageState:
        """Where the stage is in its life."""
        if self.error is not None:
            return StageState.FAULT
        if not self.running:
            return StageState.STANDBY
        if self.waits_for:
            return StageState.WAITING
        if time.monotonic() - self._last_loss_s < ALARM_HOLD_S:
            return StageState.ALARM
        return StageState.RUNNING

    @property
    def status(self) -> str:
        """One sentence for a person."""
        match self.state:
            case StageState.FAULT:
                return f"Stopped by an error: {self.error}"
            case StageState.STANDBY:
                return "Ready. Start it to work."
            case StageState.WAITING:
                return f"Waits for {self.waits_for}."
            case StageState.ALARM:
                return f"Working, but losing: {self._loss_text}"
            case StageState.RUNNING:
                return self._describe()

    @property
    def waits_for(self) -> str:
        """Whom the running stage cannot work without, and who is not there; "" if nobody is missing."""
        return ""

    def start(self) -> None:
        """Open everything and start the run loop.

        Raises
        ------
        StageError
            If it runs already.
        StdDaqError
            If something cannot be opened; the stage stays as it was and may be started again.
        """
        if self.running:
            raise StageError(f"{self.title} is running already")
        self.error = None
        self._stop.clear()
        with running_on(self.cpus):  # what is started here inherits them
            try:
                self._open()
            except BaseException as error:
                self._close()
                if isinstance(error, StdDaqError):
                    self.say(logging.ERROR, str(error))
                raise
            self.report.start(self.counters)
            self._thread = threading.Thread(target=self._run, name=self.title, daemon=True)
            self._thread.start()
        self.say(logging.INFO, "[event] started")

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the run loop and close everything; harmless when it is not running."""
        self._stop.set()
        thread = self._thread
        if thread is None:
            return
        thread.join(timeout_s)
        if thread.is_alive():
            raise StageError(f"{self.title} did not stop within {timeout_s:g} s")
        self._thread = None

    def reset(self) -> None:
        """Set counters to zero and forget alarm and error; a running stage does it in its loop."""
        self.error = None
        if self.running:
            self._reset_requested.set()
        else:
            self._do_reset()

    @property
    def title(self) -> str:
        """Name and label."""
        return f"{self.name} {self.label}".rstrip()

    def say(self, level: int, message: str) -> None:
        """Log a message and keep it for those who ask the device."""
        self.log.log(level, message, extra={"service": self.report.program or self.title})
        stamp = time.strftime("%H:%M:%S")
        self.log_lines.append(f"{stamp} {logging.getLevelName(level).lower()} {message}")
        if self.on_message is not None:
            self.on_message(level, message)

    def say_seldom(self, message: str) -> bool:
        """Warn, unless it was done within the last seconds; returns whether it was done now.

        For what may happen with every message: a neighbour that is set up wrongly must not fill the log.
        """
        now = time.monotonic()
        if now < self._next_seldom_s:
            return False
        self._next_seldom_s = now + _SELDOM_S
        self.say(logging.WARNING, message)
        return True

    _next_seldom_s = 0.0

    # -- what a stage implements -------------------------------------------------------------------

    def _open(self) -> None:
        """Open sockets, rings, files. Called from `start`; what it raises, `start` raises."""
        raise NotImplementedError

    def _turn(self) -> None:
        """Do what there is to do, or wait at most `TURN_S` for it."""
        raise NotImplementedError

    def _close(self) -> None:
        """Close what is open; must bear being called when `_open` failed half way."""
        raise NotImplementedError

    def _tick(self) -> None:
        """Do what is due a few times a second: a subclass refreshes derived counters here."""

    def _reset(self) -> None:
        """Forget a subclass's own counts."""

    def _more_statistics(self) -> dict[str, float]:
        """Return what a subclass reports beside its counters; called once a period."""
        return {}

    def _program_keys(self) -> dict[str, str]:
        """Return what an existing program's statistics say before the numbers; {}: the label."""
        return {}

    def _describe(self) -> str:
        """Say what the running stage does."""
        spec = next(spec for spec in self.counters_spec if spec.name == self.main_counter)
        return f"Working: {self.counters[self.main_counter]} {spec.unit}, {self.rate_hz:.1f} Hz."

    # -- the run loop ------------------------------------------------------------------------------

    def _run(self) -> None:
        next_tick = time.monotonic()
        next_stats = next_tick + self.config.stats_collection_period
        try:
            while not self._stop.is_set():
                self._turn()
                now = time.monotonic()
                if self._reset_requested.is_set():
                    self._reset_requested.clear()
                    self._do_reset()
                if now >= next_tick:
                    next_tick = now + 0.2
                    self._tick_all(now)
                if now >= next_stats:
                    next_stats = now + self.config.stats_collection_period
                    self._publish_statistics()
        except Exception as error:  # the top of the run loop: nothing may die in silence
            self._fail_with(error)
        finally:
            try:
                self._close()
            except Exception as error:  # as above
                self._fail_with(error)
            self._publish_statistics()
            self._tick_all(time.monotonic())
            self.say(logging.INFO, "[event] stopped")

    def _fail_with(self, error: Exception) -> None:
        known = isinstance(error, StdDaqError)
        self.error = str(error) if known else f"{type(error).__name__}: {error}"
        self.say(logging.ERROR, self.error)
        if not known:
            self.log.info("traceback of %s", self.title, exc_info=error, extra={"service": self.title})

    def _tick_all(self, now: float) -> None:
        self._tick()
        self.rate_hz = self._rate.update(now, self.counters[self.main_counter])
        losses = sum(self.counters[spec.name] for spec in self.counters_spec if spec.loss)
        if losses > self._last_losses:
            if now - self._last_loss_s >= ALARM_HOLD_S:
                self.say(logging.WARNING, f"losing: {self._losses()}")
            self._last_loss_s = now
            self._loss_text = self._losses()
        self._last_losses = losses
        if self.on_tick is not None:
            self.on_tick()

    def _losses(self) -> str:
        parts = [
            f"{spec.name} {self.counters[spec.name]}"
            for spec in self.counters_spec
            if spec.loss and self.counters[spec.name]
        ]
        return ", ".join(parts)

    def _do_reset(self) -> None:
        self._publish_statistics()  # nothing that was counted goes unreported
        self._reset()
        for name in self.counters:
            self.counters[name] = 0
        self._last_losses = 0
        self._last_loss_s = -ALARM_HOLD_S
        self._rate = Rate()
        self.report.start(self.counters)

    def _publish_statistics(self) -> None:
        values = {**self.counters, **self._more_statistics()}
        title = self.report.program or self.title
        self.report.publish(title, values, self.rate_hz, self._program_keys())
