"""Filters in a running system: detector -> delay filter -> compressor -> files and live stream."""

import json
import time
from collections.abc import Iterator

import hdf5plugin  # noqa: F401, h5py finds its filters
import pytest
import zmq
from tango import AttrQuality, DevState

from .conftest import Daq, running_system, wait_until

pytestmark = pytest.mark.tango

N_IMAGES = 30
DELAY_S = 0.4


@pytest.fixture(scope="module")
def daq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daq]:
    settings = {
        "filters": [{"kind": "delay"}],
        "compressors": [{"method": "h5bitshuffle_lz4", "source": "delay-filter"}],
        "writer_source": "h5bitshuffle-lz4",
        "live_stream_configs": {"tcp://127.0.0.1:0": {"type": "forward", "source": "delay-filter"}},
        "delay_filter_timeout": DELAY_S,
        "ring_slots": 100,
    }
    with running_system(tmp_path_factory.mktemp("filters"), **settings) as running:
        yield running


def test_images_pass_the_whole_chain_late_and_complete(daq: Daq) -> None:
    delay, stream = daq.stage("StdDaqDelayFilter"), daq.stage("StdDaqLiveStream")
    assert delay.state() == DevState.RUNNING
    assert delay.delay == DELAY_S
    client = zmq.Context.instance().socket(zmq.SUB)
    try:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.SUBSCRIBE, b"")
        client.connect(stream.address)
        wait_until(lambda: stream.nActiveConnections == 1, 10, "the client is connected")
        sent_s = time.monotonic()
        daq.acquire(N_IMAGES)
        assert time.monotonic() - sent_s >= DELAY_S
        good = {"expected": N_IMAGES, "complete": N_IMAGES, "incomplete": 0, "lost": 0}
        assert daq.ledger() == good, list(daq.facade.log)[-5:]
        daq.check_pixels(range(1, N_IMAGES + 1))
        ids = []
        for _ in range(N_IMAGES):
            assert client.poll(10_000)
            ids.append(json.loads(client.recv_multipart()[0])["frame"])
        assert ids == list(range(1, N_IMAGES + 1))
    finally:
        client.close(0)
    wait_until(lambda: delay.forwardedImages == N_IMAGES, 5, "all are counted")
    assert (delay.overwritten, delay.malformed, delay.queue) == (0, 0, 0)
    assert delay.read_attribute("overwritten").quality == AttrQuality.ATTR_VALID
