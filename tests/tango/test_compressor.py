"""Compressors in a running system: driven through Tango, fed by a simulated detector."""

from collections.abc import Iterator

import bitshuffle
import blosc2
import numpy as np
import pytest
import tango
import zmq
from tango import AttrWriteType, DevState

from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb

from .conftest import Daq, refused, running_system, wait_until
from .test_interface import events

pytestmark = pytest.mark.tango

N_IMAGES = 20


@pytest.fixture(scope="module")
def daq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daq]:
    compressors = [
        {"method": "blosc2", "threads": 2, "level": 7},
        {"method": "h5bitshuffle_lz4", "block_size": 16384},
    ]
    with running_system(tmp_path_factory.mktemp("compressors"), compressors=compressors) as running:
        yield running


def device(daq: Daq, number: int) -> tango.DeviceProxy:
    servers = [s for s in daq.system.plan.servers if s.tango_class == "StdDaqCompressor"]
    return daq.system.device(servers[number])


def pixels_of(daq: Daq, suffix: str, message: pb.ImageMetadata) -> np.ndarray:
    sizes = daq.config.sizes
    ring = np.memmap(f"/dev/shm/{daq.config.detector_name}-{suffix}", np.uint8, "r")
    start = message.image_id % sizes.n_slots * sizes.slot_bytes
    data = ring[start : start + message.size].copy()
    if message.compression == pb.blosc2:
        return np.frombuffer(blosc2.decompress2(data.tobytes()), "<u2").reshape(sizes.shape)
    assert message.compression == pb.h5bitshuffle_lz4
    assert int.from_bytes(data[8:12], "big") == 16384
    return bitshuffle.decompress_lz4(data[12:], sizes.shape, np.dtype("<u2"), 8192)


@pytest.mark.parametrize(("number", "suffix"), [(0, "blosc2"), (1, "h5bitshuffle-lz4")])
def test_images_of_the_detector_come_out_compressed(daq: Daq, number: int, suffix: str) -> None:
    proxy = device(daq, number)
    proxy.Reset()
    wait_until(lambda: proxy.images == 0, 5, "the reset")
    results = zmq.Context.instance().socket(zmq.SUB)
    try:
        results.setsockopt(zmq.LINGER, 0)
        results.setsockopt(zmq.SUBSCRIBE, b"")
        results.connect(f"ipc:///tmp/{daq.config.detector_name}-{suffix}")
        with events(proxy, "images", "compressionRatio", "inputRate", "outputRate") as seen:
            daq.detector.run(N_IMAGES, 50)
            wait_until(lambda: proxy.images == N_IMAGES, 10, "all images compressed")
            wait_until(lambda: max(seen["compressionRatio"]) > 1, 10, "an event of the ratio")
            wait_until(lambda: N_IMAGES in seen["images"], 10, "an event of the counter")
            assert max(seen["inputRate"]) > max(seen["outputRate"]) > 0
        messages = []
        while results.poll(500):
            messages.append(pb.ImageMetadata.FromString(results.recv()))
    finally:
        results.close(0)
    ids = [message.image_id for message in messages]
    assert ids == sorted(ids)
    assert ids[-1] == N_IMAGES
    assert len(ids) > N_IMAGES // 2  # the first ones may come before we listen
    for message in messages:
        expected = daq.detector.truth(message.image_id)
        np.testing.assert_array_equal(pixels_of(daq, suffix, message), expected)
    assert proxy.compressedImages == N_IMAGES
    assert proxy.compressedBytes < proxy.bytes == N_IMAGES * daq.config.sizes.slot_bytes
    assert proxy.overwritten == proxy.refused == proxy.malformed == 0
    assert proxy.state() == DevState.RUNNING


def test_starts_with_the_settings_of_the_configuration(daq: Daq) -> None:
    blosc, bitshuffle_lz4 = device(daq, 0), device(daq, 1)
    assert (blosc.threads, blosc.level) == (2, 7)
    assert bitshuffle_lz4.threads == 1
    assert blosc.method.startswith("blosc2 (blosc2 ")
    assert bitshuffle_lz4.method.startswith("h5bitshuffle_lz4 (bitshuffle ")


def test_threads_and_level_can_be_set(daq: Daq) -> None:
    proxy = device(daq, 0)
    assert proxy.get_attribute_config("threads").writable == AttrWriteType.READ_WRITE
    with events(proxy, "threads", "level") as seen:
        proxy.threads, proxy.level = 3, 1
        wait_until(lambda: seen["threads"][-1] == 3 and seen["level"][-1] == 1, 5, "the events")
    assert (proxy.threads, proxy.level) == (3, 1)
    for wrong in (0, 65):
        with refused("threads"):
            proxy.threads = wrong
    for wrong in (0, 10):
        with refused("level"):
            proxy.level = wrong
    with refused("level 3", "has no level"):
        device(daq, 1).level = 3
    assert (proxy.threads, proxy.level) == (3, 1)
    proxy.threads, proxy.level = 2, 7


def test_every_attribute_is_described(daq: Daq) -> None:
    infos = device(daq, 0).attribute_list_query_ex()
    own = [info for info in infos if info.name not in ("State", "Status")]
    assert not [info.name for info in own if info.description in ("", "No description")]
    assert not [info.name for info in own if not info.label]


def test_stop_and_start(daq: Daq) -> None:
    proxy = device(daq, 1)
    proxy.Stop()
    assert proxy.state() == DevState.STANDBY
    proxy.Start()
    wait_until(lambda: proxy.state() == DevState.RUNNING, 5, "the start")
