"""Change events: pushed by the device itself, so that no client needs to poll."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import tango
from tango.server import Device

_PUSHER_STOP_S: Final = 1.0


def push_change(device: Device, name: str, value: Any) -> None:
    """Push a change event; Tango takes State and Status from the device, not from the event."""
    if name == "State":
        device.set_state(value)
        device.push_change_event(name)
    elif name == "Status":
        device.set_status(value)
        device.push_change_event(name)
    else:
        device.push_change_event(name, value)


class EventPusher:
    """Pushes the events of a device from a thread of its own.

    An event needs the lock that Tango holds during a command, and a command may wait for a run loop: a
    run loop that pushed events itself would wait for the command.
    """

    def __init__(self, push: Callable[[], None]) -> None:
        self._push = push
        self._due = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Push soon what has changed."""
        self._due.set()

    def stop(self) -> None:
        """End the thread, now or after the event that waits for the lock of the caller."""
        self._stopped = True
        self._due.set()
        self._thread.join(_PUSHER_STOP_S)

    def _run(self) -> None:
        with tango.EnsureOmniThread():
            while self._due.wait() and not self._stopped:
                self._due.clear()
                try:
                    self._push()
                except tango.DevFailed as error:
                    log = logging.getLogger("tango_stddaq.events")
                    log.warning("an event was not sent: %s", error.args[0].desc)
