"""Which images a live stream sends."""

from collections.abc import Callable

from tango_stddaq.config_entries import LiveStreamConfig

Selector = Callable[[int, float], bool]
"""Takes an image id and the time in seconds; returns whether the image is sent."""


def selector(config: LiveStreamConfig) -> Selector:
    """Return the rule of a live stream: `forward`, `batch` or `periodic`."""
    if config.type == "forward" or config.config is None:
        return lambda _image_id, _now_s: True
    n, second = config.config
    if config.type == "batch":
        every = int(second)
        return lambda image_id, _now_s: image_id % every < n
    return _Periodic(n, 1.0 / second)


class _Periodic:
    """n consecutive images at the start of every period."""

    def __init__(self, n: int, period_s: float) -> None:
        self._n = n
        self._period_s = period_s
        self._next_s = 0.0
        self._left = 0

    def __call__(self, _image_id: int, now_s: float) -> bool:
        if now_s >= self._next_s:
            self._next_s += self._period_s
            if self._next_s <= now_s:  # a pause must not be made up for by a burst
                self._next_s = now_s + self._period_s
            self._left = self._n
        if self._left == 0:
            return False
        self._left -= 1
        return True
