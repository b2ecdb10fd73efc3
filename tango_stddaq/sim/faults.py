"""What can go wrong between a detector and its receiver, on command and with an exact account."""

from dataclasses import dataclass, field

import numpy as np

from tango_stddaq.sim.pattern import PacketPattern

CORRUPT_BYTE = 0xFF
"""What the header of a corrupt packet is filled with: no detector's ids or protocol look so."""


@dataclass(slots=True)
class Faults:
    """Faults of a simulated network; fractions are of all packets, chosen at random but repeatably.

    Attributes
    ----------
    drop_every
        Leave out every n-th packet, counted over all modules; 0 for none.
    drop, duplicate, corrupt, truncate
        Fractions of packets that are lost, sent twice, sent with a broken header, cut to half.
    reorder
        Fraction of packets that change places with the one behind it in their frame.
    drop_patterns
        Packets that are lost, by image, module and position.
    dead_modules, dead_after
        Modules that send nothing, once so many images were sent.
    seed
        The same seed makes the same faults.
    dropped
        Every packet that will be missing, for whatever reason: (image id, module, packet position).
    n_duplicated, n_corrupted, n_truncated, n_reordered
        What was really done.
    """

    drop_every: int = 0
    drop: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    truncate: float = 0.0
    reorder: float = 0.0
    drop_patterns: tuple[PacketPattern, ...] = ()
    dead_modules: frozenset[int] = frozenset()
    dead_after: int = 0
    seed: int = 1
    dropped: list[tuple[int, int, int]] = field(default_factory=list)
    n_duplicated: int = 0
    n_corrupted: int = 0
    n_truncated: int = 0
    n_reordered: int = 0
    _count: int = 0
    _n_images: int = 0
    _rng: np.random.Generator | None = None

    def __post_init__(self) -> None:
        for name in ("drop", "duplicate", "corrupt", "truncate", "reorder"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} {value}: allowed is a fraction from 0 to 1")
        self._rng = np.random.default_rng(self.seed)

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(
            self.drop_every > 0
            or self.drop or self.duplicate or self.corrupt or self.truncate or self.reorder
            or self.drop_patterns or self.dead_modules
        )  # fmt: skip

    def begin_image(self) -> None:
        """Say that the frames of another image follow: `dead_after` counts images."""
        self._n_images += 1

    def apply(
        self, image_id: int, module: int, packets: np.ndarray, sizes: np.ndarray, header_bytes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what reaches the receiver of a frame.

        Parameters
        ----------
        packets, sizes
            (n, packet_bytes) uint8 and the bytes of each that are sent, (n,).
        header_bytes
            Bytes of the header, which corruption hits.

        Returns
        -------
        tuple
            Packets and sizes, in the order in which they arrive.
        """
        keep = self.kept(image_id, module, len(packets))
        packets, sizes = packets[keep], sizes[keep]
        if not (self.duplicate or self.corrupt or self.truncate or self.reorder):
            return packets, sizes
        positions = np.flatnonzero(keep)
        packets, sizes = packets.copy(), sizes.copy()
        corrupt = self._pick(self.corrupt, len(packets))
        truncate = self._pick(self.truncate, len(packets)) & ~corrupt
        packets[corrupt, :header_bytes] = CORRUPT_BYTE
        sizes[truncate] //= 2
        self.n_corrupted += int(corrupt.sum())
        self.n_truncated += int(truncate.sum())
        self._note(image_id, module, positions[corrupt | truncate])
        order = np.arange(len(packets))
        for first in np.flatnonzero(self._pick(self.reorder, len(packets))[:-1]):
            order[[first, first + 1]] = order[[first + 1, first]]
            self.n_reordered += 1
        again = self._pick(self.duplicate, len(packets)) & ~(corrupt | truncate)
        self.n_duplicated += int(again.sum())
        order = np.repeat(order, 1 + again[order])
        return packets[order], sizes[order]

    def kept(self, image_id: int, module: int, n_packets: int) -> np.ndarray:
        """Return which of a frame's packets are sent at all, (n_packets,) bool."""
        keep = ~self._pick(self.drop, n_packets)
        if self.drop_every > 0:
            numbers = self._count + 1 + np.arange(n_packets)
            self._count += n_packets
            keep &= numbers % self.drop_every != 0
        for pattern in self.drop_patterns:
            keep &= ~pattern.mask(image_id, module, n_packets)
        is_dead = self._n_images > self.dead_after or not self.dead_after
        if is_dead and module in self.dead_modules:
            keep[:] = False
        self._note(image_id, module, np.flatnonzero(~keep))
        return keep

    def _note(self, image_id: int, module: int, positions: np.ndarray) -> None:
        self.dropped += [(image_id, module, int(position)) for position in positions]

    def _pick(self, fraction: float, n: int) -> np.ndarray:
        if fraction <= 0 or self._rng is None:
            return np.zeros(n, bool)
        return self._rng.random(n) < fraction
