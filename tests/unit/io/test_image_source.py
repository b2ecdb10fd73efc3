"""Images from another stage: what is announced, and the ring that holds it."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import zmq

from tango_stddaq.codecs import image_metadata
from tango_stddaq.errors import RingError
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource, PixelSource
from tango_stddaq.io.ring import RingOwner
from tango_stddaq.model import Compression, Dtype, Image

from .test_image_file import HEIGHT, IMAGE_BYTES, WIDTH, metadata_of, pixels_of, small_config


@pytest.fixture
def publisher(detector_name: str) -> Iterator["zmq.Socket[bytes]"]:
    handle = channels.bind(zmq.XPUB, channels.ipc_address(detector_name, "image"))
    yield handle
    channels.close(handle)


@pytest.fixture
def metadata(detector_name: str, publisher: "zmq.Socket[bytes]") -> Iterator[MetadataSource]:
    source = MetadataSource(small_config(detector_name))
    assert publisher.poll(5000)
    assert publisher.recv() == b"\x01"  # it listens
    yield source
    source.close()


@pytest.fixture
def pixels(detector_name: str) -> Iterator[PixelSource]:
    source = PixelSource(small_config(detector_name))
    yield source
    source.close()


def new_owner(detector_name: str, n_slots: int = 8) -> RingOwner:
    return RingOwner(f"{detector_name}-image", n_slots, IMAGE_BYTES)


def store(owner: RingOwner, image_id: int) -> None:
    owner.begin(image_id)[:] = pixels_of(image_id).reshape(-1).view(np.uint8)
    owner.publish(image_id)


def read(source: PixelSource, image_id: int) -> np.ndarray | None:
    out = np.zeros(IMAGE_BYTES, np.uint8)
    found = source.copy(metadata_of(image_id), out)
    return out.view(np.uint16).reshape(HEIGHT, WIDTH) if found else None


def test_images_are_announced_in_order_at_most_as_many_as_asked_for(
    metadata: MetadataSource, publisher: "zmq.Socket[bytes]"
) -> None:
    for image_id in range(5):
        publisher.send(image_metadata.encode(metadata_of(image_id)))
    found: list[Image] = []
    while len(found) < 5:
        some = metadata.receive(5000, limit=2)
        assert 1 <= len(some) <= 2
        found += some
    assert found == [metadata_of(image_id) for image_id in range(5)]
    assert metadata.receive(0) == []


def test_messages_that_are_no_metadata_are_counted_and_passed_over(
    metadata: MetadataSource, publisher: "zmq.Socket[bytes]"
) -> None:
    for data in (b"", b"\xff\xff", b"rubbish", image_metadata.encode(metadata_of(7))):
        publisher.send(data)
    found: list[Image] = []
    while not found:
        found = metadata.receive(5000)
    assert found == [metadata_of(7)]
    assert metadata.n_malformed == 3


def test_without_a_ring_an_image_is_lost(pixels: PixelSource) -> None:
    assert pixels.reader() is None
    assert read(pixels, 0) is None


def test_ring_that_comes_later_is_found(detector_name: str, pixels: PixelSource) -> None:
    assert read(pixels, 3) is None
    with new_owner(detector_name) as owner:
        store(owner, 3)
        np.testing.assert_array_equal(read(pixels, 3), pixels_of(3))


def test_ring_of_a_restarted_owner_is_found_again(detector_name: str, pixels: PixelSource) -> None:
    for image_id in (3, 4, 5):
        with new_owner(detector_name) as owner:
            store(owner, image_id)
            np.testing.assert_array_equal(read(pixels, image_id), pixels_of(image_id))
            assert read(pixels, image_id - 1) is None
    assert pixels.reader() is None


def test_ring_of_another_shape_is_an_error(detector_name: str, pixels: PixelSource) -> None:
    with new_owner(detector_name, n_slots=9), pytest.raises(RingError, match="9 slots of"):
        pixels.reader()


def test_only_images_that_can_lie_in_the_ring_are_accepted(pixels: PixelSource) -> None:
    good = metadata_of(0)
    assert pixels.accepts(good) is None
    assert pixels.accepts(replace(good, size=IMAGE_BYTES - 1, compression=Compression.BLOSC2)) is None
    for bad, reason in (
        (replace(good, size=IMAGE_BYTES + 1), "do not fit a slot"),
        (replace(good, size=IMAGE_BYTES + 1, compression=Compression.BLOSC2), "do not fit a slot"),
        (replace(good, size=IMAGE_BYTES - 2), "3 x 5 UINT16"),
        (replace(good, dtype=Dtype.UINT8), "3 x 5 UINT8"),
        (replace(good, dtype=Dtype.UNKNOWN), "3 x 5 UNKNOWN"),
        (replace(good, width=WIDTH - 1), "3 x 4 UINT16"),
    ):
        text = pixels.accepts(bad)
        assert text is not None
        assert reason in text
