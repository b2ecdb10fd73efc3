"""Masks of missing packets."""

import numpy as np
import pytest

from tango_stddaq.processing.packet_mask import full_mask, to_packets


@pytest.mark.parametrize("n_packets", [1, 63, 64, 65, 128])
def test_full_mask_has_a_bit_for_each_packet_and_no_more(n_packets: int) -> None:
    mask = full_mask(n_packets)
    assert mask.dtype == np.uint64
    assert int.from_bytes(mask.tobytes(), "little") == 2**n_packets - 1


def test_packets_of_each_module() -> None:
    mask = np.array([0b101, 0, 1 << 63, 0b10], np.uint64)  # two modules of 66 packets
    packets = to_packets(mask, 2, 66)
    assert packets.shape == (2, 66)
    assert [np.flatnonzero(row).tolist() for row in packets] == [[0, 2], [63, 65]]
