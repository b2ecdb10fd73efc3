"""The shapes in which a detector module describes itself to the receiver and the simulator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

import numpy as np

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.fields import FrameField, MetadataFields
from tango_stddaq.errors import ConfigError

FRAME_HEADER_BYTES: Final = 64
"""Bytes of the frame header that receivers publish and converters push (interface contract)."""

FRAME_HEADER: Final = np.dtype(
    {
        "names": ["image_id", "n_missing_packets", "module_id", "mark", "epoch"],
        "formats": ["<u8", "<u8", "<u2", "<u2", "<u2"],
        "offsets": [0, 8, 16, 60, 62],
        "itemsize": FRAME_HEADER_BYTES,
    }
)
"""The part of the frame header that all detectors share.

`mark` and `epoch` lie in the padding that every detector's header ends with. `epoch` changes when image
ids start again. Existing programs leave anything in the padding: what we put there counts only where
`mark` is `HEADER_MARK`.
"""

HEADER_MARK: Final = 0xDA0C

EVENT: Final = np.dtype(
    {
        "names": ["image_id", "n_missing_packets", "source", "epoch", "packet_header"],
        "formats": ["<u8", "<u8", "<u8", "<u8", ("u1", 64)],
        "offsets": [0, 8, 16, 24, 32],
        "itemsize": 96,
    }
)
"""A frame that the receive loop has finished: its id, what is missing, which source (position in the
receiver's list of modules), and the header of the first packet of it that arrived."""


class HeaderKind(IntEnum):
    """How the receive loop reads a packet's header."""

    SLS = 0
    """Frame number (64 bit) first, which is the image id; packet number in word 3."""
    SLS_BUNCH_ID = 1
    """The same, but the image id is the bunch id, a double in words 4 and 5."""
    GIGAFROST = 2
    """Image id (32 bit) in word 2, first row of the packet in the upper half of word 3."""


class PixelFormat(IntEnum):
    """What happens to pixels on their way from the packet to the slot."""

    COPY = 0
    """Nothing: the kernel may lay them there."""
    PACKED_12 = 1
    """12-bit pixels are unpacked to 16 bits."""
    GAIN = 2
    """Raw Jungfrau pixels are converted to energies, float32."""


@dataclass(frozen=True, slots=True)
class PacketLayout:
    """Where things stand in a datagram.

    Attributes
    ----------
    header
        The packed header.
    payload_bytes
        Pixel bytes behind the header, the same in every packet.
    packets_per_frame
        Packets of one module's frame.
    header_kind
        How its header is read.
    last_payload
        Payload bytes of the last packet of a frame, where they differ.
    pad_bytes, last_pad
        Bytes at the end of a payload, of any packet and of the last, that hold no pixels.
    rows_per_packet
        Module rows in a packet, where the header gives the first row instead of a packet number.
    key_step
        Distance of the numbers of a module's consecutive frames: 2 where two sets of modules take
        turns.
    number_field
        Field of the header that tells frames apart.
    """

    header: np.dtype
    payload_bytes: int
    packets_per_frame: int
    header_kind: HeaderKind = HeaderKind.SLS
    last_payload: int | None = None
    pad_bytes: int = 0
    last_pad: int = 0
    rows_per_packet: int = 1
    key_step: int = 1
    number_field: str = "frame_number"

    @property
    def last_payload_bytes(self) -> int:
        """Payload bytes of the last packet of a frame."""
        return self.payload_bytes if self.last_payload is None else self.last_payload

    @property
    def mask_words(self) -> int:
        """64-bit words of a mask with a bit for every packet of a frame."""
        return -(-self.packets_per_frame // 64)

    @property
    def is_uniform(self) -> bool:
        """Whether all packets are of one size and hold nothing but pixels."""
        return self.last_payload_bytes == self.payload_bytes and not self.pad_bytes

    @property
    def packet_bytes(self) -> int:
        """Bytes of a whole datagram; the last of a frame may be shorter."""
        return self.header.itemsize + self.payload_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes of one module's raw frame: the slot of its frame ring."""
        return self.payload_bytes * (self.packets_per_frame - 1) + self.last_payload_bytes


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the kernel shall lay each packet's payload within a slot.

    Attributes
    ----------
    offsets
        (n_modules, packets_per_frame, n_pieces) int64: byte offsets in the slot. What a packet
        becomes is cut into `n_pieces` pieces of `piece_bytes`, laid at these offsets.
    format
        What happens to the pixels; pieces are counted after it.
    n_last_pieces, last_bytes
        Pieces of the last packet of a frame and their size, where they differ.
    fill_byte
        Each byte of pixels that were lost: 0, or 0xFF, which makes a float NaN.
    """

    offsets: np.ndarray
    piece_bytes: int
    format: PixelFormat = PixelFormat.COPY
    n_last_pieces: int | None = None
    last_bytes: int | None = None
    fill_byte: int = 0

    @property
    def last_pieces(self) -> int:
        """Pieces of the last packet of a frame."""
        return self.offsets.shape[2] if self.n_last_pieces is None else self.n_last_pieces

    @property
    def last_piece_bytes(self) -> int:
        """Size of these pieces."""
        return self.piece_bytes if self.last_bytes is None else self.last_bytes

    def take(self, rows: Sequence[int]) -> "Placement":
        """Return the placement of some of the modules, by their positions."""
        return replace(self, offsets=np.ascontiguousarray(self.offsets[list(rows)]))

    def fill(self, slot: np.ndarray, row: int) -> None:
        """Set all pixels of a module to the fill value: `slot` is (slot_bytes,) uint8."""
        whole, last = self.offsets[row, :-1], self.offsets[row, -1, : self.last_pieces]
        for offsets, n_bytes in ((whole, self.piece_bytes), (last, self.last_piece_bytes)):
            slot[offsets.reshape(-1, 1) + np.arange(n_bytes)] = self.fill_byte

    @classmethod
    def contiguous(cls, n_modules: int, layout: PacketLayout) -> "Placement":
        """Lay packets one behind the other: a raw frame, as the frame rings hold it."""
        pixel_bytes = layout.payload_bytes - layout.pad_bytes
        offsets = np.arange(layout.packets_per_frame, dtype=np.int64) * pixel_bytes
        return cls(
            np.ascontiguousarray(np.broadcast_to(offsets[:, None], (n_modules, offsets.size, 1))),
            pixel_bytes,
            last_bytes=layout.last_payload_bytes - layout.last_pad,
        )


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector as the rest of the package sees it, composed by its module for one configuration.

    Attributes
    ----------
    modules
        The modules that make up one image, in the order of their numbers.
    placement
        Where each packet of each of these modules lies in the image.
    frame_header
        The detector's 64-byte frame header; has the fields of `FRAME_HEADER`.
    frame_fields
        Where the detector's own fields of a frame header come from.
    metadata
        What the detector says of an image, and where it stands in a frame header.
    packets
        Cuts an image (height, width) into the datagrams of one connection: arguments image, image id,
        connection; returns (packets_per_frame, packet_bytes) uint8. The last packet may be shorter.
    stamp
        Writes image ids into all fields of simulated packet headers that depend on them: arguments
        headers, a structured array of `layout.header`, and ids, uint64 of a shape that broadcasts.
    more_connections
        Connections, each a UDP port, beyond the modules: they deliver the same modules of other
        images, in the same order.
    """

    layout: PacketLayout
    modules: tuple[int, ...]
    placement: Placement
    frame_header: np.dtype
    frame_fields: tuple[FrameField, ...]
    metadata: MetadataFields
    packets: Callable[[np.ndarray, int, int], np.ndarray]
    stamp: Callable[[np.ndarray, np.ndarray], None]
    more_connections: tuple[int, ...] = ()

    @property
    def connections(self) -> tuple[int, ...]:
        """All connections; `placement` has a row for each, and events name them by position."""
        return self.modules + self.more_connections

    def select(self, wanted: Sequence[int] | None) -> tuple[int, ...]:
        """Return the connections wanted; all for None.

        Raises
        ------
        ConfigError
            If one is not of this detector.
        """
        if wanted is None:
            return self.connections
        unknown = sorted(set(wanted) - set(self.connections))
        if unknown:
            raise ConfigError(
                f"modules {unknown}: are not of this detector; allowed are {list(self.connections)}"
            )
        return tuple(wanted)

    def connections_of(self, image_id: int) -> tuple[int, ...]:
        """Return the connections that deliver an image: all, or sets of them in turn."""
        n_sets = len(self.connections) // len(self.modules)
        first = image_id % n_sets * len(self.modules)
        return self.connections[first : first + len(self.modules)]

    def packet_sizes(self) -> np.ndarray:
        """Return the bytes of each packet of a frame, (packets_per_frame,) int64."""
        sizes = np.full(self.layout.packets_per_frame, self.layout.packet_bytes)
        sizes[-1] = self.layout.header.itemsize + self.layout.last_payload_bytes
        return sizes


DetectorFactory = Callable[[DaqConfig], Detector]
