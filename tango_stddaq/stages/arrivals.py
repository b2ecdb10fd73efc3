"""What a writer on another host than the driver knows of images: when they are here, and how."""

import time
from collections.abc import Callable
from typing import Final

from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.config import DaqConfig
from tango_stddaq.io.image_source import MetadataSource
from tango_stddaq.stages.writer_base import Messages

_PATIENCE_S: Final = 2.0
"""An image that the driver has named is waited for until nothing has come for so long."""
_RECENT_S: Final = 1.0


class Arrivals:
    """Images that were published on this host.

    The driver names an image when it is on the first host. Here it may come a moment later, with parts
    missing, or not at all; and what the slot holds until then is an older image.
    """

    def __init__(self, config: DaqConfig, suffix: str) -> None:
        self._source = MetadataSource(config, suffix)
        self._limit = config.sizes.n_slots
        self._arrived: dict[int, pb.ImageMetadata] = {}
        self._came_s: dict[int, float] = {}
        self._last = -1

    def forget(self) -> None:
        """Forget images of an earlier run: ids may start again with a new file."""
        self._look(0)
        self._last = -1
        since_s = time.monotonic() - _RECENT_S
        self._arrived = {k: e for k, e in self._arrived.items() if self._came_s[k] > since_s}
        self._came_s = {k: self._came_s[k] for k in self._arrived}

    def wait_for(
        self, images: Messages, goes_on: Callable[[], bool] = lambda: True
    ) -> tuple[Messages, list[int]]:
        """Wait until images are here; returns those that came, as they are here, and the others' ids.

        Parameters
        ----------
        goes_on
            Called while it waits, many times a second; ends the waiting when it says False.
        """
        deadline_s = time.monotonic() + _PATIENCE_S
        wanted = {image.image_id for image in images}
        while missing := wanted - self._arrived.keys():
            wait_s = deadline_s - time.monotonic()
            if not goes_on():
                break
            # Images leave a synchronizer in order: one that a newer one has overtaken does not come.
            if wait_s <= 0 or (max(missing) < self._last and not self._look(0)):
                break
            if self._look(int(min(wait_s, 0.05) * 1000)):  # a slow network is no lost image
                deadline_s = time.monotonic() + _PATIENCE_S
        here: Messages = []
        for image in images:
            found = self._arrived.pop(image.image_id, None)
            self._came_s.pop(image.image_id, None)
            if found is not None:
                # The driver knows nothing of what was lost on the way to here.
                image.status = max(image.status, found.status)
                image.n_missing_packets = max(image.n_missing_packets, found.n_missing_packets)
                here.append(image)
        return here, sorted(missing)

    def _look(self, timeout_ms: int) -> bool:
        messages = self._source.receive_messages(timeout_ms)
        now = time.monotonic()
        for message in messages:
            try:
                image = image_metadata.parse(message)
            except ValueError:
                continue
            self._arrived.pop(image.image_id, None)  # a new one stands at the end
            self._last = image.image_id
            self._arrived[image.image_id] = image
            self._came_s[image.image_id] = now
        while len(self._arrived) > self._limit:
            oldest = next(iter(self._arrived))
            del self._arrived[oldest], self._came_s[oldest]
        return bool(messages)

    def close(self) -> None:
        """Stop listening."""
        self._source.close()
