"""GigaFRoST filter: only the images that the camera was told to store go on."""

from typing import ClassVar

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config import DaqConfig
from tango_stddaq.stages.metadata_filter import MetadataFilter
from tango_stddaq.stats import Counter


class GigafrostFilter(MetadataFilter):
    """Publishes on `-filter` the images whose `store_image` flag is set.

    Parameters
    ----------
    source_suffix
        See `MetadataFilter`.
    forward_all
        Pass on the others as well; may be changed while it runs.
    """

    name = "gf-filter"
    suffix = "filter"
    main_counter = "forwarded_images"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("forwarded_images", "images", "Images passed on."),
        Counter("filtered_images", "images", "Images held back: not to be stored."),
        Counter("foreign", "images", "Images dropped: not of a GigaFRoST.", loss=True),
        Counter("malformed", "messages", "Messages dropped: not image metadata.", loss=True),
    )

    def __init__(
        self, config: DaqConfig, source_suffix: str = "image", forward_all: bool = False
    ) -> None:
        super().__init__(config, source_suffix)
        self.forward_all = forward_all

    def _take(self, messages: list[bytes]) -> list[bytes]:
        passed: list[bytes] = []
        for data in messages:
            try:
                message = image_metadata.parse(data)
            except ValueError:
                self.counters["malformed"] += 1
                continue
            if self.forward_all or (message.HasField("gf") and message.gf.store_image):
                passed.append(data)
            else:
                self.counters["filtered_images" if message.HasField("gf") else "foreign"] += 1
        self.counters["forwarded_images"] += len(passed)
        return passed
