"""Receive chain with its stages kept on CPUs of their own, beside the same left to the kernel.

Receiver on the first CPU, synchronizer on the second; the sender may run on all. *share* is what arrives
complete when the sender sends as fast as it can; *CPU* is measured at 1000 images/s.
"""

import os
import statistics
from contextlib import closing
from typing import Any

from benchmarks.bench_receive import CASES, Send, configuration, make_sender
from benchmarks.processes import Child, counters_of
from benchmarks.result import Result
from tango_stddaq import config as config_module
from tango_stddaq.stages.base import Stage
from tango_stddaq.stages.module_sync import ModuleSync
from tango_stddaq.stages.udp_receiver import UdpReceiver

_RATE_HZ = 1000.0
_FREE, _KEPT = "all CPUs", "a CPU each"


def run(quick: bool) -> list[Result]:
    """Measure both in turn."""
    there = sorted(os.sched_getaffinity(0))
    cpus = {_FREE: (None, None), _KEPT: (there[:1], there[1:2] or there[:1])}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cpus}
    for at in range(1 if quick else 5):
        for name, (receiver, sync) in cpus.items():
            found[name].append(_measure(f"BENCH-{os.getpid()}-{at}", receiver, sync))
    share, cpu = (
        {name: statistics.median(entry[i] for entry in rounds) for name, rounds in found.items()}
        for i in (0, 1)
    )
    return [
        Result(f"cpus/{_KEPT}, share received", share[_KEPT], "", share[_FREE], _FREE),
        Result(f"cpus/{_KEPT}, CPU of an image", cpu[_KEPT] * 1e6, "us", cpu[_FREE] * 1e6, _FREE),
    ]


def start_on(kind: type[Stage], data: dict[str, Any], cpus: list[int] | None) -> Stage:
    """Run a stage in this process on these CPUs."""
    stage = kind(config_module.from_dict(data))
    stage.cpus = None if cpus is None else frozenset(cpus)
    stage.start()
    return stage


def _measure(
    name: str, receiver_cpus: list[int] | None, sync_cpus: list[int] | None
) -> tuple[float, float]:
    """Return the share that arrives at full rate, and CPU seconds an image."""
    config = configuration({**CASES["jungfrau raw"], "detector_name": name})
    data = config.model_dump(mode="json")
    with (
        closing(Child("sender", make_sender, data)) as sender,
        closing(Child("sync", start_on, ModuleSync, data, sync_cpus)) as sync,
        closing(Child("receiver", start_on, UdpReceiver, data, receiver_cpus)) as receiver,
    ):
        sender.ask(Send(config.sizes.n_slots + 64, _RATE_HZ))  # the ring's pages are touched
        n_images = 2000
        (before, sync_before), (_, receiver_before) = sync.ask(counters_of), receiver.ask(counters_of)
        sender.ask(Send(n_images, _RATE_HZ))
        (after, sync_after), (_, receiver_after) = sync.ask(counters_of), receiver.ask(counters_of)
        cpu = (sync_after - sync_before + receiver_after - receiver_before) / n_images
        sender.ask(Send(2 * n_images, 0))
        last, _ = sync.ask(counters_of)
        share = (last["complete"] - after["complete"]) / (2 * n_images)
        if after["complete"] == before["complete"]:
            raise RuntimeError("nothing was received")
    return share, cpu
