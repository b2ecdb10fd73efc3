"""The shapes in which a detector module describes itself to the receiver and the simulator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from tango_stddaq.config import DaqConfig
from tango_stddaq.model import DetectorMetadata

FRAME_HEADER_BYTES: Final = 64
"""Bytes of the frame header that receivers publish and converters push (interface contract)."""

FRAME_HEADER: Final = np.dtype(
    {
        "names": ["image_id", "n_missing_packets", "module_id", "epoch"],
        "formats": ["<u8", "<u8", "<u2", "<u2"],
        "offsets": [0, 8, 16, 62],
        "itemsize": FRAME_HEADER_BYTES,
    }
)
"""The part of the frame header that all detectors share. `epoch` lies in the padding that every
detector's header ends with: it changes when image ids start again; 0 from an existing program."""

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
    id_word, packet_word
        Positions of the frame number (64 bit) and of the packet number (32 bit) in the header, in
        32-bit words.
    """

    header: np.dtype
    payload_bytes: int
    packets_per_frame: int
    id_word: int
    packet_word: int

    @property
    def packet_bytes(self) -> int:
        """Bytes of a whole datagram."""
        return self.header.itemsize + self.payload_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes of one module's raw frame: the slot of its frame ring."""
        return self.payload_bytes * self.packets_per_frame


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the kernel shall lay each packet's payload within a slot.

    Attributes
    ----------
    offsets
        (n_modules, packets_per_frame, n_pieces) int64: byte offsets in the slot. The payload is cut
        into `n_pieces` pieces of `piece_bytes`, laid one after the other at these offsets.
    """

    offsets: np.ndarray
    piece_bytes: int

    @classmethod
    def contiguous(cls, n_modules: int, layout: PacketLayout) -> "Placement":
        """Lay packets one behind the other: a raw frame, as the frame rings hold it."""
        offsets = np.arange(layout.packets_per_frame, dtype=np.int64) * layout.payload_bytes
        return cls(
            np.ascontiguousarray(np.broadcast_to(offsets[:, None], (n_modules, offsets.size, 1))),
            layout.payload_bytes,
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
    fill_frame_headers
        Fills the detector's own fields of frame headers from the packet headers of their frames.
    metadata
        Reads what the detector says of an image from one frame header.
    packets
        Cuts an image (height, width) into one module's datagrams: arguments image, image id, module;
        returns (packets_per_frame, packet_bytes) uint8.
    """

    layout: PacketLayout
    modules: tuple[int, ...]
    placement: Placement
    frame_header: np.dtype
    fill_frame_headers: Callable[[np.ndarray, np.ndarray], None]
    metadata: Callable[[bytes], DetectorMetadata | None]
    packets: Callable[[np.ndarray, int, int], np.ndarray]

    def frame_headers(self, events: np.ndarray) -> np.ndarray:
        """Turn finished frames (`EVENT` records, sources in the order of `modules`) into headers.

        Returns
        -------
        np.ndarray
            (n,) of `frame_header`.
        """
        result = np.zeros(events.size, self.frame_header)
        for name in ("image_id", "n_missing_packets", "epoch"):
            result[name] = events[name]
        result["module_id"] = np.array(self.modules, np.uint16)[events["source"].astype(np.intp)]
        packets = np.ascontiguousarray(events["packet_header"][:, : self.layout.header.itemsize])
        self.fill_frame_headers(result, packets.view(self.layout.header)[:, 0])
        return result


DetectorFactory = Callable[[DaqConfig], Detector]
