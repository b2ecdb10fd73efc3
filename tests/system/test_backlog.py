"""A synchronizer that was held up finds thousands of messages waiting, and loses none."""

import time

import numpy as np
import pytest
import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.layout import FRAME_HEADER, HEADER_MARK
from tango_stddaq.io import channels
from tango_stddaq.stages.module_sync import ModuleSync
from tests.conftest import EIGER_POSITIONS
from tests.system.test_detectors import config_of

pytestmark = pytest.mark.system

N_IMAGES = 3000


@pytest.fixture
def config(detector_name: str) -> DaqConfig:
    return config_of(
        detector_name, "eiger", 514, 1030, 4, module_positions=EIGER_POSITIONS, ring_slots=8
    )


def headers_of(image_id: int, modules: range) -> bytes:
    headers = np.zeros(len(modules), FRAME_HEADER)
    headers["image_id"], headers["module_id"] = image_id, modules
    headers["mark"], headers["epoch"] = HEADER_MARK, 1
    return headers.tobytes()


@pytest.mark.parametrize("per_message", [1, 4])
def test_a_backlog_of_messages_is_taken_whole(config: DaqConfig, per_message: int) -> None:
    sender = channels.connect(zmq.PUSH, channels.ipc_address(config.detector_name, "sync"))
    sync = ModuleSync(config)
    try:
        for image_id in range(N_IMAGES):
            for first in range(0, 4, per_message):
                sender.send(headers_of(image_id, range(first, first + per_message)))
            if image_id % 100 == 0:
                sender.send(b"not a header")
        sync.start()
        deadline = time.monotonic() + 20
        while sync.counters["images"] < N_IMAGES and time.monotonic() < deadline:
            time.sleep(0.02)
        sync._tick()
        counters = sync.counters
        assert (counters["frames"], counters["images"]) == (4 * N_IMAGES, N_IMAGES)
        assert (counters["missing_modules"], counters["skipped_ids"]) == (0, 0)
        assert counters["malformed"] == N_IMAGES / 100
    finally:
        sync.stop()
        channels.close(sender)
