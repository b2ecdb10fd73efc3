"""A batch of announced images on its way through the writer driver: metadata in, writer actions out."""

import numpy as np

from tango_stddaq.codecs import image_metadata, writer_action
from tango_stddaq.codecs.image_metadata import MAX_MESSAGE_BYTES
from tango_stddaq.processing.metadata_scan import IMAGE_ID, IS_DATED, N_COLUMNS, ORDINARY, STATUS, scan
from tango_stddaq.processing.record_rows import MAX_METADATA_BYTES, record_rows

_MAX_DATE_BYTES = len(writer_action.received_at(2**63 - 1))


class AnnouncedBatch:
    """Memory for `n` messages, used again and again.

    Attributes
    ----------
    rows, lengths
        (n, 512) uint8 and (n,) int64: `ImageMetadata` messages, put here by a channel.
    """

    def __init__(self, n: int) -> None:
        self.rows = np.zeros((n, MAX_MESSAGE_BYTES), np.uint8)
        self.lengths = np.zeros(n, np.int64)
        self._found = np.zeros((n, N_COLUMNS), np.int64)
        self._actions = np.zeros((n, MAX_MESSAGE_BYTES), np.uint8)
        self._action_lengths = np.zeros(n, np.int64)
        self._at = np.zeros(0, np.int64)
        self.images(0)
        self.actions(np.zeros(0, bool), 0)  # compiled, or loaded, by now

    def images(self, n: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Read the first `n` messages.

        Returns
        -------
        tuple
            Ids and status of the images, (m,) int64 each, and how many messages were none.
        """
        found = self._found[:n]
        scan(self.rows[:n], self.lengths[:n], found)
        is_image = found[:, ORDINARY] != 0
        for at in np.flatnonzero(~is_image).tolist():
            is_image[at] = self._read_slowly(at)
        self._at = np.flatnonzero(is_image)
        found = found[self._at]
        return found[:, IMAGE_ID], found[:, STATUS], n - self._at.size

    def _read_slowly(self, at: int) -> bool:
        """Read a message that is not written the ordinary way; returns whether it is one."""
        n_bytes = int(self.lengths[at])
        if n_bytes > MAX_METADATA_BYTES - _MAX_DATE_BYTES:
            return False  # no existing writer could read an action around it
        try:
            image = image_metadata.parse(self.rows[at, :n_bytes].tobytes())
        except ValueError:
            return False
        if image.image_id >= 1 << 63:
            return False
        found = self._found[at]
        found[IMAGE_ID], found[STATUS], found[IS_DATED] = (
            image.image_id,
            image.status,
            image.received_ns > 0,
        )
        return True

    def actions(self, wanted: np.ndarray, unix_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the actions that record images.

        Parameters
        ----------
        wanted
            (m,) bool: which of the images that `images` returned.
        unix_ns
            When they were received, for those that do not say so.

        Returns
        -------
        tuple
            (k, 512) uint8 and (k,) int64, valid until the next call.
        """
        at = self._at[wanted]
        n = at.size
        rows, lengths, found = self.rows[:n], self.lengths[:n], self._found[:n]
        if n and at[-1] != n - 1:
            rows, lengths, found = self.rows[at], self.lengths[at], self._found[at]
        date = np.frombuffer(writer_action.received_at(unix_ns), np.uint8)
        out, out_lengths = self._actions[:n], self._action_lengths[:n]
        record_rows(rows, lengths, found[:, IS_DATED].copy(), date, out, out_lengths)
        return out, out_lengths
