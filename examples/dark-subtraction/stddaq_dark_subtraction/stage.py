"""The detector's own signal, taken off every image."""

import numpy as np

from tango_stddaq.stages.own_stage import Image, ImageStage, Setting


class DarkSubtraction(ImageStage):
    """Images less the dark image; what is darker than the dark becomes 0."""

    name = "dark-subtraction"
    dark_images = Setting(0, "Write n: the mean of the next n images is the dark.", minimum=0)

    def prepare(self) -> None:
        """Begin without a dark image."""
        self._dark: np.ndarray | None = None
        self._sum: np.ndarray | None = None
        self._n_summed = 0

    def process(self, pixels: np.ndarray, image: Image) -> np.ndarray | None:
        """Return the image without its dark; None while the dark is taken."""
        if self.dark_images:
            self._add(pixels)
            return None
        if self._dark is None or self._dark.shape != pixels.shape:
            return pixels
        return pixels - np.minimum(pixels, self._dark)

    def _add(self, pixels: np.ndarray) -> None:
        if self._sum is None or self._sum.shape != pixels.shape:
            self._sum, self._n_summed = np.zeros(pixels.shape), 0
        self._sum += pixels
        self._n_summed += 1
        self.dark_images -= 1
        if not self.dark_images:
            self._dark = np.rint(self._sum / self._n_summed).astype(pixels.dtype)
            self._sum = None
