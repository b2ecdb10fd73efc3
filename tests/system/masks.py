"""Packet masks as a consumer reads them from the ring, compared with what a simulator left out."""

from collections.abc import Iterable

import numpy as np

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.io.ring import RingReader
from tango_stddaq.processing.packet_mask import to_packets
from tango_stddaq.sim.faults import Faults


def check_masks(config: DaqConfig, ids: Iterable[int], faults: Faults) -> None:
    """Check that the ring says of each image which packets are missing, and no others."""
    detector, sizes = detector_of(config), config.sizes
    n_modules = len(detector.modules)
    with RingReader.attach(config.segment("image"), sizes.n_slots, sizes.slot_bytes) as ring:
        for image_id in ids:
            mask = ring.missing_packets(image_id)
            assert mask is not None
            found = to_packets(mask, n_modules, detector.layout.packets_per_frame)
            places = [
                (detector.connections.index(connection) % n_modules, packet)
                for dropped_id, connection, packet in faults.dropped
                if dropped_id == image_id
            ]
            assert sorted(zip(*map(np.ndarray.tolist, np.nonzero(found)), strict=True)) == sorted(places)
