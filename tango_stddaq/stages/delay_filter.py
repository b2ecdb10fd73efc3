"""Delay filter: images go on later, while their pixels stay in the ring."""

import time
from typing import ClassVar

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.io.image_source import PixelSource
from tango_stddaq.processing.delay import DelayLine, most_waiting
from tango_stddaq.stages.metadata_filter import MetadataFilter
from tango_stddaq.stats import Counter


class DelayFilter(MetadataFilter):
    """Publishes on `-delay-filter` each image `delay_filter_timeout` seconds after it came.

    It goes on sooner where the ring would overtake it otherwise, and when the stage is stopped. One
    whose slot was taken all the same is lost, and is not announced.

    Parameters
    ----------
    source_suffix
        See `MetadataFilter`; the ring that is looked at is that of this suffix.
    """

    name = "delay-filter"
    suffix = "delay-filter"
    main_counter = "forwarded_images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("forwarded_images", "images", "Images passed on."),
        Counter("early_images", "images", "Of these, before their time: the ring has no more slots."),
        Counter("overwritten", "images", "Images dropped: their slot was taken meanwhile.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not image metadata.", loss=True),
        Counter("queue", "images", "Images waiting now."),
    )

    def __init__(self, config: DaqConfig, source_suffix: str = "image") -> None:
        super().__init__(config, source_suffix)
        self._line = DelayLine(config.delay_filter_timeout, most_waiting(config.sizes.n_slots))
        self._pixels: PixelSource | None = None

    def _open(self) -> None:
        super()._open()
        self._pixels = PixelSource(self.config, self.source_suffix)

    def _take(self, messages: list[bytes]) -> list[bytes]:
        now = time.monotonic()
        for data in messages:
            try:
                image_id = image_metadata.parse(data).image_id
            except ValueError:
                self.counters["malformed"] += 1
            else:
                self._line.put(now, image_id, data)
        return self._still_there(self._line.take(now))

    def _rest(self) -> list[bytes]:
        return self._still_there(self._line.take_all())

    def _still_there(self, due: list[tuple[int, bytes]]) -> list[bytes]:
        reader = self._pixels.reader() if self._pixels is not None and due else None
        # Without a ring all is lost; of one without an index nothing is known, and all is believed.
        found = [
            data for image_id, data in due if reader is not None and reader.ticket(image_id) is not None
        ]
        self.counters["forwarded_images"] += len(found)
        self.counters["overwritten"] += len(due) - len(found)
        return found

    def _tick(self) -> None:
        self.counters["queue"] = len(self._line)
        self.counters["early_images"] = self._line.n_early

    def _reset(self) -> None:
        self._line.n_early = 0

    def _close(self) -> None:
        super()._close()
        if self._pixels is not None:
            self._pixels.close()
            self._pixels = None
