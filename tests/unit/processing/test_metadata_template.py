"""The template makes the very bytes that protobuf makes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq import config as config_module
from tango_stddaq.codecs import image_metadata
from tango_stddaq.config_sizes import Sizes
from tango_stddaq.detectors.layout import HEADER_MARK
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.model import (
    DetectorMetadata,
    EigerMetadata,
    GigafrostMetadata,
    Image,
    JungfrauMetadata,
    Status,
)
from tango_stddaq.processing.metadata_template import MetadataTemplate
from tango_stddaq.processing.slots import MAX_IMAGE_ID
from tango_stddaq.sim import demo_config

from ..detectors.announced import messages_of


def template_of(name: str) -> tuple[MetadataTemplate, np.dtype, Sizes]:
    config = config_module.from_dict(demo_config.build(name, "TEMPLATE", 16, 1))
    detector = detector_of(config)
    template = MetadataTemplate(config.sizes, detector.metadata, detector.frame_header)
    return template, detector.frame_header, config.sizes


def expected(name: str, header: np.ndarray) -> DetectorMetadata:
    if name == "eiger":
        is_ours = header["mark"][0] == HEADER_MARK
        return EigerMetadata(int(header["exptime"][0]) if is_ours else 0)
    if name == "jungfrau":
        return JungfrauMetadata(int(header["daq_rec"][0]))
    fields = ("scan_id", "scan_time", "sync_time", "frame_timestamp", "exposure_time")
    numbers = [int(header[field][0]) for field in fields]
    return GigafrostMetadata(*numbers, store_image=not header["do_not_store"][0])


@pytest.mark.parametrize("name", ["eiger", "jungfrau", "gigafrost"])
@settings(deadline=None, max_examples=150)
@given(
    image_id=st.one_of(st.integers(0, 300), st.integers(0, MAX_IMAGE_ID)),
    missing=st.tuples(st.sampled_from([0, 1, 127, 128, 10_000]), st.integers(0, 200)),
    noise=st.one_of(st.just(bytes(64)), st.just(b"\xff" * 64), st.binary(min_size=64, max_size=64)),
    is_marked=st.booleans(),
)
def test_the_bytes_are_those_of_protobuf(
    name: str, image_id: int, missing: tuple[int, int], noise: bytes, is_marked: bool
) -> None:
    template, frame_header, sizes = template_of(name)
    header = np.frombuffer(noise, np.uint8).copy().view(frame_header)
    header["mark"] = HEADER_MARK if is_marked else 0
    n_packets, n_modules = missing
    (found,) = messages_of(
        template,
        np.array([image_id], np.int64),
        np.array([n_packets]),
        np.array([n_modules]),
        header.view(np.uint8).reshape(1, 64),
    )
    status = Status.MISSING_PACKETS if n_packets or n_modules else Status.GOOD_IMAGE
    image = Image(
        image_id,
        sizes.height,
        sizes.width,
        sizes.slot_bytes,
        sizes.dtype,
        status,
        detector=expected(name, header),
        n_missing_packets=n_packets,
        n_missing_modules=n_modules,
    )
    assert found == image_metadata.encode(image)
    assert image_metadata.decode(found) == image


def test_many_images_at_once() -> None:
    template, _, sizes = template_of("eiger")
    for n in (1, 3, 500, 2):
        ids = np.arange(n, dtype=np.int64)
        nothing = np.zeros(n, np.int64)
        messages = messages_of(template, ids, nothing, nothing, np.zeros((n, 64), np.uint8))
        images = [image_metadata.decode(message) for message in messages]
        assert [image.image_id for image in images] == ids.tolist()
        assert {image.shape for image in images} == {sizes.shape}
