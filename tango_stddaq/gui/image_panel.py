"""The live image: the facade's preview, as bright as its pixels allow."""

from typing import Any, Final

import numpy as np
import pyqtgraph as pg
from taurus.external.qt import Qt

_BRIGHT_PERCENTILE: Final = 99.5


class ImagePanel(Qt.QWidget):
    """Shows (height, width) numbers, the first row on top; NaN is transparent."""

    def __init__(self) -> None:
        super().__init__()
        self.title = Qt.QLabel("no image yet")
        self.title.setObjectName("imageTitle")
        self.item = pg.ImageItem(axisOrder="row-major")
        self.item.setColorMap(pg.colormap.get("inferno"))
        self._view = pg.GraphicsLayoutWidget()
        self._view.setBackground("#101418")
        box = self._view.addViewBox(lockAspect=True, invertY=True)
        box.addItem(self.item)
        self._box = box
        self._image_id = -1
        self._shape: tuple[int, ...] = ()
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.title)
        layout.addWidget(self._view, 1)

    def set_image_id(self, image_id: Any) -> None:
        """Note which image comes."""
        self._image_id = -1 if image_id is None else int(image_id)
        self._tell()

    def set_pixels(self, pixels: Any) -> None:
        """Show an image; None keeps the last one."""
        if pixels is None:
            return
        pixels = np.asarray(pixels)
        finite = pixels[np.isfinite(pixels)]
        if pixels.ndim != 2 or not finite.size:
            return
        low, high = float(finite.min()), float(np.percentile(finite, _BRIGHT_PERCENTILE))
        self.item.setImage(pixels, levels=(low, high if high > low else low + 1))
        if pixels.shape != self._shape:
            self._shape = pixels.shape
            self._box.autoRange(padding=0)
        self._tell()

    def _tell(self) -> None:
        if self._image_id < 0 or not self._shape:
            self.title.setText("no image yet")
            return
        height, width = self._shape
        brightest = float(np.nanmax(self.item.image))
        self.title.setText(
            f"image {self._image_id}   preview {width} x {height}   brightest {brightest:g}"
        )
