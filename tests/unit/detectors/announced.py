"""What consumers are told of an image with a given frame header."""

import numpy as np

from tango_stddaq.codecs import image_metadata
from tango_stddaq.config_sizes import Sizes
from tango_stddaq.detectors.layout import Detector
from tango_stddaq.model import DetectorMetadata, Dtype
from tango_stddaq.processing.metadata_template import MetadataTemplate, encode_rows


def messages_of(
    template: MetadataTemplate,
    ids: np.ndarray,
    n_missing_packets: np.ndarray,
    n_missing_modules: np.ndarray,
    headers: np.ndarray,
) -> list[bytes]:
    shared, key, rows, out, ends = template.arrays(ids.size)
    encode_rows(ids, n_missing_packets, n_missing_modules, headers, shared, key, rows, out, ends)
    return [out[i, :end].tobytes() for i, end in enumerate(ends.tolist())]


def announced(detector: Detector, frame_header: bytes) -> DetectorMetadata | None:
    sizes = Sizes(1, 1, Dtype.UINT16, 2, 1, 1, 1)
    template = MetadataTemplate(sizes, detector.metadata, detector.frame_header)
    nothing = np.zeros(1, np.int64)
    header = np.frombuffer(frame_header, np.uint8).reshape(1, 64)
    (message,) = messages_of(template, nothing, nothing, nothing, header)
    return image_metadata.decode(message).detector
