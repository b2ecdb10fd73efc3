"""A client of a live stream in a process of its own: notes how many images came, and when.

Called as `python -m benchmarks.stream_client ADDRESS FILE CLIENT`, where FILE holds the
(n_clients, N_WORDS) uint64 array that it shares with the benchmark.
"""

import mmap
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import zmq

N_TIMES: Final = 4096
N_IMAGES, BYTES, TIMES = 0, 1, 2
"""Words of a client: images received, bytes of the last, then arrival times in ns, in their order."""
N_WORDS: Final = TIMES + N_TIMES


def shared(path: Path) -> np.ndarray:
    """Map the array of all clients, (n_clients, N_WORDS) uint64."""
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint64).reshape(-1, N_WORDS)


def main(address: str, path: str, client: str) -> None:
    """Receive until killed."""
    words = shared(Path(path))[int(client)]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    handle = context.socket(zmq.SUB)
    handle.setsockopt(zmq.SUBSCRIBE, b"")
    handle.connect(address)
    n_images = 0
    while True:
        frames = handle.recv_multipart(copy=False)
        words[TIMES + n_images % N_TIMES] = time.monotonic_ns()
        n_images += 1
        words[BYTES] = len(frames[-1])
        words[N_IMAGES] = n_images


if __name__ == "__main__":
    main(*sys.argv[1:])
