"""What `stddaq watch` shows: facade and stages, read over Tango."""

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import tango
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tango_stddaq.devices.reasons import first_line
from tango_stddaq.errors import StdDaqError

_TIMEOUT_MS: Final = 1000
_HISTORY: Final = 30
_BARS: Final = "▁▂▃▄▅▆▇█"
_COLOURS: Final = {
    "RUNNING": "green", "STANDBY": "green", "ALARM": "yellow", "FAULT": "red", "INIT": "yellow",
}  # fmt: skip
_ATTRIBUTES: Final = (
    "State", "Status", "acquisitionStatus", "progress", "imageRate", "ledger", "stageStates", "lastFile",
)  # fmt: skip


@dataclass
class StageView:
    """What is known of a stage: its state, and its rate over the last time."""

    device: str
    state: str = "not running"
    status: str = ""
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))


def find_facade() -> str:
    """Return the facade in the database of TANGO_HOST.

    Raises
    ------
    StdDaqError
        If there is none, or more than one, or no database.
    """
    try:
        found = list(tango.Database().get_device_exported("*/stddaq/facade"))
    except tango.DevFailed as error:
        raise StdDaqError(
            f"no Tango database: {first_line(error)}; set TANGO_HOST, as `stddaq up` prints it"
        ) from None
    if len(found) != 1:
        raise StdDaqError(
            f"{len(found)} facades in the database: {', '.join(found)}; name one"
            if found
            else "no facade in the database; start the system with `stddaq up`"
        )
    return str(found[0])


def proxy_of(device: str) -> tango.DeviceProxy:
    """Return a proxy that waits for answers no longer than a look may take.

    Raises
    ------
    StdDaqError
        If there is no such device.
    """
    try:
        proxy = tango.DeviceProxy(device)
    except tango.DevFailed as error:
        raise StdDaqError(f"{device}: {first_line(error)}") from None
    proxy.set_timeout_millis(_TIMEOUT_MS)
    return proxy


class Watcher:
    """Reads the facade and its stages, and draws them.

    A device that does not answer is said to be so, and asked again the next time.
    """

    def __init__(self, facade: tango.DeviceProxy) -> None:
        self._facade = facade
        # The stages are registered where the facade is, whatever TANGO_HOST says.
        self._prefix = f"tango://{facade.get_db_host()}:{facade.get_db_port()}/"
        self._proxies: dict[str, tango.DeviceProxy] = {}
        self._stages: dict[str, StageView] = {}

    def look(self) -> RenderableType:
        """Read everything once; returns the picture."""
        try:
            replies = self._facade.read_attributes(list(_ATTRIBUTES))
            values = {reply.name: reply.value for reply in replies}
        except tango.DevFailed as error:
            return Text(f"{self._facade.dev_name()} does not answer: {first_line(error)}", "red")
        for line in values["stageStates"] or ():
            device, _, state = line.partition(": ")
            self._look_at(self._stages.setdefault(device, StageView(device)), state)
        return draw(self._facade.dev_name(), values, list(self._stages.values()))

    def _look_at(self, stage: StageView, state: str) -> None:
        stage.state, stage.status, rate = state, "", 0.0
        if state != "not running":
            try:
                if stage.device not in self._proxies:
                    self._proxies[stage.device] = proxy_of(self._prefix + stage.device)
                replies = self._proxies[stage.device].read_attributes(["rate", "Status"])
                rate, stage.status = (reply.value for reply in replies)
            except (tango.DevFailed, StdDaqError):
                stage.state = "no answer"
        stage.rates.append(rate)


def draw(name: str, values: dict[str, Any], stages: list[StageView]) -> RenderableType:
    """Return the picture of a facade and its stages.

    Parameters
    ----------
    values
        Attributes of the facade by name.
    """
    state = str(values["State"])
    head = Text.assemble(
        (name, "bold"), "  ", (state, _COLOURS.get(state, "red")), f"  {values['Status']}"
    )
    ledger = json.loads(values["ledger"] or "{}")
    counts = "  ".join(f"{key} {ledger.get(key, 0)}" for key in ("expected", "complete"))
    losses = [
        (f"  {key} {ledger.get(key, 0)}", "yellow" if ledger.get(key) else "")
        for key in ("incomplete", "lost")
    ]
    progress = Table.grid(padding=(0, 1))
    progress.add_row(
        Text(str(values["acquisitionStatus"])),
        ProgressBar(total=100, completed=values["progress"], width=30),
        Text(f"{values['progress']:.0f} %  {values['imageRate']:.1f} images/s"),
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "state", "Hz"):
        table.add_column(column, justify="right" if column == "Hz" else "left", no_wrap=True)
    table.add_column(f"last {_HISTORY} looks", no_wrap=True)
    table.add_column("")
    for stage in stages:
        shown = stage.status if stage.state in ("ALARM", "FAULT") else ""
        table.add_row(
            stage.device.rpartition("/")[2],
            Text(stage.state, _COLOURS.get(stage.state, "red")),
            f"{stage.rates[-1]:.1f}" if stage.rates else "",
            Text(sparkline(stage.rates), "cyan"),
            Text(shown, "yellow"),
        )
    file = Text(f"last file {values['lastFile'] or '-'}", "dim")
    return Group(head, progress, Text.assemble(counts, *losses), file, Text(), table)


def sparkline(values: "deque[float] | list[float]") -> str:
    """Return values as bars, from 0 to the highest of them."""
    top = max(values, default=0.0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in values)
