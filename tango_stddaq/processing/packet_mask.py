"""Masks of missing packets: 64-bit words, a bit for each packet of a frame, set if it is missing."""

import numpy as np


def full_mask(n_packets: int) -> np.ndarray:
    """Return the mask of a frame of which nothing came, (ceil(n_packets / 64),) uint64."""
    bits = np.zeros(-(-n_packets // 64) * 64, np.uint8)
    bits[:n_packets] = 1
    return np.packbits(bits, bitorder="little").view("<u8")


def to_packets(mask: np.ndarray, n_modules: int, n_packets: int) -> np.ndarray:
    """Return a mask of all modules as (n_modules, n_packets) bool.

    Parameters
    ----------
    mask
        (n_modules * ceil(n_packets / 64),) uint64, modules one behind the other.
    """
    words = np.ascontiguousarray(mask, "<u8").reshape(n_modules, -1)
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    return bits[:, :n_packets].astype(bool)
