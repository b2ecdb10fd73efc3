"""What the window knows of the facade, and how it asks of it: never in the window's own thread."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import tango
import taurus
from taurus.core.taurusbasetypes import TaurusEventType
from taurus.external.qt import Qt

from tango_stddaq.devices.reasons import one_line

FOLLOWED: Final = (
    "State", "Status", "acquiring", "progress", "imagesExpected", "imagesComplete",
    "imagesIncomplete", "imagesLost", "endReason", "lastFile", "stageStates", "imageRate",
    "detectorRate", "preview", "previewId",
)  # fmt: skip
"""Attributes of the facade; it pushes change events of all of them."""
SET_ONCE: Final = ("outputPath", "filePrefix", "imageCount", "startId", "overwrite")
_CALL_TIMEOUT_MS: Final = 15_000


class FacadeModel(Qt.QObject):
    """Follows a facade by events, and carries out commands in a thread of its own.

    Signals
    -------
    changed
        Attribute name and value; a value of None: the facade does not answer.
    refused
        Why a command was not carried out.
    settings
        The values of `SET_ONCE`, once the facade has told them.
    """

    changed = Qt.pyqtSignal(str, object)
    refused = Qt.pyqtSignal(str)
    done = Qt.pyqtSignal(str)
    settings = Qt.pyqtSignal(dict)

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self._worker = ThreadPoolExecutor(1, "facade")
        self._attributes: list[Any] = []
        self._listeners: list[Callable[..., None]] = []

    def start(self) -> None:
        """Begin to follow; what is not there yet is found when it comes."""
        self._worker.submit(self._subscribe)

    def close(self) -> None:
        """End all subscriptions."""
        self._worker.submit(self._unsubscribe)
        self._worker.shutdown(wait=True, cancel_futures=False)

    def _subscribe(self) -> None:
        with tango.EnsureOmniThread():
            for name in FOLLOWED:
                attribute = taurus.Attribute(f"{self.device}/{name}")
                listener = self._listener(name)
                self._attributes.append(attribute)
                self._listeners.append(listener)  # Taurus keeps weak references only
                attribute.addListener(listener)
            self._read_settings()

    def _unsubscribe(self) -> None:
        for attribute, listener in zip(self._attributes, self._listeners, strict=True):
            attribute.removeListener(listener)

    def _listener(self, name: str) -> Callable[..., None]:
        def heard(_source: Any, kind: Any, value: Any) -> None:
            if kind == TaurusEventType.Error:
                self.changed.emit(name, None)
            elif kind in (TaurusEventType.Change, TaurusEventType.Periodic):
                self.changed.emit(name, plain(value.rvalue))

        return heard

    def _proxy(self) -> tango.DeviceProxy:
        proxy = tango.DeviceProxy(self.device)
        proxy.set_timeout_millis(_CALL_TIMEOUT_MS)
        return proxy

    def _read_settings(self) -> None:
        try:
            found = {reply.name: reply.value for reply in self._proxy().read_attributes(list(SET_ONCE))}
        except tango.DevFailed as error:
            self.refused.emit(f"{self.device}: {one_line(error)}")
        else:
            self.settings.emit(found)

    # -- commands ----------------------------------------------------------------------------------

    def acquire(self, settings: dict[str, Any]) -> None:
        """Set what is asked for and start."""

        def call(proxy: tango.DeviceProxy) -> None:
            proxy.write_attributes(list(settings.items()))
            proxy.command_inout("Start")

        self._ask("Start", call)

    def command(self, name: str) -> None:
        """Run a command without arguments: Stop, Abort, Reset."""
        self._ask(name, lambda proxy: proxy.command_inout(name))

    def _ask(self, what: str, call: Callable[[tango.DeviceProxy], Any]) -> None:
        def work() -> None:
            with tango.EnsureOmniThread():
                try:
                    call(self._proxy())
                except tango.DevFailed as error:
                    self.refused.emit(f"{what}: {one_line(error)}")
                else:
                    self.done.emit(what)

        self._worker.submit(work)


def plain(value: Any) -> Any:
    """Return a value of Taurus without its unit."""
    value = getattr(value, "magnitude", value)
    return value.name if hasattr(value, "name") and not hasattr(value, "dtype") else value


def quiet() -> None:
    """Let Taurus say only what is wrong."""
    taurus.setLogLevel(taurus.Warning)
    logging.getLogger("TaurusRootLogger").setLevel(logging.ERROR)
