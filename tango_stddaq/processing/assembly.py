"""Assembly of frames whose packets the kernel has already laid in place: compiled bookkeeping.

Before each receive call `arm` predicts the next packets of a source and points the call's I/O vectors
at the places where their pixels belong. Afterwards `account` compares the headers that came with the
prediction. When all is well that is all there is to do: no byte of an image is touched here. Only
packets that were lost, late, repeated or malformed cost a move.

A message is one datagram, or a bundle of several of one sender where the kernel puts them behind one
another (UDP_GRO). The functions know addresses, not sockets: tests lay the packets themselves. All
arrays belong to one `Workspace`; one thread works on it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from tango_stddaq.detectors.layout import EVENT, PacketLayout, PixelFormat, Placement
from tango_stddaq.processing.accounting import account
from tango_stddaq.processing.arming import arm
from tango_stddaq.processing.columns import (
    BUFFER_STRIDE,
    BUNDLE,
    CONTROL_STRIDE,
    COUNTERS,
    FIRST_HEADER,
    HEADER_STRIDE,
    ID,
    IDLE,
    KEY,
    MESSAGE_WORDS,
    N_STATE,
    NO_ID,
    OLD_ID,
    OLD_KEY,
    OLD_OPEN,
    OPEN,
    RECEIVED,
    RING,
    STEP,
)
from tango_stddaq.processing.frames import flush
from tango_stddaq.processing.packets import place_frame

__all__ = ["COUNTERS", "IDLE", "MAX_BUNDLE", "MAX_FINISHED_PER_MESSAGE", "Workspace"]

MAX_BUNDLE: Final = 128
"""Datagrams that the kernel puts into one message at most (UDP_MAX_SEGMENTS)."""
MAX_FINISHED_PER_MESSAGE: Final = 3 * MAX_BUNDLE
_MAX_MESSAGE_BYTES: Final = 65_507
BATCH: Final = 32
"""Messages of one receive call."""


@dataclass(slots=True)
class Workspace:
    """All memory of one receive loop.

    Attributes
    ----------
    table
        (n_sources, n) int64, a row a source (module); see `columns.py`. `state`, `counters` (columns as
        in `COUNTERS`) and `rings` are views of it.
    offsets
        (n_sources, packets_per_frame, n_pieces) byte offsets in a slot.
    maps
        (n_sources, 2, 3, pixels of a module) float32: pedestals and gains of the three stages, where
        pixels are converted with them.
    iov, bundle_iov, messages, controls, headers, armed
        Of one receive call of up to `BATCH` messages: vectors where a message is one datagram or, of one
        message, where it is a bundle; a row of them is a packet.
    buffers
        Whole messages, where the kernel lays no pixels in place, or could not foresee a bundle.
    scratch
        Payloads that landed in a wrong place.
    events, n_events
        Frames that were finished (`EVENT`), and how many of them are new.
    geometry
        Sizes and kinds from the packet layout and the placement, and addresses of the arrays here.
    packet_pixel_bytes, frame_bytes, slot_bytes
        Pixel bytes of a packet (not the last), bytes of a raw frame, and what a slot needs at least.
    """

    table: np.ndarray
    offsets: np.ndarray
    iov: np.ndarray
    bundle_iov: np.ndarray
    messages: np.ndarray
    controls: np.ndarray
    headers: np.ndarray
    buffers: np.ndarray
    scratch: np.ndarray
    armed: np.ndarray
    events: np.ndarray
    n_events: np.ndarray
    maps: np.ndarray
    geometry: np.ndarray
    packet_pixel_bytes: int
    frame_bytes: int
    slot_bytes: int

    @classmethod
    def of(
        cls,
        layout: PacketLayout,
        placement: Placement,
        batch: int = BATCH,
        max_events: int | None = None,
        maps: np.ndarray | None = None,
    ) -> "Workspace":
        """Lay out the memory for the modules of `placement`; rings are set by `set_ring`."""
        n_sources, n_packets, n_pieces = placement.offsets.shape
        header_bytes = layout.header.itemsize
        if n_packets != layout.packets_per_frame:
            raise ValueError(f"placement of {n_packets} packets, layout of {layout.packets_per_frame}")
        if header_bytes > HEADER_STRIDE:
            raise ValueError(f"a packet header of {header_bytes} bytes")
        kernel_places = placement.format is PixelFormat.COPY and layout.is_uniform
        bundle = min(MAX_BUNDLE, max(1, _MAX_MESSAGE_BYTES // layout.packet_bytes))
        n_rows = max(batch, bundle)
        headers = np.zeros((n_rows, HEADER_STRIDE), np.uint8)
        buffers = np.zeros((batch, BUFFER_STRIDE), np.uint8)
        n_bundle_vectors = bundle * (1 + n_pieces)
        all_bundle_iov = np.zeros((n_bundle_vectors + 1, 2), np.uint64)
        bundle_iov = all_bundle_iov[:n_bundle_vectors].reshape(bundle, 1 + n_pieces, 2)
        iov = np.zeros((batch, 2 + n_pieces if kernel_places else 1, 2), np.uint64)
        if kernel_places:
            for vectors in (iov, bundle_iov):
                rows = np.arange(len(vectors))
                vectors[:, 0, 0] = headers.ctypes.data + rows * HEADER_STRIDE
                vectors[:, 0, 1] = header_bytes
                vectors[:, 1 : 1 + n_pieces, 1] = placement.piece_bytes
        # Behind the rows of vectors there is room for whatever else may come.
        all_bundle_iov[-1] = (buffers.ctypes.data, 65_536)
        iov[:, -1, 0] = buffers.ctypes.data + np.arange(batch) * BUFFER_STRIDE
        iov[:, -1, 1] = 65_536
        messages = np.zeros((batch, MESSAGE_WORDS), np.uint64)
        messages[:, 2] = iov.ctypes.data + np.arange(batch) * iov.strides[0]
        messages[:, 3] = iov.shape[1]
        if max_events is None:
            max_events = 2 * batch * MAX_FINISHED_PER_MESSAGE
        controls = np.zeros((batch, CONTROL_STRIDE), np.uint8)
        scratch = np.zeros((n_rows if kernel_places else 1, layout.payload_bytes), np.uint8)
        events = np.zeros(max_events, EVENT)
        workspace = cls(
            table=np.zeros((n_sources, RECEIVED + 2 * layout.mask_words), np.int64),
            offsets=placement.offsets,
            iov=iov,
            bundle_iov=bundle_iov,
            messages=messages,
            controls=controls,
            headers=headers,
            buffers=buffers,
            scratch=scratch,
            armed=np.full((n_rows, 2), NO_ID, np.int64),
            events=events,
            n_events=np.zeros(1, np.int64),
            maps=np.zeros((1, 2, 3, 1), np.float32) if maps is None else maps,
            geometry=np.array(
                [
                    header_bytes, layout.payload_bytes, layout.last_payload_bytes, n_packets, n_pieces,
                    placement.last_pieces, placement.piece_bytes, placement.last_piece_bytes,
                    layout.header_kind, layout.rows_per_packet, placement.format, placement.fill_byte,
                    kernel_places, layout.key_step, bundle, layout.mask_words, max_events,
                    headers.ctypes.data, buffers.ctypes.data, scratch.ctypes.data,
                    controls.ctypes.data, events.ctypes.data,
                ],
                np.int64,
            ),
            packet_pixel_bytes=layout.payload_bytes - layout.pad_bytes,
            frame_bytes=layout.frame_bytes - layout.last_pad,
            slot_bytes=int(placement.offsets.max()) + placement.piece_bytes,
        )  # fmt: skip
        workspace.forget()
        return workspace

    @property
    def state(self) -> np.ndarray:
        """What is under way, per source."""
        return self.table[:, :N_STATE]

    @property
    def counters(self) -> np.ndarray:
        """The counts, (n_sources, len(COUNTERS))."""
        return self.table[:, N_STATE:RING]

    @property
    def rings(self) -> np.ndarray:
        """Per source: addresses and sizes of the ring, see `set_ring`."""
        return self.table[:, RING:FIRST_HEADER]

    def set_ring(
        self,
        source: int,
        base: int,
        slot_bytes: int,
        n_slots: int,
        index: int,
        masks: int = 0,
        mask_stride: int = 0,
    ) -> None:
        """Say where the frames of a source go: addresses of its ring, index and masks (0: none)."""
        self.rings[source] = (base, slot_bytes, n_slots, index, masks, mask_stride)

    def forget(self) -> None:
        """Expect any image id next from every source; frames under way are dropped."""
        self.state[:] = 0
        self.state[:, (ID, OLD_ID, KEY, OLD_KEY)] = NO_ID
        self.state[:, (STEP, BUNDLE)] = 1

    def arm(self, source: int, n: int) -> int:
        """Make the next receive call of up to `n` messages ready; returns how many it may take."""
        return int(
            arm(
                source, n, self.table, self.offsets, self.iov, self.bundle_iov, self.messages,
                self.armed, self.geometry,
            )
        )  # fmt: skip

    def account(self, source: int, n: int) -> None:
        """Account for `n` received messages; finished frames are appended to the events."""
        account(source, n, *self.arrays())

    def flush(self, source: int) -> None:
        """Finish the source's frames under way as they are: nothing more is expected of them."""
        flush(source, self.table, self.offsets, self.n_events, self.geometry)

    def take_events(self) -> np.ndarray:
        """Return the frames finished since the last call, a copy, `EVENT` records."""
        found = self.events[: self.n_events[0]].copy()
        self.n_events[0] = 0
        return found

    def place_frame(self, source: int, frame: np.ndarray, slot: np.ndarray) -> int:
        """Bring a raw frame, as a frame ring holds it, to its image.

        Parameters
        ----------
        frame, slot
            uint8: the frame, packets one behind the other, and the image's slot.

        Returns
        -------
        int
            Pixels that could not be converted.
        """
        if frame.size < self.frame_bytes or slot.size < self.slot_bytes:
            raise ValueError(f"a frame of {frame.size} bytes for a slot of {slot.size}")
        return int(
            place_frame(
                frame.ctypes.data, slot.ctypes.data, source, self.packet_pixel_bytes, self.offsets,
                self.maps, self.geometry,
            )
        )  # fmt: skip

    def under_way(self) -> np.ndarray:
        """Return for each source whether a frame is begun and not finished."""
        return np.asarray((self.state[:, OPEN] > 0) | (self.state[:, OLD_OPEN] > 0))

    def totals(self) -> dict[str, int]:
        """Return each counter summed over the sources."""
        return dict(zip(COUNTERS, self.counters.sum(axis=0).tolist(), strict=True))

    def current_ids(self) -> np.ndarray:
        """Return the image id that each source is at, -1 where nothing came yet."""
        return self.table[:, ID].copy()

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return what the compiled receive loop takes, in its order."""
        return (
            self.table, self.offsets, self.iov, self.bundle_iov, self.messages, self.armed,
            self.n_events, self.maps, self.geometry,
        )  # fmt: skip
