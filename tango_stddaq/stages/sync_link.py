"""The ways to a module synchronizer, for stages that write into its ring and tell it so."""

from contextlib import suppress

import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingWriter
from tango_stddaq.stages.base import TURN_S


class SyncLink:
    """A channel to the synchronizer, and views of its ring.

    Nothing waits for a synchronizer that is not there: one of ours clears the ring when it comes, and
    until then nobody knows whether the pixels are still the same.
    """

    def __init__(self, config: DaqConfig) -> None:
        sizes = config.sizes
        self._shape = config.segment("image"), sizes.n_slots, sizes.slot_bytes, config.ring_memory
        self._heard = self._seen_owner = False
        address = channels.ipc_address(config.detector_name, "sync")
        self._out = channels.connect(zmq.PUSH, address, options={int(zmq.IMMEDIATE): 1})

    def is_heard(self) -> bool:
        """Return whether a synchronizer takes announcements; one that is slow is waited for a turn."""
        wait_ms = int(TURN_S * 1000) if self._heard else 0
        self._heard = bool(self._out.poll(wait_ms, zmq.POLLOUT))
        return self._heard

    def send(self, data: bytes) -> bool:
        """Announce; returns False if the synchronizer went just now."""
        try:
            self._out.send(data, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def ring(self, old: RingWriter | None) -> RingWriter | None:
        """Return the ring of the synchronizer that hears us; None if it is just closing it.

        One of ours has it ready before it listens. Where none of ours was ever seen an existing program
        listens, and whoever comes first makes the segment.

        Parameters
        ----------
        old
            What this returned last, for the same writer: still good, or closed here.
        """
        if old is not None and not old.retired:
            return old
        if old is not None:
            old.close()
        if not self._seen_owner:
            return self._seen(RingWriter.attach_or_create(*self._shape))
        return self.ring_there()

    def ring_there(self) -> RingWriter | None:
        """Return a view of the ring if there is one already, whoever made it."""
        with suppress(FileNotFoundError):
            return self._seen(RingWriter.attach(*self._shape))
        return None

    def _seen(self, ring: RingWriter) -> RingWriter:
        self._seen_owner |= ring.has_index
        return ring

    def close(self) -> None:
        """Close the channel; rings are closed by who has them."""
        channels.close(self._out)


class PatientLink:
    """A channel to the synchronizer on which frames wait for one that is not there, and who is there.

    Attributes
    ----------
    handle
        PUSH socket.
    is_heard
        Whether a synchronizer is connected, as of the last `look`.
    """

    def __init__(self, config: DaqConfig, n_announced: int) -> None:
        address = channels.ipc_address(config.detector_name, "sync")
        self.handle, self._events = channels.connect_watched(zmq.PUSH, address)
        self.is_heard = False
        self._n_heard = n_announced

    def look(self, n_announced: int) -> int:
        """Note who is there now, and that so many frames were announced; do it every turn.

        Returns
        -------
        int
            Frames announced since a synchronizer was last seen.
        """
        for is_there in channels.comings_and_goings(self._events):
            self.is_heard = is_there
        if self.is_heard:
            self._n_heard = n_announced
        return n_announced - self._n_heard

    def count_anew(self, n_announced: int) -> None:
        """Frames announced are counted from 0 again; so far there were so many."""
        self._n_heard -= n_announced

    def close(self) -> None:
        """Close the channel; what waits is forgotten."""
        channels.close_watched(self.handle, self._events)
