"""The 64-byte headers of finished frames, made for many frames at once."""

from collections.abc import Sequence

import numpy as np
from numba import uint8, uint64

from tango_stddaq.detectors.layout import (
    EVENT,
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    HEADER_MARK,
    Detector,
)
from tango_stddaq.processing.compiled import compiled, inner

_AT = {name: field[1] for name, field in (FRAME_HEADER.fields or {}).items()}
_IMAGE_ID, _MISSING, _MODULE, _MARK, _EPOCH = (
    _AT[name] for name in ("image_id", "n_missing_packets", "module_id", "mark", "epoch")
)
_PACKET_HEADER = {name: field[1] for name, field in (EVENT.fields or {}).items()}["packet_header"]


class FrameHeaders:
    """Turns finished frames (`EVENT` records) into the headers that are sent.

    Parameters
    ----------
    connections
        The connection of each source that events name; None for all of the detector.
    """

    def __init__(self, detector: Detector, connections: Sequence[int] | None = None) -> None:
        modules = detector.modules
        if connections is None:
            connections = detector.connections
        places = [detector.connections.index(one) % len(modules) for one in connections]
        self._modules = np.array([modules[place] for place in places], np.int64)
        rows = [
            field.row(detector.frame_header, detector.layout.header) for field in detector.frame_fields
        ]
        self._rows = np.array(rows, np.int64).reshape(-1, 8)
        self._dtype = detector.frame_header
        self._out = np.zeros((0, FRAME_HEADER_BYTES), np.uint8)

    def of(self, events: np.ndarray, missing: np.ndarray | None = None) -> np.ndarray:
        """Return the headers of frames.

        Parameters
        ----------
        events
            (n,) `EVENT`, contiguous.
        missing
            (n_sources,) int64: the packets that the frames of each source miss are added to it.

        Returns
        -------
        np.ndarray
            (n,) of the detector's frame header, valid until the next call.
        """
        fill_headers(events.size, *self.arrays(events, missing))
        return self._out[: events.size].view(self._dtype)[:, 0]

    def arrays(self, events: np.ndarray, missing: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Return what `fill_headers` takes, with room for the headers of all `events`; see `of`."""
        if events.size > len(self._out):
            self._out = np.zeros((2 * events.size, FRAME_HEADER_BYTES), np.uint8)
        if missing is None:
            missing = np.zeros(self._modules.size, np.int64)
        raw = events.view(np.uint8).reshape(-1, EVENT.itemsize)
        return raw, self._modules, self._rows, missing, self._out


@inner
def _get(data, i, at, n_bytes):
    value = uint64(0)
    for k in range(n_bytes):
        value |= uint64(data[i, at + k]) << uint64(8 * k)
    return value


@inner
def _put(out, i, at, n_bytes, value):
    for k in range(n_bytes):
        out[i, at + k] = uint8((value >> uint64(8 * k)) & uint64(0xFF))


@compiled
def fill_headers(n, events, modules, rows, missing, out):
    """Make the headers of the first `n` events; the rest is what `FrameHeaders.arrays` returns."""
    for i in range(n):
        for k in range(out.shape[1]):
            out[i, k] = uint8(0)
        n_missing = _get(events, i, 8, 8)
        source = np.int64(_get(events, i, 16, 8))
        missing[source] += np.int64(n_missing)
        _put(out, i, _IMAGE_ID, 8, _get(events, i, 0, 8))
        _put(out, i, _MISSING, 8, n_missing)
        _put(out, i, _MODULE, 2, uint64(modules[source]))
        _put(out, i, _MARK, 2, uint64(HEADER_MARK))
        _put(out, i, _EPOCH, 2, _get(events, i, 24, 8))
        for r in range(rows.shape[0]):
            value = uint64(rows[r, 6])
            if rows[r, 7] == 0:
                value += (
                    _get(events, i, _PACKET_HEADER + rows[r, 2], rows[r, 3]) >> uint64(rows[r, 4])
                ) & uint64(rows[r, 5])
            else:
                value += _get(out, i, rows[r, 2], rows[r, 3])
            _put(out, i, rows[r, 0], rows[r, 1], value)
