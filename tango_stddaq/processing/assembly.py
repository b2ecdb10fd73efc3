"""Assembly of frames whose packets the kernel has already laid in place: compiled bookkeeping.

Before each receive call `arm` predicts the next packets of a source and points the call's I/O vectors
at the places where their pixels belong. Afterwards `account` compares the headers that came with the
prediction. When all is well that is all there is to do: no byte of an image is touched here. Only
packets that were lost, late, repeated or malformed cost a move.

The functions know addresses, not sockets: tests lay the packets themselves. All arrays belong to one
`Workspace`; one thread works on it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit, uint64, uintp

from tango_stddaq.detectors.layout import EVENT, HeaderKind, PacketLayout, PixelFormat, Placement
from tango_stddaq.processing.convert import apply_gain, unpack_12_to_16
from tango_stddaq.processing.native import float_of_bits, memcpy, memset
from tango_stddaq.processing.slots import (
    INDEX_ENTRY,
    INDEX_HEADER,
    MAX_IMAGE_ID,
    claim_slot,
    first_epoch,
    holds_slot,
    joined_epoch,
    next_epoch,
)

COUNTERS: Final = (
    "packets",
    "bad_size",
    "bad_header",
    "duplicate",
    "late",
    "moved",
    "frames",
    "incomplete_frames",
    "missing_packets",
    "skipped_ids",
    "restarts",
    "unplaced_frames",
    "invalid_pixels",
)
"""Names of the columns of `Workspace.counters`, one row per source."""
(
    _PACKETS, _BAD_SIZE, _BAD_HEADER, _DUPLICATE, _LATE, _MOVED, _FRAMES, _INCOMPLETE, _MISSING,
    _SKIPPED, _RESTARTS, _UNPLACED, _INVALID_PIXELS,
) = range(len(COUNTERS))  # fmt: skip

# Columns of `Workspace.state`. A source has two frames under way: the current one (_ID, ...) and the
# one before it if packets of it may still come (_OLD_ID, ...).
(
    _ID, _N, _OPEN, _PLACED, _KEY, _OLD_ID, _OLD_N, _OLD_OPEN, _OLD_PLACED, _OLD_KEY, _NEXT,
    _LATE_RUN, _EPOCH, _STEP, IDLE,
) = range(15)  # fmt: skip
_N_STATE: Final = 15
_OLD: Final = 5
"""From a column of the current frame to the same of the older one."""

# Columns of `Workspace.rings`: where a source's ring and its index are mapped.
_BASE, _SLOT_BYTES, _N_SLOTS, _INDEX = range(4)

# Columns of `Workspace.geometry`.
(
    _HEADER_BYTES, _PAYLOAD, _LAST_PAYLOAD, _N_PACKETS, _N_PIECES, _LAST_PIECES, _PIECE, _LAST_PIECE,
    _HEADER_KIND, _ROWS, _FORMAT, _FILL, _KERNEL_PLACES, _KEY_STEP,
) = range(14)  # fmt: skip

_NO_ID: Final = -1
_FAR_BACK: Final = 16
"""A packet that many frames older is no straggler: the detector has started its count again."""
_IDLE_POLLS: Final = 2
"""So many receive calls in a row without a packet mean that the detector had stopped."""
_TRUNCATED: Final = 0x20
"""MSG_TRUNC in the message's flags: the datagram was longer than a packet."""
MESSAGE_WORDS: Final = 8
"""A `struct mmsghdr` in 64-bit words: name, namelen, iov, iovlen, control, controllen, flags, len."""
_HEADER_STRIDE: Final = 64
MAX_FINISHED_PER_MESSAGE: Final = 3


@dataclass(slots=True)
class Workspace:
    """All memory of one receive loop.

    Attributes
    ----------
    state, masks, first_headers, counters
        Per source (module): what is under way, which packets came, the header of a frame's first
        packet, and the counts (columns as in `COUNTERS`).
    offsets
        (n_sources, packets_per_frame, n_pieces) byte offsets in a slot.
    maps
        (n_sources, 2, 3, pixels of a module) float32: pedestals and gains of the three stages, where
        pixels are converted with them.
    rings
        Per source: address of the ring, slot bytes, number of slots, address of its index (0: none).
    iov, messages, headers, scratch, armed
        Of one receive call of up to `batch` packets.
    events, n_events
        Frames that were finished (`EVENT`), and how many of them are new.
    geometry
        Sizes and kinds from the packet layout and the placement.
    packet_pixel_bytes, frame_bytes, slot_bytes
        Pixel bytes of a packet (not the last), bytes of a raw frame, and what a slot needs at least.
    """

    state: np.ndarray
    masks: np.ndarray
    first_headers: np.ndarray
    counters: np.ndarray
    offsets: np.ndarray
    rings: np.ndarray
    iov: np.ndarray
    messages: np.ndarray
    headers: np.ndarray
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
        batch: int = 64,
        max_events: int = 1024,
        maps: np.ndarray | None = None,
    ) -> "Workspace":
        """Lay out the memory for the modules of `placement`; rings are set by `set_ring`."""
        n_sources, n_packets, n_pieces = placement.offsets.shape
        header_bytes = layout.header.itemsize
        if n_packets != layout.packets_per_frame:
            raise ValueError(f"placement of {n_packets} packets, layout of {layout.packets_per_frame}")
        if header_bytes > _HEADER_STRIDE:
            raise ValueError(f"a packet header of {header_bytes} bytes")
        headers = np.zeros((batch, _HEADER_STRIDE // 4), np.uint32)
        # Conversions read a little beyond the last pixel: eight bytes at a time.
        scratch = np.zeros((batch, layout.payload_bytes + 8), np.uint8)[:, : layout.payload_bytes]
        kernel_places = placement.format is PixelFormat.COPY and layout.is_uniform
        n_vectors = 1 + (n_pieces if kernel_places else 1)
        iov = np.zeros((batch, n_vectors, 2), np.uint64)
        iov[:, 0, 0] = headers.ctypes.data + np.arange(batch) * _HEADER_STRIDE
        iov[:, 0, 1] = header_bytes
        iov[:, 1:, 1] = placement.piece_bytes if kernel_places else layout.payload_bytes
        messages = np.zeros((batch, MESSAGE_WORDS), np.uint64)
        messages[:, 2] = iov.ctypes.data + np.arange(batch) * n_vectors * 16
        messages[:, 3] = n_vectors
        workspace = cls(
            state=np.zeros((n_sources, _N_STATE), np.int64),
            masks=np.zeros((n_sources, 2, -(-n_packets // 64)), np.uint64),
            first_headers=np.zeros((n_sources, 2, _HEADER_STRIDE // 4), np.uint32),
            counters=np.zeros((n_sources, len(COUNTERS)), np.int64),
            offsets=placement.offsets,
            rings=np.zeros((n_sources, 4), np.int64),
            iov=iov,
            messages=messages,
            headers=headers,
            scratch=scratch,
            armed=np.zeros((batch, 2), np.int64),
            events=np.zeros(max_events, EVENT),
            n_events=np.zeros(1, np.int64),
            maps=np.zeros((1, 2, 3, 1), np.float32) if maps is None else maps,
            geometry=np.array(
                [
                    header_bytes, layout.payload_bytes, layout.last_payload_bytes, n_packets, n_pieces,
                    placement.last_pieces, placement.piece_bytes, placement.last_piece_bytes,
                    layout.header_kind, layout.rows_per_packet, placement.format, placement.fill_byte,
                    kernel_places, layout.key_step,
                ],
                np.int64,
            ),
            packet_pixel_bytes=layout.payload_bytes - layout.pad_bytes,
            frame_bytes=layout.frame_bytes - layout.last_pad,
            slot_bytes=int(placement.offsets.max()) + placement.piece_bytes,
        )  # fmt: skip
        workspace.forget()
        return workspace

    def set_ring(self, source: int, base: int, slot_bytes: int, n_slots: int, index: int) -> None:
        """Say where the frames of a source go: addresses of its ring and of its index (0: none)."""
        self.rings[source] = (base, slot_bytes, n_slots, index)

    def forget(self) -> None:
        """Expect any image id next from every source; frames under way are dropped."""
        self.state[:] = 0
        self.state[:, (_ID, _OLD_ID, _KEY, _OLD_KEY)] = _NO_ID
        self.state[:, _STEP] = 1

    def arm(self, source: int, n: int) -> None:
        """Point the next receive call of up to `n` packets at where they belong."""
        arm(source, n, *self._arrays())

    def account(self, source: int, n: int) -> None:
        """Account for `n` received packets; finished frames are appended to the events."""
        account(source, n, *self._arrays())

    def flush(self, source: int) -> None:
        """Finish the source's frames under way as they are: nothing more is expected of them."""
        flush(source, *self._arrays())

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
        return np.asarray((self.state[:, _OPEN] > 0) | (self.state[:, _OLD_OPEN] > 0))

    def totals(self) -> dict[str, int]:
        """Return each counter summed over the sources."""
        return dict(zip(COUNTERS, self.counters.sum(axis=0).tolist(), strict=True))

    def current_ids(self) -> np.ndarray:
        """Return the image id that each source is at, -1 where nothing came yet."""
        return self.state[:, _ID].copy()

    def _arrays(self) -> tuple[np.ndarray, ...]:
        """Return what every compiled function takes, in its order."""
        return (
            self.state, self.masks, self.first_headers, self.counters, self.offsets, self.rings,
            self.iov, self.messages, self.headers, self.scratch, self.armed,
            self.events.view(np.uint8).reshape(-1, EVENT.itemsize), self.n_events, self.maps,
            self.geometry,
        )  # fmt: skip


_ENTRY_BYTES = INDEX_ENTRY.itemsize
_SLS, _GIGAFROST = int(HeaderKind.SLS), int(HeaderKind.GIGAFROST)
_COPY, _PACKED_12 = int(PixelFormat.COPY), int(PixelFormat.PACKED_12)
_GIGAFROST_PROTOCOL: Final = 0xCB
_INDEX_HEADER_BYTES = INDEX_HEADER.itemsize


@njit(cache=True, nogil=True, inline="always")
def _slot(rings, source, image_id):
    return rings[source, _BASE] + (image_id % rings[source, _N_SLOTS]) * rings[source, _SLOT_BYTES]


@njit(cache=True, nogil=True, inline="always")
def _entry(rings, source, image_id):
    slot = image_id % rings[source, _N_SLOTS]
    return rings[source, _INDEX] + _INDEX_HEADER_BYTES + slot * _ENTRY_BYTES


@njit(cache=True, nogil=True)
def _claim(rings, state, source, image_id):
    if rings[source, _INDEX] == 0:
        return True
    return claim_slot(_entry(rings, source, image_id), image_id, state[source, _EPOCH])


@njit(cache=True, nogil=True)
def _claim_ahead(rings, state, source, image_id):
    """Claim the slot of a frame that is only predicted: never one of a frame under way."""
    oldest = state[source, _OLD_ID] if state[source, _OLD_OPEN] else state[source, _ID]
    return image_id - oldest < rings[source, _N_SLOTS] and _claim(rings, state, source, image_id)


@njit(cache=True, nogil=True)
def _is_placed(rings, state, source, which):
    """Return whether a frame under way has its slot, and may be written.

    It loses it when the ring's owner publishes the image without it, or when another receiver is a
    whole ring ahead.
    """
    column = _OLD * which
    if state[source, _PLACED + column] and rings[source, _INDEX] != 0:
        image_id = state[source, _ID + column]
        if not holds_slot(_entry(rings, source, image_id), image_id, state[source, _EPOCH]):
            state[source, _PLACED + column] = 0
    return state[source, _PLACED + column] != 0


@njit(cache=True, nogil=True, inline="always")
def _received(masks, source, which, packet):
    return (masks[source, which, packet >> 6] >> uint64(packet & 63)) & uint64(1)


@njit(cache=True, nogil=True, inline="always")
def _has_good_size(messages, i, payload, geometry):
    """Return whether a datagram is whole: header and `payload` bytes, or any payload if -1."""
    length = np.int64(messages[i, 7] & uint64(0xFFFFFFFF))
    if messages[i, 6] & uint64(_TRUNCATED) or length < geometry[_HEADER_BYTES]:
        return False
    return payload < 0 or length == geometry[_HEADER_BYTES] + payload


@njit(cache=True, nogil=True)
def _parse(headers, i, geometry):
    """Return what tells frames apart, the image id, and the packet number; -1 if malformed."""
    kind = geometry[_HEADER_KIND]
    if kind == _GIGAFROST:
        first_row = np.int64(headers[i, 3] >> np.uint32(16))
        number = np.int64(headers[i, 2])
        if headers[i, 0] & np.uint32(0xFF) != np.uint32(_GIGAFROST_PROTOCOL) or (
            first_row % geometry[_ROWS] != 0
        ):
            return np.int64(_NO_ID), number, np.int64(0)
        return number, number, first_row // geometry[_ROWS]
    number = np.int64(headers[i, 0]) | (np.int64(headers[i, 1]) << 32)
    packet = np.int64(headers[i, 3])
    if kind == _SLS:
        return number, number, packet
    bunch = float_of_bits(uint64(headers[i, 4]) | (uint64(headers[i, 5]) << uint64(32)))
    if not (bunch >= 0.0 and bunch <= np.float64(MAX_IMAGE_ID)):  # also of no number
        return number, np.int64(_NO_ID), packet
    return number, np.int64(bunch), packet


@njit(cache=True, nogil=True)
def _place(payload, slot, source, packet, offsets, maps, geometry):
    """Bring a payload to its image, converting its pixels; returns how many of them are invalid."""
    last = packet == geometry[_N_PACKETS] - 1
    n_pieces = geometry[_LAST_PIECES] if last else geometry[_N_PIECES]
    piece = geometry[_LAST_PIECE] if last else geometry[_PIECE]
    pixel_format = geometry[_FORMAT]
    invalid = np.int64(0)
    for k in range(n_pieces):
        target = slot + offsets[source, packet, k]
        if pixel_format == _COPY:
            memcpy(uintp(target), uintp(payload + k * piece), uintp(piece))
        elif pixel_format == _PACKED_12:
            n_pixels = piece // 2
            unpack_12_to_16(payload + k * (n_pixels * 3 // 2), target, n_pixels)
        else:
            n_pixels = piece // 4
            first = (packet * geometry[_N_PIECES] + k) * n_pixels
            invalid += apply_gain(
                payload + k * n_pixels * 2, target, n_pixels, maps[source, 1], maps[source, 0], first
            )
    return invalid


@njit(cache=True, nogil=True)
def place_frame(frame, slot, source, packet_pixel_bytes, offsets, maps, geometry):
    """Bring a whole raw frame at address `frame` to its image; returns the invalid pixels."""
    invalid = np.int64(0)
    for packet in range(geometry[_N_PACKETS]):
        invalid += _place(
            frame + packet * packet_pixel_bytes, slot, source, packet, offsets, maps, geometry
        )
    return invalid


@njit(cache=True, nogil=True)
def arm(
    source, n, state, masks, first_headers, counters, offsets, rings, iov, messages, headers,
    scratch, armed, events, n_events, maps, geometry,
):  # fmt: skip
    """Predict the next `n` packets of a source: skip those that came, go on into later frames."""
    n_packets, n_pieces, piece = geometry[_N_PACKETS], geometry[_N_PIECES], geometry[_PIECE]
    scratch_base, stride = np.int64(scratch.ctypes.data), scratch.strides[0]
    if not geometry[_KERNEL_PLACES]:
        for i in range(n):
            messages[i, 6] = uint64(0)
            armed[i, 0] = _NO_ID
            iov[i, 1, 0] = uint64(scratch_base + i * stride)
        return
    image_id, step = state[source, _ID], state[source, _STEP]
    packet = state[source, _NEXT]
    placed = False
    if image_id >= 0:
        if state[source, _OPEN]:
            placed = _is_placed(rings, state, source, 0)
        else:
            image_id += step
            packet = 0
            placed = _claim_ahead(rings, state, source, image_id)
    slot = _slot(rings, source, image_id) if placed else np.int64(0)
    for i in range(n):
        while image_id >= 0:
            if packet >= n_packets:
                image_id += step
                packet = 0
                placed = _claim_ahead(rings, state, source, image_id)
                slot = _slot(rings, source, image_id) if placed else np.int64(0)
            if image_id == state[source, _ID] and _received(masks, source, 0, packet):
                packet += 1
                continue
            break
        messages[i, 6] = uint64(0)
        if image_id < 0 or not placed:
            armed[i, 0] = _NO_ID
            for k in range(n_pieces):
                iov[i, 1 + k, 0] = uint64(scratch_base + i * stride + k * piece)
        else:
            armed[i, 0] = image_id
            for k in range(n_pieces):
                iov[i, 1 + k, 0] = uint64(slot + offsets[source, packet, k])
        armed[i, 1] = packet
        packet += 1


@njit(cache=True, nogil=True)
def _finish(
    source, which, state, masks, first_headers, counters, offsets, rings, events, n_events,
    geometry,
):  # fmt: skip
    """End a frame: fill what is missing and append the event. `which`: 0 current, 1 old."""
    n_packets = geometry[_N_PACKETS]
    column = _OLD * which
    image_id = state[source, _ID + column]
    missing = n_packets - state[source, _N + column]
    state[source, _OPEN + column] = 0
    if not _is_placed(rings, state, source, which):
        counters[source, _UNPLACED] += 1
        return
    if missing > 0:
        slot = _slot(rings, source, image_id)
        for packet in range(n_packets):
            if not _received(masks, source, which, packet):
                last = packet == n_packets - 1
                n_pieces = geometry[_LAST_PIECES] if last else geometry[_N_PIECES]
                piece = geometry[_LAST_PIECE] if last else geometry[_PIECE]
                for k in range(n_pieces):
                    place = uintp(slot + offsets[source, packet, k])
                    memset(place, np.int32(geometry[_FILL]), uintp(piece))
        counters[source, _INCOMPLETE] += 1
        counters[source, _MISSING] += missing
    counters[source, _FRAMES] += 1
    at = n_events[0]
    if at < events.shape[0]:
        record = events[at].view(np.uint64)
        record[0] = uint64(image_id)
        record[1] = uint64(missing)
        record[2] = uint64(source)
        record[3] = uint64(state[source, _EPOCH])
        events[at, 32:] = first_headers[source, which].view(np.uint8)
        n_events[0] = at + 1


@njit(cache=True, nogil=True)
def flush(
    source, state, masks, first_headers, counters, offsets, rings, iov, messages, headers, scratch,
    armed, events, n_events, maps, geometry,
):  # fmt: skip
    """Finish the frames of a source that are under way, the older one first."""
    for which in (1, 0):
        if state[source, _OPEN + _OLD * which]:
            _finish(
                source, which, state, masks, first_headers, counters, offsets, rings, events,
                n_events, geometry,
            )  # fmt: skip


@njit(cache=True, nogil=True)
def _begin(
    source, key, image_id, restart, state, masks, first_headers, counters, offsets, rings, header,
    events, n_events, geometry,
):  # fmt: skip
    """Make `image_id` the current frame; the one before may still get its stragglers."""
    index, n_slots = rings[source, _INDEX], rings[source, _N_SLOTS]
    epoch = state[source, _EPOCH]
    if state[source, _ID] == _NO_ID:
        if index != 0:
            epoch = first_epoch(index, image_id)
    elif restart:
        counters[source, _RESTARTS] += 1
        if index != 0:
            epoch = next_epoch(index, epoch)
    else:
        counters[source, _SKIPPED] += (key - state[source, _KEY] - 1) // geometry[_KEY_STEP]
        if image_id > state[source, _ID]:
            state[source, _STEP] = (image_id - state[source, _ID]) // (key - state[source, _KEY])
            if index != 0:
                epoch = joined_epoch(index, epoch, image_id, n_slots)
        elif index != 0:  # bunch ids may go back while frame numbers go on
            epoch = next_epoch(index, epoch)
    # A frame of another epoch, or one whose slot the new frame takes, gets no stragglers any more.
    ends = restart or epoch != state[source, _EPOCH] or (image_id - state[source, _ID]) % n_slots == 0
    for which in (1, 0):
        if state[source, _OPEN + _OLD * which] and (ends or which == 1):
            _finish(
                source, which, state, masks, first_headers, counters, offsets, rings, events,
                n_events, geometry,
            )  # fmt: skip
    if state[source, _OPEN]:
        for column in (_ID, _N, _OPEN, _PLACED, _KEY):
            state[source, column + _OLD] = state[source, column]
        masks[source, 1] = masks[source, 0]
        first_headers[source, 1] = first_headers[source, 0]
    state[source, _EPOCH] = epoch
    state[source, _STEP] = max(1, state[source, _STEP])
    state[source, _KEY] = key
    state[source, _ID] = image_id
    state[source, _N] = 0
    state[source, _OPEN] = 1
    state[source, _NEXT] = 0
    state[source, _LATE_RUN] = 0
    state[source, _PLACED] = 1 if _claim(rings, state, source, image_id) else 0
    masks[source, 0] = uint64(0)
    first_headers[source, 0] = header


@njit(cache=True, nogil=True)
def account(
    source, n, state, masks, first_headers, counters, offsets, rings, iov, messages, headers,
    scratch, armed, events, n_events, maps, geometry,
):  # fmt: skip
    """Compare what came with what was expected and put right what differs."""
    n_packets, n_pieces, piece = geometry[_N_PACKETS], geometry[_N_PIECES], geometry[_PIECE]
    scratch_base, stride = np.int64(scratch.ctypes.data), scratch.strides[0]

    # First save every payload that landed in a wrong place: a later step may write there.
    if geometry[_KERNEL_PLACES]:
        for i in range(n):
            if armed[i, 0] == _NO_ID or not _has_good_size(messages, i, geometry[_PAYLOAD], geometry):
                continue
            _, image_id, packet = _parse(headers, i, geometry)
            if armed[i, 0] != image_id or armed[i, 1] != packet:
                for k in range(n_pieces):
                    memcpy(
                        uintp(scratch_base + i * stride + k * piece),
                        uintp(iov[i, 1 + k, 0]),
                        uintp(piece),
                    )

    for i in range(n):
        counters[source, _PACKETS] += 1
        key, image_id, packet = _NO_ID, _NO_ID, n_packets
        if _has_good_size(messages, i, np.int64(-1), geometry):
            key, image_id, packet = _parse(headers, i, geometry)
        else:
            counters[source, _BAD_SIZE] += 1
            continue
        if packet >= n_packets or key < 0 or image_id < 0 or image_id > MAX_IMAGE_ID:
            counters[source, _BAD_HEADER] += 1
            continue
        last = packet == n_packets - 1
        if not _has_good_size(
            messages, i, geometry[_LAST_PAYLOAD] if last else geometry[_PAYLOAD], geometry
        ):
            counters[source, _BAD_SIZE] += 1
            continue
        idle = state[source, IDLE] >= _IDLE_POLLS
        state[source, IDLE] = 0
        which = 0
        current = state[source, _KEY]
        if key > current:
            _begin(
                source, key, image_id, False, state, masks, first_headers, counters, offsets, rings,
                headers[i], events, n_events, geometry,
            )  # fmt: skip
        elif key < current:
            if state[source, _OLD_OPEN] and key == state[source, _OLD_KEY]:
                which = 1
            else:
                state[source, _LATE_RUN] += 1
                far_back = current - key > _FAR_BACK
                if idle or far_back or state[source, _LATE_RUN] >= max(n_packets, _FAR_BACK):
                    _begin(
                        source, key, image_id, True, state, masks, first_headers, counters, offsets,
                        rings, headers[i], events, n_events, geometry,
                    )  # fmt: skip
                else:
                    counters[source, _LATE] += 1
                    continue
        elif not state[source, _OPEN]:
            if idle:  # one and the same id again: a straggler does not come so late
                _begin(
                    source, key, image_id, True, state, masks, first_headers, counters, offsets, rings,
                    headers[i], events, n_events, geometry,
                )  # fmt: skip
            else:
                if _received(masks, source, 0, packet):
                    counters[source, _DUPLICATE] += 1
                else:
                    counters[source, _LATE] += 1
                continue
        if image_id != state[source, _ID + _OLD * which]:
            counters[source, _BAD_HEADER] += 1  # one frame number, two image ids
            continue
        if _received(masks, source, which, packet):
            counters[source, _DUPLICATE] += 1
            continue
        if which == 0:
            state[source, _LATE_RUN] = 0
            state[source, _NEXT] = packet + 1
        column = _OLD * which
        misplaced = armed[i, 0] != image_id or armed[i, 1] != packet
        if misplaced and _is_placed(rings, state, source, which):
            slot = _slot(rings, source, image_id)
            payload = scratch_base + i * stride
            counters[source, _INVALID_PIXELS] += _place(
                payload, slot, source, packet, offsets, maps, geometry
            )
            counters[source, _MOVED] += geometry[_KERNEL_PLACES]
        masks[source, which, packet >> 6] |= uint64(1) << uint64(packet & 63)
        state[source, _N + column] += 1
        if state[source, _N + column] == n_packets:
            if which == 0 and state[source, _OLD_OPEN]:  # frames are announced in their order
                _finish(
                    source, 1, state, masks, first_headers, counters, offsets, rings, events,
                    n_events, geometry,
                )  # fmt: skip
            _finish(
                source, which, state, masks, first_headers, counters, offsets, rings, events,
                n_events, geometry,
            )  # fmt: skip
