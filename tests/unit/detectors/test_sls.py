"""The 48-byte header that Eiger and Jungfrau share."""

import numpy as np

from tango_stddaq.detectors import sls


def test_the_header_is_packed_with_the_offsets_of_the_contract() -> None:
    fields = sls.HEADER.fields or {}
    assert sls.HEADER.itemsize == 48
    assert {name: (entry[1], entry[0].str) for name, entry in fields.items()} == {
        "frame_number": (0, "<u8"),
        "exposure_length": (8, "<u4"),
        "packet_number": (12, "<u4"),
        "detector_specific_1": (16, "<u8"),
        "timestamp": (24, "<u8"),
        "module_id": (32, "<u2"),
        "row": (34, "<u2"),
        "column": (36, "<u2"),
        "detector_specific_2": (38, "<u2"),
        "detector_specific_3": (40, "<u4"),
        "round_robin": (44, "<u2"),
        "detector_type": (46, "|u1"),
        "header_version": (47, "|u1"),
    }


def test_the_words_that_the_receive_loop_reads_are_frame_and_packet_number() -> None:
    header = np.zeros(1, sls.HEADER)
    header["frame_number"], header["packet_number"] = 2**40 + 3, 77
    words = header.view("<u4")
    assert int(words[0]) | int(words[1]) << 32 == 2**40 + 3
    assert words[3] == 77
