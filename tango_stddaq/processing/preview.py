"""A small picture of a large image, for screens."""

from typing import Final

import numpy as np

MAX_SIDE_PIXELS: Final = 512


def decimate(image: np.ndarray, max_side: int = MAX_SIDE_PIXELS) -> np.ndarray:
    """Shrink an image by a whole factor; each pixel is the largest of its block.

    The maximum, not the mean: a Bragg peak of one pixel stays visible.

    Parameters
    ----------
    image
        (height, width), any numeric type.
    max_side
        Longest side of the result in pixels.

    Returns
    -------
    np.ndarray
        (height / k, width / k), rounded up, float32, with the smallest k that fits.
    """
    return shrink(image, -(-max(image.shape) // max_side))


def shrink(image: np.ndarray, k: int) -> np.ndarray:
    """Shrink an image by the factor k, as `decimate` does."""
    if k == 1:
        return image.astype(np.float32)
    # Row by row, which is contiguous: many times as fast as block by block.
    rows = image[::k].copy()
    for first in range(1, k):
        part = image[first::k]
        np.maximum(rows[: len(part)], part, out=rows[: len(part)])
    peaks = rows[:, ::k].astype(np.float32)
    for first in range(1, k):
        part = rows[:, first::k]
        np.maximum(peaks[:, : part.shape[1]], part, out=peaks[:, : part.shape[1]])
    return peaks


def to_gray(image: np.ndarray) -> np.ndarray:
    """Map an image to 8-bit gray on a logarithmic scale between its 1st and 99.9th percentile.

    Returns
    -------
    np.ndarray
        (height, width) uint8.
    """
    values = np.log1p(np.clip(np.nan_to_num(image.astype(np.float64)), 0, None))
    low, high = np.percentile(values, [1.0, 99.9])
    if high <= low:
        low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(image.shape, np.uint8)
    return (np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
