"""What a detector does with its run as a whole: it pauses, or counts from the start again."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Course:
    """The course of a run.

    Attributes
    ----------
    pause_after, pause_s
        After so many images it sends nothing for so many seconds; 0 for no pause.
    restart_after
        After so many images the ids start again with the first one, once; 0 for never.
    """

    pause_after: int = 0
    pause_s: float = 1.0
    restart_after: int = 0

    def stretches(self, n_images: int, first_id: int) -> Iterator[tuple[int, int, float]]:
        """Yield (first id, images, seconds to wait before) of stretches of ids without a gap."""
        cuts = {n for n in (self.pause_after, self.restart_after) if 0 < n < n_images}
        for begin, end in pairwise(sorted({0, n_images, *cuts})):
            restarted = 0 < self.restart_after <= begin
            first = first_id + begin - (self.restart_after if restarted else 0)
            yield first, end - begin, self.pause_s if begin and begin == self.pause_after else 0.0
