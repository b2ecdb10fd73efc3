"""What runs on the hosts of a test: `source CONFIG HZ` and `target CONFIG FILE`.

The target knows the contract and nothing of ours: it reads /dev/shm and the ipc socket by hand.
"""

import faulthandler
import json
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any


def pixels(image_id: int, n: int) -> bytes:
    return struct.pack(f"<{n}H", *((k + 7 * image_id) % 65535 + 1 for k in range(n)))


def source(path: str, hz: str) -> None:
    import numpy as np
    import zmq

    from tango_stddaq import config as config_module
    from tango_stddaq.codecs import image_metadata
    from tango_stddaq.io import channels
    from tango_stddaq.io.ring import RingOwner
    from tango_stddaq.model import Image

    config = config_module.load(path)
    sizes = config.sizes
    out = channels.bind(zmq.PUB, channels.ipc_address(config.detector_name, "image"))
    with RingOwner(config.segment("image"), sizes.n_slots, sizes.slot_bytes) as ring:
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        image_id, wait_s = 0, 1.0  # until the senders subscribe
        while not ended.wait(wait_s):
            wait_s = 1 / float(hz)
            image_id += 1
            ring.begin(image_id)[:] = np.frombuffer(pixels(image_id, sizes.slot_bytes // 2), np.uint8)
            ring.publish(image_id)
            out.send(image_metadata.encode(Image(image_id, *sizes.shape, sizes.slot_bytes, sizes.dtype)))
        faulthandler.dump_traceback_later(15)  # so that a test that waits in vain can say for what
        sys.stdout.write(f"{image_id}\n")
        time.sleep(1.0)  # the senders read the last one from our ring
    channels.close(out)


def fields(message: bytes) -> dict[int, int]:
    """Varints of a protobuf message, by number."""
    found, at = {}, 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        assert key & 7 == 0, message
        found[key >> 3] = varint()
    return found


def target(path: str, output: str) -> None:
    import zmq

    config: dict[str, Any] = json.loads(Path(path).read_text())
    name, n_slots = config["detector_name"], config["ring_slots"]
    with zmq.Context() as context, context.socket(zmq.SUB) as handle, Path(output).open("w") as file:
        handle.setsockopt(zmq.LINGER, 0)
        handle.setsockopt(zmq.SUBSCRIBE, b"")
        handle.connect(f"ipc:///tmp/{name}-image")
        while True:
            found = fields(handle.recv())
            image_id, size = found[1], found[4]
            with Path(f"/dev/shm/{name}-image").open("rb") as ring:
                ring.seek(image_id % n_slots * size)
                data = ring.read(size)
            expected = pixels(image_id, size // 2)
            agrees = all(a in (0, b) for a, b in zip(data, expected, strict=True))
            print(
                json.dumps(
                    {"id": image_id, "status": found[6], "same": data == expected, "or_zero": agrees}
                ),
                file=file,
                flush=True,
            )


if __name__ == "__main__":
    {"source": source, "target": target}[sys.argv[1]](*sys.argv[2:])
