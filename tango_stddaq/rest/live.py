"""The live image as MJPEG: the facade's preview, at a bounded rate, for a bounded number of viewers."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from typing import Final

import numpy as np
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from tango_stddaq.errors import StdDaqError
from tango_stddaq.rest.daq import Daq

BOUNDARY: Final = "frame"
MAX_VIEWERS: Final = 16
_PERIOD_S: Final = 0.2
_KEEP_ALIVE_S: Final = 5.0
_QUALITY: Final = 85
_BRIGHT_PERCENTILE: Final = 99.5


class LiveView:
    """Pictures of one system; all viewers share them."""

    def __init__(self, daq: Daq) -> None:
        self._daq = daq
        self._lock = threading.Lock()
        self._image_id = -2
        self._jpeg = b""
        self._n_viewers = 0

    def picture(self) -> tuple[int, bytes]:
        """Return image id and JPEG of the last image; made anew only if there is another one."""
        with self._lock:
            image_id, pixels = self._daq.preview()
            if image_id != self._image_id:
                self._jpeg = to_jpeg(pixels)
                self._image_id = image_id
            return self._image_id, self._jpeg

    def stream(self) -> AsyncIterator[bytes]:
        """Return the parts of the answer, without end.

        Raises
        ------
        StdDaqError
            If there are too many viewers, or no system.
        """
        if self._n_viewers >= MAX_VIEWERS:
            raise StdDaqError(f"there are {MAX_VIEWERS} viewers already; use a live stream (ZeroMQ)")
        self._daq.require()
        return self._parts()

    async def _parts(self) -> AsyncIterator[bytes]:
        self._n_viewers += 1
        try:
            shown, idle_s = -2, 0.0
            while True:
                try:
                    image_id, jpeg = await run_in_threadpool(self.picture)
                except StdDaqError:
                    return  # the system has gone
                if image_id != shown or idle_s >= _KEEP_ALIVE_S:
                    shown, idle_s = image_id, 0.0
                    yield part(jpeg, image_id)
                await asyncio.sleep(_PERIOD_S)
                idle_s += _PERIOD_S
        finally:
            self._n_viewers -= 1


def part(jpeg: bytes, image_id: int) -> bytes:
    """Return one picture of the answer."""
    head = (
        f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n"
        f"X-Image-Id: {image_id}\r\n\r\n"
    )
    return head.encode() + jpeg + b"\r\n"


def to_jpeg(pixels: np.ndarray) -> bytes:
    """Return a grayscale picture of (height, width) numbers, from the darkest to nearly the brightest.

    NaN is black, and so is an image that is the same everywhere.
    """
    finite = np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(np.percentile(finite, _BRIGHT_PERCENTILE))
    high = high if high > low else float(finite.max())
    scale = 255.0 / (high - low) if high > low else 0.0
    gray = np.clip((finite - low) * scale, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(gray).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
