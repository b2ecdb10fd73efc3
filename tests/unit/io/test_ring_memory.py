"""Prefault, huge pages and locks, seen by what the kernel says of the mapping."""

import logging
import mmap
import multiprocessing
import os
import re
import resource
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from tango_stddaq.config_entries import RingMemoryConfig
from tango_stddaq.errors import RingError
from tango_stddaq.io import ring_memory
from tango_stddaq.io.ring import RingOwner, RingReader, RingWriter

MIB = 2**20
SHAPE = 16, MIB
N_PAGES = 16 * MIB // mmap.PAGESIZE
NOBODY = 65534


@pytest.fixture
def name(detector_name: str) -> str:
    return f"{detector_name}-image"


def mapping(name: str) -> dict[str, int]:
    """KiB of all mappings of a segment in this process: Rss, Locked and others."""
    found: Counter[str] = Counter()
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(f"/dev/shm/{name}")
        elif ours and line.endswith(" kB"):
            key, value, _ = line.split()
            found[key.rstrip(":")] += int(value)
    return found


def faults_of(action: Callable[[], object]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_plain_ring_has_no_pages_before_they_are_used(name: str) -> None:
    with RingOwner(name, *SHAPE) as owner:
        assert mapping(name)["Rss"] == 0
        assert faults_of(lambda: owner._slots.fill(1)) >= N_PAGES // 16


def test_the_first_round_of_a_prefaulted_ring_costs_no_page_faults(name: str) -> None:
    memory = RingMemoryConfig(prefault=True)
    with RingOwner(name, *SHAPE, mask_words=4, memory=memory) as owner:
        assert mapping(name)["Rss"] == 16 * 1024
        assert faults_of(lambda: owner._slots.fill(1)) < N_PAGES // 100
        with RingWriter.attach(name, *SHAPE, memory) as writer:
            assert faults_of(lambda: writer._slots.fill(2)) < N_PAGES // 100
        with RingReader.attach(name, *SHAPE, memory) as reader:
            assert faults_of(reader._slots.max) < N_PAGES // 100
            assert (reader._slots == 2).all()


def test_a_ring_without_index_is_prefaulted_by_who_creates_it(name: str) -> None:
    with RingWriter.attach_or_create(name, *SHAPE, RingMemoryConfig(prefault=True)):
        assert mapping(name)["Rss"] == 16 * 1024
    Path("/dev/shm", name).unlink()


def test_nobody_attaches_before_the_memory_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[Exception]] = []

    def look(*_arguments: object) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            RingReader.attach(name, *SHAPE)
        seen.append(caught.type)

    monkeypatch.setattr(ring_memory, "prepare", look)
    with RingOwner(name, *SHAPE):
        assert seen == [FileNotFoundError]


def test_memory_that_is_not_there_is_refused_and_nothing_left(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment shrinks behind our back: the same as when the memory ends."""
    prepare = ring_memory.prepare

    def shrunk(segments: list[ring_memory.Segment], *rest: object) -> None:
        os.ftruncate(segments[0].fd, MIB)
        prepare(segments, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ring_memory, "prepare", shrunk)
    with pytest.raises(RingError, match=r"cannot be prefaulted: .*ring_slots.*prefault to false"):
        RingOwner(name, *SHAPE, memory=RingMemoryConfig(prefault=True))
    assert not list(Path("/dev/shm").glob(f"{name}*"))


def test_huge_pages_or_a_reason_in_the_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    memory = RingMemoryConfig(huge_pages=True, prefault=True)
    with caplog.at_level(logging.WARNING), RingOwner(name, *SHAPE, memory=memory) as owner:
        owner._slots.fill(1)
        huge = mapping(name)["ShmemPmdMapped"]
    if ring_memory.why_no_huge_pages() is None:
        assert huge > 0
        assert not caplog.records
    else:
        assert huge == 0
        assert f"{name}: no huge pages: " in caplog.text


@pytest.mark.parametrize(
    ("policy", "options", "reason"),
    [
        ("always [never] deny force", "rw,relatime", "remount,huge=advise"),
        ("always [never] deny force", "rw,huge=never", "remount,huge=advise"),
        ("always [never] deny force", "rw,huge=advise", None),
        ("[always] never deny force", "rw,huge=within_size,size=1k", None),
        ("always never [deny] force", "rw,huge=always", "is deny"),
        ("always never deny [force]", "rw", None),
    ],
)
def test_the_policy_of_the_mount_decides(
    policy: str, options: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shmem_enabled"
    path.write_text(policy)
    monkeypatch.setattr(ring_memory, "_SHMEM_POLICY", path)
    monkeypatch.setattr(ring_memory, "_mount_options", lambda: options.split(","))
    found = ring_memory.why_no_huge_pages()
    assert found is None if reason is None else reason in str(found)


def test_a_kernel_without_huge_pages_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_memory, "_SHMEM_POLICY", tmp_path / "absent")
    assert "this kernel" in str(ring_memory.why_no_huge_pages())


def _lock_with_limit(name: str, limit: int, told: Connection) -> None:
    """Own a locked ring, as a user that is bound by limits."""
    RingOwner(name, 2, MIB).close()  # compiled code is loaded: another user may have no place for it
    if os.getuid() == 0:
        os.setuid(NOBODY)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    try:
        with RingOwner(name, 2, MIB, memory=RingMemoryConfig(lock=True)) as owner:
            with RingReader.attach(name, 2, MIB, RingMemoryConfig(lock=True)) as reader:
                told.send((mapping(name)["Locked"], reader.n_slots))
            owner._slots.fill(1)
    except RingError as error:
        told.send(str(error))


def locked(name: str, limit: int) -> object:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_lock_with_limit, args=(name, limit, there))
    process.start()
    try:
        assert here.poll(60)
        return here.recv()
    finally:
        process.join(10)
        process.kill()
        process.close()
        here.close()
        there.close()


def test_a_lock_above_the_limit_is_refused_and_names_it(name: str) -> None:
    text = str(locked(name, 65536))
    assert "2097152 bytes cannot be locked" in text
    assert "RLIMIT_MEMLOCK" in text
    assert "65536 bytes" in text
    assert not list(Path("/dev/shm").glob(f"{name}*"))


def test_the_owner_locks_and_readers_need_no_limit(name: str) -> None:
    """The limit holds one mapping of the ring: the reader of the same process has none of its own."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = 3 * MIB
    if soft != resource.RLIM_INFINITY and soft < limit:
        pytest.skip(f"the limit of locked memory is {soft} bytes, the test needs {limit}")
    assert locked(name, limit) == (2048, 2)  # KiB of both mappings together


def test_locked_pages_are_there_at_once(name: str) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and soft < 3 * MIB:
        pytest.skip(f"the limit of locked memory is {soft} bytes, the test needs {3 * MIB}")
    with RingOwner(name, 2, MIB, memory=RingMemoryConfig(lock=True)) as owner:
        assert mapping(name)["Locked"] == 2048
        assert faults_of(lambda: owner._slots.fill(1)) < 50
        np.testing.assert_array_equal(owner._slots, 1)
