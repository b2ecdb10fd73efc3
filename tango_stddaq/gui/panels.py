"""The parts of the window beside the image: form, ledger, rates, stages."""

from typing import Any, Final

from taurus.external.qt import Qt

UNTIL_STOPPED: Final = 16_777_215
COLOURS: Final = {
    "RUNNING": "#2e9e5b",
    "STANDBY": "#3a7bd5",
    "ALARM": "#e08a1e",
    "FAULT": "#d64545",
    "not running": "#d64545",
}
"""Background of a state; others are grey."""
BINS: Final = (
    ("complete", "#2e9e5b", "all their packets came"),
    ("incomplete", "#e08a1e", "stored with packets missing"),
    ("lost", "#d64545", "in no file"),
)


class StateBanner(Qt.QLabel):
    """State and status, in the colour of the state."""

    def __init__(self) -> None:
        super().__init__("connecting")
        self.setWordWrap(True)
        self.setMinimumHeight(56)
        self._state = "UNKNOWN"
        self._status = ""
        self._show()

    def set_state(self, state: Any) -> None:
        """Show a state; None: the facade does not answer."""
        self._state = "no answer" if state is None else str(state)
        self._show()

    def set_status(self, status: Any) -> None:
        """Show a sentence."""
        self._status = "The facade does not answer. Is it running?" if status is None else str(status)
        self._show()

    def _show(self) -> None:
        colour = COLOURS.get(self._state, "#7a828c")
        self.setStyleSheet(
            f"background: {colour}; color: white; padding: 8px; border-radius: 4px; font-size: 13px;"
        )
        self.setText(f"<b>{self._state}</b><br>{self._status}")


class StartForm(Qt.QGroupBox):
    """What is asked for, and the buttons.

    Signals
    -------
    start
        The settings, by attribute name.
    """

    start = Qt.pyqtSignal(dict)
    stop = Qt.pyqtSignal()
    abort = Qt.pyqtSignal()

    def __init__(self) -> None:
        super().__init__("Acquisition")
        self.directory = Qt.QLineEdit()
        self.directory.setPlaceholderText("existing directory on the server")
        self.prefix = Qt.QLineEdit("run_")
        self.n_images = Qt.QSpinBox()
        self.n_images.setRange(1, UNTIL_STOPPED)
        self.n_images.setValue(100)
        self.until_stopped = Qt.QCheckBox("until stopped")
        self.until_stopped.toggled.connect(self.n_images.setDisabled)
        self.start_id = Qt.QSpinBox()
        self.start_id.setRange(0, 2**31 - 1)
        self.overwrite = Qt.QCheckBox("replace existing files")
        images = Qt.QHBoxLayout()
        images.addWidget(self.n_images, 1)
        images.addWidget(self.until_stopped)
        layout = Qt.QFormLayout(self)
        layout.addRow("directory", self.directory)
        layout.addRow("prefix", self.prefix)
        layout.addRow("images", images)
        layout.addRow("first id", self.start_id)
        layout.addRow("", self.overwrite)
        self.start_button = Qt.QPushButton("Start")
        self.stop_button = Qt.QPushButton("Stop")
        self.abort_button = Qt.QPushButton("Abort")
        self.stop_button.setToolTip("End the acquisition; what came is saved.")
        self.abort_button.setToolTip("End the acquisition and remove its files.")
        self.start_button.clicked.connect(lambda: self.start.emit(self.values()))
        self.stop_button.clicked.connect(self.stop)
        self.abort_button.clicked.connect(self.abort)
        buttons = Qt.QHBoxLayout()
        for button in (self.start_button, self.stop_button, self.abort_button):
            buttons.addWidget(button)
        layout.addRow(buttons)
        self.progress = Qt.QProgressBar()
        self.progress.setRange(0, 1000)
        layout.addRow(self.progress)
        self.message = Qt.QLabel()
        self.message.setWordWrap(True)
        layout.addRow(self.message)
        self.set_acquiring(acquiring=None)

    def values(self) -> dict[str, Any]:
        """Return what is asked for, by attribute of the facade."""
        n_images = UNTIL_STOPPED if self.until_stopped.isChecked() else self.n_images.value()
        return {
            "outputPath": self.directory.text(),
            "filePrefix": self.prefix.text(),
            "imageCount": n_images,
            "startId": self.start_id.value(),
            "overwrite": self.overwrite.isChecked(),
        }

    def set_values(self, found: dict[str, Any]) -> None:
        """Show what the facade was told last, where the user has entered nothing."""
        if not self.directory.text():
            self.directory.setText(found["outputPath"])
        if self.prefix.text() == "run_" and found["filePrefix"]:
            self.prefix.setText(found["filePrefix"])

    def set_acquiring(self, acquiring: Any) -> None:
        """Allow what is possible; None: the facade does not answer."""
        self.start_button.setEnabled(acquiring is not None and not acquiring)
        for button in (self.stop_button, self.abort_button):
            button.setEnabled(bool(acquiring))

    def set_progress(self, percent: Any) -> None:
        """Show the share of images that are accounted for."""
        self.progress.setValue(0 if percent is None else round(float(percent) * 10))
        self.progress.setFormat("" if percent is None else f"{float(percent):.1f} %")

    def tell(self, text: str, is_error: bool = False) -> None:
        """Show a message below the buttons."""
        self.message.setStyleSheet(f"color: {'#d64545' if is_error else '#444'};")
        self.message.setText(text)


class LedgerPanel(Qt.QGroupBox):
    """The account of images: three numbers that together are the expected ones."""

    def __init__(self) -> None:
        super().__init__("Images")
        self.counts: dict[str, int] = dict.fromkeys(("expected", *(b[0] for b in BINS)), 0)
        self._bar = _Bar()
        self.labels: dict[str, Qt.QLabel] = {}
        layout = Qt.QGridLayout(self)
        layout.addWidget(self._bar, 0, 0, 1, len(BINS) + 1)
        for column, (name, colour, meaning) in enumerate((("expected", "#444", "so far"), *BINS)):
            label = Qt.QLabel()
            label.setToolTip(meaning)
            label.setAlignment(Qt.Qt.AlignCenter)
            label.setStyleSheet(f"color: {colour};")
            self.labels[name] = label
            layout.addWidget(label, 1, column)
        self.verdict = Qt.QLabel()
        layout.addWidget(self.verdict, 2, 0, 1, len(BINS) + 1)
        self._show()

    def set_count(self, name: str, count: Any) -> None:
        """Show a count; None keeps the last one."""
        if count is not None:
            self.counts[name] = int(count)
            self._show()

    def _show(self) -> None:
        for name, label in self.labels.items():
            label.setText(f"<span style='font-size: 18px'><b>{self.counts[name]}</b></span><br>{name}")
        parts = [self.counts[name] for name, _, _ in BINS]
        closes = sum(parts) == self.counts["expected"]
        self.verdict.setText(
            "every image is accounted for" if closes else "the account is being settled"
        )
        self._bar.set_parts([(n, colour) for n, (_, colour, _) in zip(parts, BINS, strict=True)])


class _Bar(Qt.QWidget):
    """A bar of coloured parts."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[tuple[int, str]] = []
        self.setFixedHeight(12)

    def set_parts(self, parts: list[tuple[int, str]]) -> None:
        self._parts = parts
        self.update()

    def paintEvent(self, _event: Any) -> None:  # noqa: N802, Qt's name
        painter = Qt.QPainter(self)
        painter.fillRect(self.rect(), Qt.QColor("#d5dae0"))
        total, left = sum(n for n, _ in self._parts), 0.0
        for n, colour in self._parts:
            # What is there is seen, be it one image of a million.
            width = max(3.0, self.width() * n / total) if n else 0.0
            painter.fillRect(Qt.QRectF(left, 0, width, self.height()), Qt.QColor(colour))
            left += width
        painter.end()


class RatePanel(Qt.QGroupBox):
    """Images per second: what comes, what is recorded, and the last file."""

    def __init__(self) -> None:
        super().__init__("Rates")
        self.detector = Qt.QLabel("-")
        self.recorded = Qt.QLabel("-")
        self.file = Qt.QLabel("-")
        self.file.setTextInteractionFlags(Qt.Qt.TextSelectableByMouse)
        self.file.setWordWrap(True)
        layout = Qt.QFormLayout(self)
        layout.addRow("from the detector", self.detector)
        layout.addRow("recorded", self.recorded)
        layout.addRow("last file", self.file)

    def set_rate(self, label: Qt.QLabel, rate: Any) -> None:
        """Show a rate in Hz; None: not known."""
        label.setText("-" if rate is None else f"<b>{float(rate):.1f}</b> images/s")


class StagePanel(Qt.QGroupBox):
    """A row a stage, in the colour of its state."""

    def __init__(self) -> None:
        super().__init__("Stages")
        self.table = Qt.QTableWidget(0, 2)
        self.table.horizontalHeader().hide()
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.setEditTriggers(Qt.QAbstractItemView.NoEditTriggers)
        self.table.verticalHeader().setDefaultSectionSize(20)
        self.table.setSelectionMode(Qt.QAbstractItemView.NoSelection)
        Qt.QVBoxLayout(self).addWidget(self.table)

    def set_lines(self, lines: Any) -> None:
        """Show the facade's lines, `device: STATE`; None keeps the last ones."""
        if lines is None:
            return
        self.table.setRowCount(len(lines))
        for row, line in enumerate(lines):
            device, _, state = str(line).rpartition(": ")
            name = Qt.QTableWidgetItem(device.rsplit("/", 1)[-1])
            name.setToolTip(device)
            shown = Qt.QTableWidgetItem(state)
            shown.setBackground(Qt.QColor(COLOURS.get(state, "#7a828c")))
            shown.setForeground(Qt.QColor("white"))
            self.table.setItem(row, 0, name)
            self.table.setItem(row, 1, shown)
        self.table.resizeColumnToContents(0)
