"""A window off screen that does what it is told on stdin and answers on stdout, a line of JSON each."""

import json
import os
import sys
import threading
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np
from taurus.external.qt import Qt

from tango_stddaq.gui.model import FacadeModel
from tango_stddaq.gui.window import Window, application


class Ear(Qt.QObject):
    """Brings lines of stdin to the window's thread."""

    heard = Qt.pyqtSignal(str)


def answer(window: Window, asked: dict[str, Any]) -> object:
    form = window.form
    match asked["do"]:
        case "set":
            form.directory.setText(asked["directory"])
            form.prefix.setText(asked["prefix"])
            form.n_images.setValue(asked["n_images"])
        case "click":
            getattr(form, f"{asked['button']}_button").click()
        case "shot":
            window.grab().save(asked["path"])
        case "pixels":
            image = window.image.item.image
            return None if image is None else np.asarray(image).tolist()
    table = window.stages.table
    return {
        "title": window.image.title.text(),
        "banner": window.banner.text(),
        "message": form.message.text(),
        "progress": form.progress.text(),
        "counts": window.ledger.counts,
        "verdict": window.ledger.verdict.text(),
        "detector": window.rates.detector.text(),
        "file": window.rates.file.text(),
        "directory": form.directory.text(),
        "can_start": form.start_button.isEnabled(),
        "can_stop": form.stop_button.isEnabled(),
        "stages": {
            table.item(row, 0).text(): table.item(row, 1).text() for row in range(table.rowCount())
        },
    }


def main() -> None:
    app = application()
    model = FacadeModel(sys.argv[1])
    window = Window(model)
    window.show()
    model.start()
    ear = Ear()

    def obey(line: str) -> None:
        sys.stdout.write(json.dumps(answer(window, json.loads(line))) + "\n")
        sys.stdout.flush()

    ear.heard.connect(obey)

    def listen() -> None:
        for line in sys.stdin:
            ear.heard.emit(line)
        app.quit()

    threading.Thread(target=listen, daemon=True).start()
    app.exec_()
    model.close()


if __name__ == "__main__":
    main()
