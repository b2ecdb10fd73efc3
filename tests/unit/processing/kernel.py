"""What the kernel does for the assembly: lays datagrams to where the I/O vectors point."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tango_stddaq.detectors import sls
from tango_stddaq.detectors.layout import PacketLayout, Placement
from tango_stddaq.processing.assembly import Workspace
from tango_stddaq.processing.slots import EMPTY_CLAIM, INDEX_ENTRY, INDEX_HEADER

GUARD = 4096
GUARD_BYTE = 0xA5
STALE = 0xEE
MSG_TRUNC = 0x20
SOL_UDP, UDP_GRO = 17, 104
MAX_MESSAGE = 65_507
UNTOUCHED = -1


def datagram(image_id: int, packet: int, payload: np.ndarray) -> bytes:
    header = np.zeros(1, sls.HEADER)
    header["frame_number"] = image_id
    header["packet_number"] = packet
    return header.tobytes() + payload.tobytes()


def payload_of(image_id: int, packet: int, source: int, n_bytes: int) -> np.ndarray:
    """Bytes that no other packet has, none of them 0 or `STALE`."""
    rng = np.random.default_rng([image_id, packet, source])
    return rng.integers(1, STALE, n_bytes, dtype=np.uint8)


def receive(
    workspace: Workspace, source: int, datagrams: Sequence[bytes], batch: int, bundle: int = 1
) -> None:
    """Receive datagrams in calls of at most `batch`, in bundles of up to `bundle` of equal size."""
    waiting = bundles(datagrams, bundle)
    while waiting:
        n = min(workspace.arm(source, min(batch, len(workspace.messages))), len(waiting))
        lay(workspace, waiting[:n])
        workspace.account(source, n)
        del waiting[:n]


def bundles(datagrams: Sequence[bytes], most: int) -> list[list[bytes]]:
    """Put datagrams that follow one another together as UDP_GRO does: only the last may be shorter."""
    found: list[list[bytes]] = []
    for data in datagrams:
        last = found[-1] if found else []
        fits = (
            0 < len(last) < most
            and len(last[-1]) == len(last[0])
            and 0 < len(data) <= len(last[0])
            and sum(map(len, last)) + len(data) <= MAX_MESSAGE
        )
        if fits:
            last.append(data)
        else:
            found.append([data])
    return found


def lay(workspace: Workspace, messages: Sequence[Sequence[bytes]]) -> None:
    """Scatter the messages of a call over their I/O vectors, never beyond a vector's length."""
    for i, datagrams in enumerate(messages):
        data = b"".join(datagrams)
        address, n_vectors = workspace.messages[i, 2:4].tolist()
        vectors = np.ctypeslib.as_array((ctypes.c_uint64 * (2 * n_vectors)).from_address(address))
        room, at = int(vectors[1::2].sum()), 0
        for place, length in vectors.reshape(-1, 2).tolist():
            part = data[at : at + length]
            ctypes.memmove(place, part, len(part))
            at += len(part)
        workspace.messages[i, 7] = min(len(data), room)
        workspace.messages[i, 6] = MSG_TRUNC if len(data) > room else 0
        workspace.messages[i, 5] = 0
        if len(datagrams) > 1:
            workspace.messages[i, 5] = 24
            control = np.array([20, 0, SOL_UDP, UDP_GRO, len(datagrams[0])], np.uint32)
            ctypes.memmove(int(workspace.messages[i, 4]), control.ctypes.data, control.nbytes)


class GuardedRing:
    """Memory of a ring full of an older image's bytes, with zones around it that nobody may touch."""

    def __init__(self, n_slots: int, slot_bytes: int, indexed: bool = False) -> None:
        self.n_slots = n_slots
        self._memory = np.full(n_slots * slot_bytes + 2 * GUARD, GUARD_BYTE, np.uint8)
        self.slots = self._memory[GUARD:-GUARD].reshape(n_slots, slot_bytes)
        self.slots[:] = STALE
        self._index = np.zeros(INDEX_HEADER.itemsize + n_slots * INDEX_ENTRY.itemsize, np.uint8)
        self.header = self._index[: INDEX_HEADER.itemsize].view(INDEX_HEADER)
        self.entries = self._index[INDEX_HEADER.itemsize :].view(INDEX_ENTRY)
        self.header["epoch"] = 1
        self.header["head"] = EMPTY_CLAIM
        self.entries["claim"] = EMPTY_CLAIM
        self.index_address = self._index.ctypes.data if indexed else 0

    def attach(self, workspace: Workspace) -> None:
        for source in range(len(workspace.rings)):
            workspace.set_ring(
                source, self.slots.ctypes.data, self.slots.shape[1], self.n_slots, self.index_address
            )

    def publish(self, image_id: int, epoch: int) -> None:
        """Do what the owner does."""
        self.entries["claim"][image_id % self.n_slots] = epoch << 48 | image_id
        self.header["head"] = epoch << 48 | image_id

    @property
    def guards_are_intact(self) -> bool:
        zones = np.concatenate([self._memory[:GUARD], self._memory[-GUARD:]])
        return bool((zones == GUARD_BYTE).all())


@dataclass
class Expected:
    """Plain account of one source, after the rules of the packet contract, a packet at a time."""

    n_packets: int
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("duplicate", "late", "restarts", "skipped_ids", "frames", "missing_packets"), 0
        )
    )
    finished: list[tuple[int, frozenset[int]]] = field(default_factory=list)
    current: int = -1
    got: dict[int, set[int]] = field(default_factory=dict)
    """Frames under way, at most two."""
    last_got: set[int] = field(default_factory=set)
    late_run: int = 0

    def take(self, image_id: int, packet: int) -> None:
        if image_id < self.current and image_id not in self.got:
            self.late_run += 1
            if self.current - image_id <= 16 and self.late_run < max(self.n_packets, 16):
                self.counts["late"] += 1
                return
            self.counts["restarts"] += 1
            self.finish_all()
            self._begin(image_id)
        elif image_id > self.current:
            if self.current >= 0:
                self.counts["skipped_ids"] += image_id - self.current - 1
            for older in [one for one in self.got if one != self.current]:
                self._finish(older)
            self._begin(image_id)
        elif image_id not in self.got:
            self.counts["duplicate" if packet in self.last_got else "late"] += 1
            return
        if packet in self.got[image_id]:
            self.counts["duplicate"] += 1
            return
        if image_id == self.current:
            self.late_run = 0
        self.got[image_id].add(packet)
        if len(self.got[image_id]) == self.n_packets:
            for older in [one for one in self.got if one < image_id]:
                self._finish(older)  # frames are announced in their order
            self._finish(image_id)

    def finish_all(self) -> None:
        for image_id in sorted(self.got):
            self._finish(image_id)

    def _begin(self, image_id: int) -> None:
        self.current = image_id
        self.got[image_id] = self.last_got = set()
        self.late_run = 0

    def _finish(self, image_id: int) -> None:
        got = frozenset(self.got.pop(image_id))
        self.finished.append((image_id, got))
        self.counts["frames"] += 1
        self.counts["missing_packets"] += self.n_packets - len(got)


def small_layout(n_packets: int, payload_bytes: int = 24) -> PacketLayout:
    return PacketLayout(sls.HEADER, payload_bytes, n_packets)


def scattered_placement(n_sources: int, n_packets: int, n_pieces: int, piece: int) -> Placement:
    """Pieces of all sources mixed in the slot, every second place a gap."""
    n = n_sources * n_packets * n_pieces
    places = np.random.default_rng(n).permutation(2 * n)[:n].astype(np.int64)
    return Placement((places * piece).reshape(n_sources, n_packets, n_pieces), piece)


def slot_pixels(placement: Placement, source: int, frame: dict[int, np.ndarray | None]) -> np.ndarray:
    """Return what one source must have laid in its slot: byte values, `UNTOUCHED` elsewhere."""
    slot = np.full(int(placement.offsets.max()) + placement.piece_bytes, UNTOUCHED, np.int16)
    for packet, payload in frame.items():
        for k, offset in enumerate(placement.offsets[source, packet].tolist()):
            where = slice(offset, offset + placement.piece_bytes)
            slot[where] = (
                0 if payload is None else payload[k * placement.piece_bytes :][: placement.piece_bytes]
            )
    return slot
