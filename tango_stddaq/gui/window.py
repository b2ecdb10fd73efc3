"""The window: its parts, and which attribute of the facade each of them shows."""

import sys
from collections.abc import Callable
from typing import Any, Final

from taurus.external.qt import Qt
from taurus.qt.qtgui.application import TaurusApplication

from tango_stddaq import __version__
from tango_stddaq.gui.image_panel import ImagePanel
from tango_stddaq.gui.model import FacadeModel, quiet
from tango_stddaq.gui.panels import LedgerPanel, RatePanel, StagePanel, StartForm, StateBanner

SIZE: Final = (1200, 820)
"""Width and height of the new window in pixels."""
_STYLE: Final = """
QWidget { font-size: 12px; }
QLabel#imageTitle { padding: 6px; font-size: 13px; }
"""


class Window(Qt.QMainWindow):
    """One data acquisition: look, start, stop."""

    def __init__(self, model: FacadeModel) -> None:
        super().__init__()
        self.model = model
        self.setWindowTitle(f"tango_stddaq: {model.device}")
        self.image = ImagePanel()
        self.banner = StateBanner()
        self.form = StartForm()
        self.ledger = LedgerPanel()
        self.rates = RatePanel()
        self.stages = StagePanel()
        side = Qt.QWidget()
        column = Qt.QVBoxLayout(side)
        column.setContentsMargins(0, 4, 6, 4)
        for part in (self.banner, self.form, self.ledger, self.rates):
            column.addWidget(part)
        column.addWidget(self.stages, 1)
        splitter = Qt.QSplitter()
        splitter.addWidget(self.image)
        splitter.addWidget(side)
        splitter.setStretchFactor(0, 3)
        splitter.setSizes([820, 380])
        self.setCentralWidget(splitter)
        self.setStyleSheet(_STYLE)
        self.resize(*SIZE)
        self._show: dict[str, Callable[[Any], None]] = {
            "State": self.banner.set_state,
            "Status": self.banner.set_status,
            "acquiring": self.form.set_acquiring,
            "progress": self.form.set_progress,
            "endReason": self._tell_end,
            "imagesExpected": lambda count: self.ledger.set_count("expected", count),
            "imagesComplete": lambda count: self.ledger.set_count("complete", count),
            "imagesIncomplete": lambda count: self.ledger.set_count("incomplete", count),
            "imagesLost": lambda count: self.ledger.set_count("lost", count),
            "lastFile": lambda path: self.rates.file.setText(path or "-"),
            "imageRate": lambda rate: self.rates.set_rate(self.rates.recorded, rate),
            "detectorRate": lambda rate: self.rates.set_rate(self.rates.detector, rate),
            "stageStates": self.stages.set_lines,
            "preview": self.image.set_pixels,
            "previewId": self.image.set_image_id,
        }
        model.changed.connect(self._on_change)
        model.refused.connect(lambda text: self.form.tell(text, is_error=True))
        model.done.connect(lambda what: self.form.tell(f"{what}: done"))
        model.settings.connect(self.form.set_values)
        self.form.start.connect(model.acquire)
        self.form.stop.connect(lambda: model.command("Stop"))
        self.form.abort.connect(lambda: model.command("Abort"))

    def _on_change(self, name: str, value: Any) -> None:
        show = self._show.get(name)
        if show is not None:
            show(value)

    def _tell_end(self, reason: Any) -> None:
        if reason:
            self.form.tell(str(reason))


def application() -> Any:
    """Return Taurus' application, made when it is asked for first."""
    quiet()
    found = Qt.QApplication.instance()
    return found or TaurusApplication(
        [sys.argv[0]], app_name="tango_stddaq", app_version=__version__, cmd_line_parser=None
    )


def run(device: str) -> int:
    """Show the window of a facade until it is closed; returns the exit code."""
    app = application()
    model = FacadeModel(device)
    window = Window(model)
    window.show()
    model.start()
    try:
        return int(app.exec_())
    finally:
        model.close()
