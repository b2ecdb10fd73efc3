"""Pictures that a person recognises: powder rings, Bragg spots, and the image id in large digits."""

from typing import Final

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

_N_SPOTS: Final = 60
_RINGS: Final = (0.18, 0.31, 0.36, 0.52, 0.61, 0.80)
"""Radii in units of half the image's longer side."""
N_MARKS: Final = 251
"""Values of the pixel that only one of so many consecutive ids has; they fit in the lowest byte."""


class DiffractionPicture:
    """A diffraction pattern that turns with the image id, under the id in digits.

    Every pixel is a pure function of the image id, so that a swapped or torn image shows.

    Parameters
    ----------
    shape
        (height, width).
    dtype
        Unsigned; bright parts stay below its maximum.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.shape = shape
        self.dtype = dtype
        height, width = shape
        self._scale = 1.0 if dtype.itemsize == 1 else 10.0
        y, x = np.mgrid[:height, :width].astype(np.float32)
        self._center = (height * 0.5, width * 0.5)
        self._reach = max(height, width) / 2
        radius = np.hypot(y - self._center[0], x - self._center[1]) / self._reach
        background = 18 * np.exp(-3 * radius) + 3
        rings = np.zeros(shape, np.float32)
        for strength, ring in zip((40, 70, 30, 50, 35, 25), _RINGS, strict=True):
            rings += strength * np.exp(-(((radius - ring) / 0.006) ** 2))
        self._base = ((background + rings) * self._scale).astype(dtype)
        rng = np.random.default_rng(20)
        self._spot_radius = rng.uniform(0.1, 0.95, _N_SPOTS) * self._reach
        self._spot_angle = rng.uniform(0, 2 * np.pi, _N_SPOTS)
        self._font = ImageFont.load_default(size=max(10, min(shape) // 5))

    def image(self, image_id: int) -> np.ndarray:
        """Return the picture of one image id, (height, width) of the dtype."""
        result = self._base.copy()
        angle = self._spot_angle + 0.01 * image_id
        y = (self._center[0] + self._spot_radius * np.sin(angle)).astype(int)
        x = (self._center[1] + self._spot_radius * np.cos(angle)).astype(int)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                yy, xx = y + dy, x + dx
                inside = (yy >= 0) & (yy < self.shape[0]) & (xx >= 0) & (xx < self.shape[1])
                result[yy[inside], xx[inside]] = int(240 * self._scale)
        result[self._digits(image_id)] = int(200 * self._scale)
        # One pixel that only this id has: two neighbours never look alike.
        result[0, 0] = image_id % N_MARKS
        return result

    def _digits(self, image_id: int) -> np.ndarray:
        text = str(image_id)
        canvas = PilImage.new("1", (self.shape[1], self.shape[0]))
        margin = max(2, min(self.shape) // 20)
        ImageDraw.Draw(canvas).text((margin, margin), text, fill=1, font=self._font)
        return np.asarray(canvas)
