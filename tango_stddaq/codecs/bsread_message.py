"""What a bsread message says: its headers, its image channel, its pixels as they were sent."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from tango_stddaq.codecs.bsread_compression import BsreadCompression, Buffer

ORDERS: Final[dict[str, Literal["<", ">"]]] = {"little": "<", "big": ">"}
"""Byte orders by the names that channels have for them."""


@dataclass(frozen=True, slots=True)
class MainHeader:
    """What the first frame says.

    Attributes
    ----------
    timestamp
        (seconds since 1970, nanoseconds) of the pulse.
    data_header_hash
        MD5 of the data header as it is sent, in hexadecimal.
    """

    pulse_id: int
    timestamp: tuple[int, int]
    data_header_hash: str
    header_compression: BsreadCompression = BsreadCompression.NONE


@dataclass(frozen=True, slots=True)
class Channel:
    """An image channel.

    Attributes
    ----------
    shape
        (height, width); on the wire it is [x, y].
    kind
        Type of a pixel: uint16, ...
    encoding
        Byte order of the sender: little or big; of the timestamp as well.
    """

    name: str
    shape: tuple[int, int]
    kind: str
    encoding: str = "little"
    compression: BsreadCompression = BsreadCompression.NONE

    @property
    def dtype(self) -> np.dtype:
        """Type of a pixel with the byte order of the sender."""
        return np.dtype(self.kind).newbyteorder(ORDERS[self.encoding])

    @property
    def n_bytes(self) -> int:
        """Bytes of the pixels, uncompressed."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class DataHeader:
    """What the second frame says: the first channel, and how many there are."""

    channel: Channel
    n_channels: int = 1


@dataclass(frozen=True, slots=True)
class Message:
    """A message, its pixels still as they were sent.

    Attributes
    ----------
    data
        Empty if the channel has no value for this pulse.
    timestamp
        (seconds, nanoseconds) of the channel; None if its timestamp frame is empty.
    """

    main: MainHeader
    channel: Channel
    data: Buffer
    timestamp: tuple[int, int] | None = None
