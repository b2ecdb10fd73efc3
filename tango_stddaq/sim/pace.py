"""A steady rate of images, kept by compiled code: also where a period is shorter than a sleep."""

import numpy as np

from tango_stddaq.sim.send_loop import LAST, NEXT, PERIOD, now_ns, wait_due


class Pace:
    """Keeps a rate of images, each sent in one part or several.

    Parts are spread over the image's period, as modules that read out in parallel do. A delay is made
    up at up to about twice the rate, so that the mean rate holds and no burst follows; one of more than
    half a second is not made up.

    Parameters
    ----------
    rate_hz
        0 for as fast as possible.
    """

    def __init__(self, rate_hz: float) -> None:
        self.state = np.zeros(3)
        self.clock = np.zeros(2, np.int64)
        self.rate_hz = rate_hz

    @property
    def rate_hz(self) -> float:
        """Images per second; may be changed at any time."""
        return float(1e9 / self.state[PERIOD]) if self.state[PERIOD] else 0.0

    @rate_hz.setter
    def rate_hz(self, value: float) -> None:
        self.state[PERIOD] = period = 1e9 / value if value > 0 else 0.0
        if self.state[NEXT]:  # an image that the old rate put far away comes as the new one wants it
            self.state[NEXT] = min(self.state[NEXT], now_ns(self.clock) + period)

    def restart(self) -> None:
        """Let the next image be due at once."""
        self.state[[NEXT, LAST]] = 0

    def due_in_s(self) -> float:
        """Return the seconds until the next image is due; not above 0 if it is."""
        if not self.state[PERIOD] or not self.state[NEXT]:
            return 0.0
        return float(self.state[NEXT] - now_ns(self.clock)) / 1e9

    def wait(self, part: int = 0, parts: int = 1) -> None:
        """Wait until this part of the next image is due; the last part ends the image."""
        wait_due(self.state, self.clock, part, parts)
