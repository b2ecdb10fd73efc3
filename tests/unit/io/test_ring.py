"""Rings in real shared memory, shared by real processes."""

import multiprocessing
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from tango_stddaq.errors import RingError
from tango_stddaq.io import ring_segments, segment
from tango_stddaq.io.ring import RingOwner, RingReader, RingWriter
from tango_stddaq.model import INVALID_IMAGE_ID
from tango_stddaq.processing.slots import (
    INDEX_ENTRY,
    INDEX_HEADER,
    claim_slot,
    current_epoch,
    next_epoch,
)

MIB2 = 2 * 2**20
SHM = Path("/dev/shm")
N_SLOTS = 10
SLOT_BYTES = 1000


@pytest.fixture
def name(detector_name: str) -> str:
    return f"{detector_name}-image"


@pytest.fixture
def owner(name: str) -> Iterator[RingOwner]:
    with RingOwner(name, N_SLOTS, SLOT_BYTES) as owner:
        yield owner


@pytest.fixture
def reader(name: str, owner: RingOwner) -> Iterator[RingReader]:
    with RingReader.attach(name, N_SLOTS, SLOT_BYTES) as reader:
        yield reader


def store(owner: RingOwner, image_id: int, value: int | None = None) -> None:
    owner.begin(image_id)[:] = image_id if value is None else value
    owner.publish(image_id)


def read(reader: RingReader, image_id: int) -> int | None:
    """Return the value that fills the image; None if it is lost."""
    out = np.zeros(SLOT_BYTES, np.uint8)
    if not reader.copy(image_id, out):
        return None
    assert (out == out[0]).all()
    return int(out[0])


def _own(name: str, told: Connection) -> None:
    """Own a ring with image 3 in it until the process is killed."""
    owner = RingOwner(name, N_SLOTS, SLOT_BYTES)
    store(owner, 3)
    told.send(os.getpid())
    told.recv()


@contextmanager
def living_owner(name: str) -> Iterator["multiprocessing.process.BaseProcess"]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_own, args=(name, there))
    process.start()
    there.close()
    try:
        here.recv()
        yield process
    finally:
        process.kill()
        process.join()
        process.close()
        here.close()


def kill(process: "multiprocessing.process.BaseProcess") -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


# -- the layout that existing programs rely on


@pytest.mark.parametrize(
    ("n_slots", "slot_bytes", "n_bytes"), [(1, 1, MIB2), (2, MIB2, 2 * MIB2), (1000, 2098, 2 * MIB2)]
)
def test_segment_is_named_and_sized_as_existing_programs_expect(
    name: str, n_slots: int, slot_bytes: int, n_bytes: int
) -> None:
    with RingOwner(name, n_slots, slot_bytes):
        status = (SHM / name).stat()
        assert status.st_size == n_bytes
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert stat.S_IMODE((SHM / f"{name}.index").stat().st_mode) == 0o660


def test_mode_does_not_depend_on_the_umask(name: str) -> None:
    old = os.umask(0o077)
    try:
        with RingOwner(name, 4, 100):
            assert stat.S_IMODE((SHM / name).stat().st_mode) == 0o660
    finally:
        os.umask(old)


def test_slots_follow_one_another_from_byte_0(name: str, owner: RingOwner) -> None:
    for image_id in (0, 3, 19):
        store(owner, image_id)
    data = np.fromfile(SHM / name, np.uint8)
    for image_id, slot in ((0, 0), (3, 3), (19, 9)):
        assert (data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] == image_id).all()


def test_index_says_which_image_a_slot_holds(name: str, owner: RingOwner) -> None:
    store(owner, 3)
    store(owner, 13)
    raw = np.fromfile(SHM / f"{name}.index", np.uint8)
    assert raw.size == 4096 + N_SLOTS * 32
    header = raw[:4096].view(INDEX_HEADER)[0]
    entries = raw[4096:].view(INDEX_ENTRY)
    assert header["magic"].tobytes() == b"STDQIDX2"
    assert (header["n_slots"], header["slot_bytes"], header["owner_pid"]) == (10, 1000, os.getpid())
    assert header["head"] == 1 << 48 | 13
    assert (entries["image_id"][3], entries["generation"][3]) == (13, 2)
    assert entries["image_id"][0] == INVALID_IMAGE_ID


def test_both_segments_vanish_with_their_owner(name: str) -> None:
    owner = RingOwner(name, N_SLOTS, SLOT_BYTES)
    owner.close()
    owner.close()
    assert not list(SHM.glob(f"{name}*"))


# -- readers


def test_published_image_is_read(owner: RingOwner, reader: RingReader) -> None:
    store(owner, 7)
    assert read(reader, 7) == 7


@pytest.mark.parametrize("image_id", [0, 7, 17, 2**48 - 1, 2**64 - 1])
def test_image_that_never_was_there_is_lost(reader: RingReader, image_id: int) -> None:
    assert read(reader, image_id) is None


def test_image_under_way_is_not_read(owner: RingOwner, reader: RingReader) -> None:
    owner.begin(7)[:] = 7
    assert read(reader, 7) is None


def test_image_overwritten_before_a_read_is_lost(owner: RingOwner, reader: RingReader) -> None:
    store(owner, 7)
    store(owner, 17)
    assert read(reader, 7) is None
    assert read(reader, 17) == 17


def test_image_overwritten_during_a_read_is_lost(owner: RingOwner, reader: RingReader) -> None:
    store(owner, 7)
    ticket = reader.ticket(7)
    assert ticket is not None
    assert reader.still(7, ticket)
    owner.begin(17)
    assert not reader.still(7, ticket)


def test_image_stored_again_under_its_id_during_a_read_is_lost(
    owner: RingOwner, reader: RingReader
) -> None:
    store(owner, 7)
    ticket = reader.ticket(7)
    assert ticket is not None
    store(owner, 7, 70)
    assert not reader.still(7, ticket)
    assert read(reader, 7) == 70


def test_reader_cannot_write(owner: RingOwner, reader: RingReader) -> None:
    with pytest.raises(ValueError, match="read-only"):
        reader.slot(0)[:] = 1
    assert reader.slot(0).sum() == 0


def test_slot_claimed_by_a_receiver_is_not_published_for_an_older_image(
    name: str, owner: RingOwner, reader: RingReader
) -> None:
    store(owner, 6)
    with RingWriter.attach(name, N_SLOTS, SLOT_BYTES) as writer:
        entry = writer.index_address + 4096 + 7 * 32
        assert claim_slot(entry, 7, 1)
        assert claim_slot(entry, 17, 1)
        writer.slot(17)[:] = 17
        assert owner.is_reused(7)
        assert not owner.publish(7)
        assert read(reader, 7) is None
        assert owner.publish(17)
        assert read(reader, 17) == 17


def test_image_of_a_writer_without_claims_is_published(owner: RingOwner, reader: RingReader) -> None:
    for image_id in (7, 17):
        owner.slot(image_id)[:] = image_id
        assert owner.publish(image_id)
        assert read(reader, image_id) == image_id
    assert read(reader, 7) is None


# -- shapes


@pytest.mark.parametrize(("n_slots", "slot_bytes"), [(11, 1000), (10, 999), (100_000, 1000)])
def test_ring_of_another_shape_is_refused(
    name: str, owner: RingOwner, n_slots: int, slot_bytes: int
) -> None:
    assert owner.n_slots == N_SLOTS
    with pytest.raises(RingError, match=r"10 slots of 1000 bytes, the configuration says"):
        RingReader.attach(name, n_slots, slot_bytes)
    with pytest.raises(RingError, match=name):
        RingWriter.attach(name, n_slots, slot_bytes)


def test_ring_that_is_not_there_is_not_found(name: str) -> None:
    with pytest.raises(FileNotFoundError):
        RingReader.attach(name, N_SLOTS, SLOT_BYTES)


def test_ring_that_does_not_fit_the_machine_is_refused_and_leaves_nothing(name: str) -> None:
    with pytest.raises(RingError, match=r"this machine has room for .* GiB; set ring_slots to at most"):
        RingOwner(name, 1_000_000, 2**30)
    assert not list(SHM.glob(f"{name}*"))


def test_segment_that_may_not_be_a_link_is_refused(name: str, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (SHM / name).symlink_to(target)
    try:
        with pytest.raises(RingError, match=name):
            RingOwner(name, N_SLOTS, SLOT_BYTES)
        with pytest.raises(RingError, match="cannot be opened"):
            RingReader.attach(name, N_SLOTS, SLOT_BYTES)
    finally:
        (SHM / name).unlink()
    assert target.read_bytes() == b"precious"
    assert not list(SHM.glob(f"{name}*"))


# -- owners


def test_second_owner_is_refused_while_the_first_lives_in_another_process(name: str) -> None:
    with living_owner(name) as process:
        with pytest.raises(RingError, match=f"is owned by process {process.pid}, which is alive"):
            RingOwner(name, N_SLOTS, SLOT_BYTES)
        with RingReader.attach(name, N_SLOTS, SLOT_BYTES) as reader:
            assert read(reader, 3) == 3
        assert ring_segments.remove_abandoned(name.removesuffix("-image")) == []
        kill(process)
        with RingOwner(name, N_SLOTS, SLOT_BYTES) as owner:
            assert not owner.slot(3).any()
    assert not list(SHM.glob(f"{name}*"))


def test_second_owner_in_the_same_process_is_refused(name: str, owner: RingOwner) -> None:
    with pytest.raises(RingError, match="is owned by process"):
        RingOwner(name, N_SLOTS, SLOT_BYTES)
    store(owner, 1)


def test_readers_of_a_killed_owner_go_on_with_the_next_one(name: str) -> None:
    with living_owner(name) as process, RingReader.attach(name, N_SLOTS, SLOT_BYTES) as reader:
        kill(process)
        assert read(reader, 3) == 3
        with RingOwner(name, N_SLOTS, SLOT_BYTES) as owner:
            assert read(reader, 3) is None
            assert not reader.retired
            store(owner, 13)
            assert read(reader, 13) == 13
        assert reader.retired


def test_smaller_ring_after_a_kill_keeps_the_index_that_others_have_mapped(name: str) -> None:
    with living_owner(name) as process, RingReader.attach(name, N_SLOTS, SLOT_BYTES) as reader:
        kill(process)
        with RingOwner(name, 4, SLOT_BYTES) as owner:
            assert read(reader, 9) is None
            with RingReader.attach(name, 4, SLOT_BYTES) as fresh:
                store(owner, 9)
                assert read(fresh, 9) == 9


def test_epoch_stays_after_a_kill_for_the_receivers_that_live_on(name: str) -> None:
    with living_owner(name) as process, RingWriter.attach(name, N_SLOTS, SLOT_BYTES) as writer:
        assert next_epoch(writer.index_address, 1) == 2
        kill(process)
        with RingOwner(name, N_SLOTS, SLOT_BYTES) as owner:
            assert current_epoch(owner.index_address) == 2
            assert claim_slot(owner.index_address + 4096 + 3 * 32, 3, 2)


def test_abandoned_rings_are_removed(name: str) -> None:
    with living_owner(name) as process:
        kill(process)
        removed = ring_segments.remove_abandoned(name.removesuffix("-image"))
        assert sorted(removed) == [name, f"{name}.index"]
        assert not list(SHM.glob(f"{name}*"))


def test_retired_ring_is_known_to_its_readers(name: str) -> None:
    owner = RingOwner(name, N_SLOTS, SLOT_BYTES)
    with RingReader.attach(name, N_SLOTS, SLOT_BYTES) as reader:
        assert not reader.retired
        owner.close()
        assert reader.retired


# -- next to existing programs


@pytest.fixture
def foreign(name: str) -> Iterator[np.memmap]:
    """A segment that an existing program left behind, full of its pixels, mapped by it still."""
    path = SHM / name
    path.write_bytes(b"\x07" * 3000)
    yield np.memmap(path, np.uint8, "r+")
    path.unlink(missing_ok=True)


def test_foreign_ring_without_an_index_is_believed(name: str, foreign: np.memmap) -> None:
    foreign[:] = 7
    with RingReader.attach(name, 3, SLOT_BYTES) as reader:
        assert not reader.has_index
        assert not reader.retired
        assert read(reader, 12345) == 7


def test_foreign_ring_that_is_too_small_is_refused(name: str, foreign: np.memmap) -> None:
    with pytest.raises(RingError, match=r"has 3000 bytes, 4 slots of 1000 bytes need 4000"):
        RingReader.attach(name, 4, SLOT_BYTES)
    assert foreign.size == 3000


def test_foreign_segment_is_adopted_in_place_and_left_there(name: str, foreign: np.memmap) -> None:
    with RingOwner(name, 3, SLOT_BYTES) as owner:
        assert (foreign == 7).all()  # it may hold images that wait to be announced
        assert (SHM / name).stat().st_size == MIB2
        store(owner, 1)
        assert (foreign[SLOT_BYTES : 2 * SLOT_BYTES] == 1).all()
    assert [path.name for path in SHM.glob(f"{name}*")] == [name]


def test_foreign_segment_stays_when_the_owner_that_adopted_it_dies(
    name: str, foreign: np.memmap
) -> None:
    with living_owner(name) as process:
        assert foreign.size == 3000
        kill(process)
        assert ring_segments.remove_abandoned(name.removesuffix("-image")) == [f"{name}.index"]
        assert (SHM / name).exists()


def test_foreign_segment_stays_after_an_owner_that_followed_a_killed_one(
    name: str, foreign: np.memmap
) -> None:
    with living_owner(name) as process:
        kill(process)
        RingOwner(name, N_SLOTS, SLOT_BYTES).close()
        assert (SHM / name).exists()
    assert foreign.size == 3000


def test_reader_of_a_foreign_ring_learns_that_an_index_came(name: str, foreign: np.memmap) -> None:
    with RingReader.attach(name, 3, SLOT_BYTES) as before, RingOwner(name, 3, SLOT_BYTES):
        assert before.retired
        with RingReader.attach(name, 3, SLOT_BYTES) as after:
            assert after.has_index
    assert foreign.size == 3000


def test_index_half_made_is_not_attached_to(name: str, foreign: np.memmap) -> None:
    (SHM / f"{name}.index").write_bytes(bytes(4096 + 3 * 32))
    with pytest.raises(FileNotFoundError):
        RingReader.attach(name, 3, SLOT_BYTES)
    (SHM / f"{name}.index").unlink()
    assert foreign.size == 3000


# -- segments


def test_closed_segment_keeps_the_memory_of_views_in_use(name: str) -> None:
    owner = RingOwner(name, N_SLOTS, SLOT_BYTES)
    view = owner.slot(0)
    view[:] = 5
    owner.close()
    assert view.sum() == 5 * SLOT_BYTES


def test_closing_gives_descriptors_back(name: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with RingOwner(name, N_SLOTS, SLOT_BYTES), RingReader.attach(name, N_SLOTS, SLOT_BYTES):
            pass
        with pytest.raises(RingError):
            RingOwner(name, 1_000_000, 2**30)
        with pytest.raises(FileNotFoundError):
            RingReader.attach(name, N_SLOTS, SLOT_BYTES)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_room_is_not_more_than_the_machine_has() -> None:
    assert 0 < segment.room_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# -- masks of missing packets


def test_masks_lie_behind_the_entries_and_readers_get_them_with_the_pixels(name: str) -> None:
    words = np.array([1, 2, 3], np.uint64)
    with RingOwner(name, N_SLOTS, SLOT_BYTES, mask_words=5) as owner:
        with RingWriter.attach(name, N_SLOTS, SLOT_BYTES) as writer:
            writer.note_missing(3, 1, words)
            assert writer.masks_address
            assert writer.mask_words == 5
        store(owner, 3)
        raw = np.fromfile(SHM / f"{name}.index", np.uint8)
        assert raw.size == 4096 + N_SLOTS * (32 + 5 * 8)
        stored = raw[4096 + N_SLOTS * 32 :].view(np.uint64).reshape(N_SLOTS, 5)
        assert stored[3].tolist() == [0, 1, 2, 3, 0]
        with RingReader.attach(name, N_SLOTS, SLOT_BYTES) as reader:
            mask = np.zeros(5, np.uint64)
            assert reader.copy(3, np.empty(SLOT_BYTES, np.uint8), mask)
            assert mask.tolist() == [0, 1, 2, 3, 0]


def test_a_ring_without_masks_has_none(name: str, owner: RingOwner) -> None:
    owner.note_missing(3, 0, np.ones(2, np.uint64))
    store(owner, 3)
    mask = np.ones(2, np.uint64)
    with RingReader.attach(name, N_SLOTS, SLOT_BYTES) as reader:
        assert reader.missing_packets(3) is None
        assert reader.copy(3, np.empty(SLOT_BYTES, np.uint8), mask)
    assert not mask.any()


def test_masks_of_an_owner_that_was_killed_are_cleared(name: str) -> None:
    with living_owner(name) as process:
        kill(process)
    with RingOwner(name, N_SLOTS, SLOT_BYTES, mask_words=4) as owner:
        mask = owner.missing_packets(1)
        assert mask is not None
        assert not mask.any()
