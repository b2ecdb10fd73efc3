"""Header layouts, placements, and finished frames turned into frame headers."""

import numpy as np

from tango_stddaq.detectors.fields import FrameField, MetadataFields
from tango_stddaq.detectors.layout import EVENT, FRAME_HEADER, Detector, PacketLayout, Placement
from tango_stddaq.processing.frame_headers import FrameHeaders

LAYOUT = PacketLayout(
    header=np.dtype([("frame", "<u8"), ("packet", "<u4"), ("gain", "<u2")]),
    payload_bytes=100,
    packets_per_frame=4,
)


def test_the_common_frame_header_has_64_bytes_at_the_offsets_of_the_contract() -> None:
    assert FRAME_HEADER.itemsize == 64
    header = np.zeros(1, FRAME_HEADER)
    header["image_id"], header["n_missing_packets"], header["module_id"] = 2**64 - 1, 258, 0x0403
    header["mark"], header["epoch"] = 0x0807, 0x0605
    assert header.tobytes() == (
        b"\xff" * 8 + b"\x02\x01" + bytes(6) + b"\x03\x04" + bytes(42) + b"\x07\x08\x05\x06"
    )


def test_sizes_of_packet_and_frame() -> None:
    assert LAYOUT.packet_bytes == 114
    assert LAYOUT.frame_bytes == 400


def test_a_raw_frame_is_its_packets_one_behind_the_other() -> None:
    placement = Placement.contiguous(2, LAYOUT)
    assert placement.piece_bytes == 100
    assert placement.offsets.dtype == np.int64
    assert placement.offsets.flags.c_contiguous
    assert placement.offsets.tolist() == [[[0], [100], [200], [300]]] * 2


def test_finished_frames_become_frame_headers() -> None:
    own = np.dtype(
        {
            "names": [*(FRAME_HEADER.names or ()), "gain"],
            "formats": ["<u8", "<u8", "<u2", "<u2", "<u2", "<u2"],
            "offsets": [0, 8, 16, 60, 62, 18],
            "itemsize": 64,
        }
    )

    detector = Detector(
        LAYOUT, (2, 5), Placement.contiguous(2, LAYOUT), own, (FrameField("gain", "gain"),),
        metadata=MetadataFields(10, ()), packets=lambda image, _id, _module: image,
        stamp=lambda _headers, _ids: None,
    )  # fmt: skip
    events = np.zeros(3, EVENT)
    events["image_id"], events["n_missing_packets"], events["source"] = [7, 7, 8], [0, 3, 0], [1, 0, 1]
    events["epoch"] = 9
    events["packet_header"][:, 12] = [10, 11, 12]
    missing = np.zeros(2, np.int64)
    headers = FrameHeaders(detector).of(events, missing).copy()
    assert headers["image_id"].tolist() == [7, 7, 8]
    assert headers["n_missing_packets"].tolist() == [0, 3, 0]
    assert headers["module_id"].tolist() == [5, 2, 5]
    assert headers["epoch"].tolist() == [9, 9, 9]
    assert headers["gain"].tolist() == [10, 11, 12]
    assert missing.tolist() == [3, 0]
    assert FrameHeaders(detector).of(events[:0]).size == 0
    # A receiver of one module of the two names it as its source 0.
    events["source"] = 0
    assert FrameHeaders(detector, [5]).of(events)["module_id"].tolist() == [5, 5, 5]
