"""Assembly, with a helper that plays the kernel: any order, loss and repetition of packets."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tango_stddaq.detectors.layout import EVENT, Placement
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.processing import assembly
from tango_stddaq.processing.assembly import Workspace
from tango_stddaq.processing.slots import MAX_IMAGE_ID, WRITING

from ...conftest import eiger_config
from .kernel import (
    STALE,
    UNTOUCHED,
    Expected,
    GuardedRing,
    datagram,
    lay,
    payload_of,
    receive,
    scattered_placement,
    slot_pixels,
    small_layout,
)

PAYLOAD = 24
PIECE = 8
BINS = ("bad_size", "bad_header", "duplicate", "late")


class Receiver:
    """One workspace of a small detector on a ring: `n_packets` packets of three pieces a frame."""

    def __init__(
        self, ring: GuardedRing | None = None, n_packets: int = 4, n_sources: int = 1, n_slots: int = 50
    ) -> None:
        self.layout = small_layout(n_packets, PAYLOAD)
        self.placement = scattered_placement(n_sources, n_packets, PAYLOAD // PIECE, PIECE)
        self.ring = ring or GuardedRing(n_slots, slot_bytes(self.placement))
        self.workspace = Workspace.of(self.layout, self.placement)
        self.ring.attach(self.workspace)

    def send(self, image_id: int, *packets: int, source: int = 0, batch: int = 64) -> None:
        receive(self.workspace, source, [self.packet(image_id, p, source) for p in packets], batch)

    def send_frame(self, image_id: int, source: int = 0) -> None:
        self.send(image_id, *range(self.layout.packets_per_frame), source=source)

    def packet(self, image_id: int, packet: int, source: int = 0) -> bytes:
        return datagram(image_id, packet, payload_of(image_id, packet, source, PAYLOAD))

    def idle(self) -> None:
        """Poll without a packet until the detector counts as stopped."""
        self.workspace.state[:, assembly.IDLE] += 10

    def flush(self) -> None:
        for source in range(len(self.workspace.state)):
            self.workspace.flush(source)

    def events(self) -> list[tuple[int, int]]:
        """Image id and missing packets of the frames finished since the last call."""
        events = self.workspace.take_events()
        return [(int(e["image_id"]), int(e["n_missing_packets"])) for e in events]

    def epochs(self) -> set[int]:
        return {int(e["epoch"]) for e in self.workspace.take_events()}

    def expect_frame(self, image_id: int, arrived: set[int], source: int = 0) -> None:
        """Check every byte that this source may write in the image's slot."""
        frame = {
            p: payload_of(image_id, p, source, PAYLOAD) if p in arrived else None
            for p in range(self.layout.packets_per_frame)
        }
        wanted = slot_pixels(self.placement, source, frame)
        found = self.ring.slots[image_id % self.ring.n_slots][: wanted.size]
        mine = wanted != UNTOUCHED
        np.testing.assert_array_equal(found[mine], wanted[mine], f"image {image_id} source {source}")

    def count(self, name: str) -> int:
        return self.workspace.totals()[name]


def slot_bytes(placement: Placement) -> int:
    return int(placement.offsets.max()) + 2 * placement.piece_bytes


def stream(
    first: int, seed: int, n_packets: int, n_frames: int, loss: float, repeat: float, reach: float
) -> list[tuple[int, int]]:
    """Return (image id, packet number) as they arrive; `reach`: disorder in packets."""
    rng = np.random.default_rng(seed)
    ids = first + np.cumsum(rng.integers(1, 3, n_frames))
    sent = [(int(image_id), packet) for image_id in ids for packet in range(n_packets)]
    sent = [one for one in sent if rng.random() >= loss]
    places = [(at + rng.random() * reach, one) for at, one in enumerate(sent)]
    places += [(at + rng.random() * reach, one) for at, one in places if rng.random() < repeat]
    return [one for _, one in sorted(places)]


RATES = st.sampled_from([0.0, 0.02, 0.3])
BUNDLES = st.sampled_from([1, 2, 7, 128])
"""Datagrams that the kernel hands over in one message."""


@settings(deadline=None, max_examples=120)
@given(
    first_id=st.integers(0, 2**40),
    seed=st.integers(0, 2**32),
    n_packets=st.sampled_from([1, 3, 64, 70]),
    batches=st.lists(st.integers(1, 64), min_size=2, max_size=2),
    loss=RATES,
    repeat=RATES,
    reach=st.sampled_from([0.0, 0.5, 1.5, 20.0]),
    indexed=st.booleans(),
    bundle=BUNDLES,
)
def test_every_packet_lands_in_its_place_or_in_one_bin(
    first_id: int,
    seed: int,
    n_packets: int,
    batches: list[int],
    loss: float,
    repeat: float,
    reach: float,
    indexed: bool,
    bundle: int,
) -> None:
    if indexed:
        reach = min(reach, 1.5)  # a restart of one source alone leaves the other behind
    placement = scattered_placement(2, n_packets, PAYLOAD // PIECE, PIECE)
    n_frames = 6 if n_packets > 3 else 30
    ring = GuardedRing(200, slot_bytes(placement), indexed)
    receiver = Receiver(ring, n_packets, n_sources=2)
    workspace = receiver.workspace
    expected = [Expected(n_packets), Expected(n_packets)]
    sent = 0
    for source, batch in enumerate(batches):
        arriving = stream(first_id, seed + source, n_packets, n_frames, loss, repeat, reach * n_packets)
        sent += len(arriving)
        packets = [receiver.packet(*one, source) for one in arriving]
        receive(workspace, source, packets, batch, bundle)
        for one in arriving:
            expected[source].take(*one)
    receiver.flush()
    for one in expected:
        one.finish_all()

    events = workspace.take_events()
    for source, wanted in enumerate(expected):
        mine = events[events["source"] == source]
        assert [(int(e["image_id"]), int(e["n_missing_packets"])) for e in mine] == [
            (image_id, n_packets - len(got)) for image_id, got in wanted.finished
        ]
        if not wanted.counts["restarts"]:  # afterwards the frames before it may be overwritten
            for image_id, got in wanted.finished:
                receiver.expect_frame(image_id, set(got), source)
    for name in expected[0].counts:
        assert receiver.count(name) == sum(one.counts[name] for one in expected), name
    used = sum(len(got) for one in expected for _, got in one.finished)
    assert receiver.count("packets") == sent
    assert sent == used + sum(receiver.count(name) for name in BINS)
    assert ring.guards_are_intact
    assert gaps_are_untouched(receiver)


def gaps_are_untouched(receiver: Receiver) -> bool:
    offsets = receiver.placement.offsets.reshape(-1, 1)
    is_gap = np.ones(receiver.ring.slots.shape[1], bool)
    is_gap[offsets + np.arange(PIECE)] = False
    return bool((receiver.ring.slots[:, is_gap] == STALE).all())


def spoil(kind: str, good: bytes, n_packets: int) -> bytes:
    """Return a datagram that no detector of ours sends."""
    return {
        "empty": b"",
        "short": good[:-1],
        "header only": good[:48],
        "long": good + b"\x11" * 9,
        "packet number": good[:12] + n_packets.to_bytes(4, "little") + good[16:],
        "largest packet number": good[:12] + b"\xff" * 4 + good[16:],
        "frame number": (MAX_IMAGE_ID + 1).to_bytes(8, "little") + good[8:],
        "largest frame number": b"\xff" * 8 + good[8:],
    }[kind]


SIZE_FAULTS = ("empty", "short", "header only", "long")
HEADER_FAULTS = ("packet number", "largest packet number", "frame number", "largest frame number")


@settings(deadline=None, max_examples=40)
@given(
    faults=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from(SIZE_FAULTS + HEADER_FAULTS)), max_size=30
    ),
    batch=st.integers(1, 64),
    bundle=BUNDLES,
)
def test_malformed_packets_are_counted_and_never_placed(
    faults: list[tuple[int, str]], batch: int, bundle: int
) -> None:
    receiver = Receiver(n_packets=5)
    sent = [receiver.packet(image_id, packet) for image_id in range(3, 11) for packet in range(5)]
    for at, kind in sorted(faults, reverse=True):
        sent.insert(at, spoil(kind, receiver.packet(3 + at // 5, at % 5), 5))
    receive(receiver.workspace, 0, sent, batch, bundle)
    receiver.flush()
    assert receiver.events() == [(image_id, 0) for image_id in range(3, 11)]
    for image_id in range(3, 11):
        receiver.expect_frame(image_id, set(range(5)))
    assert receiver.count("bad_size") == sum(kind in SIZE_FAULTS for _, kind in faults)
    assert receiver.count("bad_header") == sum(kind in HEADER_FAULTS for _, kind in faults)
    assert receiver.count("packets") == len(sent)
    assert receiver.ring.guards_are_intact
    assert gaps_are_untouched(receiver)


@pytest.mark.parametrize("kind", SIZE_FAULTS + HEADER_FAULTS)
def test_malformed_packet_leaves_zeros_where_a_packet_is_missing(kind: str) -> None:
    receiver = Receiver()
    receiver.send(7, 0, 1)
    receive(receiver.workspace, 0, [spoil(kind, receiver.packet(7, 2), 4)], 1)
    receiver.send(7, 3)
    receiver.flush()
    assert receiver.events() == [(7, 1)]
    receiver.expect_frame(7, {0, 1, 3})


def test_malformed_packets_alone_begin_no_frame() -> None:
    receiver = Receiver()
    receive(receiver.workspace, 0, [spoil(kind, receiver.packet(7, 0), 4) for kind in SIZE_FAULTS], 64)
    receiver.flush()
    assert receiver.events() == []
    assert (receiver.ring.slots == STALE).all()


@pytest.mark.parametrize("bit_depth", [16, 32])
@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 2**32), batches=st.tuples(*[st.integers(1, 64)] * 4), loss=RATES, bundle=BUNDLES
)
def test_eiger_images_are_exact_with_flipped_modules_gaps_and_losses(
    bit_depth: int, seed: int, batches: tuple[int, ...], loss: float, bundle: int
) -> None:
    config = eiger_config("assembly", bit_depth=bit_depth)
    detector, sizes = detector_of(config), config.sizes
    n_packets = detector.layout.packets_per_frame
    ring = GuardedRing(4, sizes.slot_bytes)
    ring.slots[:] = 0
    for row in detector.placement.offsets.reshape(-1):
        ring.slots[:, row : row + detector.placement.piece_bytes] = STALE
    workspace = Workspace.of(detector.layout, detector.placement)
    ring.attach(workspace)
    rng = np.random.default_rng(seed)
    dtype = sizes.dtype.numpy
    images = [rng.integers(1, np.iinfo(dtype).max, sizes.shape, dtype) for _ in range(3)]
    wanted = [np.zeros(sizes.shape, dtype) for _ in images]
    lost = np.zeros((3, 4), int)
    for source, module in enumerate(detector.modules):
        arriving = []
        for image_id, image in enumerate(images):
            packets = detector.packets(image, image_id, module)
            keep = rng.random(n_packets) >= loss
            lost[image_id, source] = n_packets - keep.sum()
            copy_packets(config.module_positions[str(module)], image, wanted[image_id], keep)
            arriving += [packet.tobytes() for packet in packets[rng.permutation(np.flatnonzero(keep))]]
        receive(workspace, source, arriving, batches[source], bundle)
        workspace.flush(source)
    for image_id, image in enumerate(wanted):
        found = ring.slots[image_id].view(dtype).reshape(sizes.shape)
        np.testing.assert_array_equal(found, image)
    events = workspace.take_events()
    for event in events:
        source = int(event["source"])
        assert event["n_missing_packets"] == lost[int(event["image_id"]), source]
    assert len(events) == 12
    assert ring.guards_are_intact


def copy_packets(
    position: tuple[int, int, int, int], image: np.ndarray, out: np.ndarray, keep: np.ndarray
) -> None:
    """Copy the rows of the packets kept: each chip of 256 columns, 2 pixels apart, maybe upside down."""
    x0, y0, _, y1 = position
    rows = np.repeat(keep, 256 // len(keep)) if len(keep) <= 256 else keep
    for r in np.flatnonzero(rows):
        y = y0 + r if y1 > y0 else y0 - r
        for x in (x0, x0 + 258):
            out[y, x : x + 256] = image[y, x : x + 256]


def test_missing_packets_read_zero_where_an_older_image_lay() -> None:
    receiver = Receiver(n_slots=4)
    receiver.send_frame(1)
    receiver.send(5, 0, 3)
    receiver.flush()
    assert receiver.events() == [(1, 0), (5, 2)]
    receiver.expect_frame(5, {0, 3})


def test_packets_of_the_frame_before_are_still_taken() -> None:
    receiver = Receiver()
    receiver.send(1, 0, 1, 2)
    receiver.send(2, 0)
    receiver.send(1, 3)
    assert receiver.events() == [(1, 0)]
    receiver.expect_frame(1, {0, 1, 2, 3})
    assert receiver.count("late") == 0


def test_packets_of_an_older_frame_are_late_and_change_nothing() -> None:
    receiver = Receiver()
    receiver.send(1, 0, 1, 2)
    receiver.send_frame(2)
    receiver.send_frame(3)
    receiver.send(1, 3)
    assert receiver.events() == [(1, 1), (2, 0), (3, 0)]
    assert receiver.count("late") == 1
    receiver.expect_frame(1, {0, 1, 2})


def test_packets_after_a_flush_are_late_and_change_nothing() -> None:
    receiver = Receiver()
    receiver.send(1, 0, 1)
    receiver.flush()
    receiver.send(1, 2, 1)
    assert receiver.events() == [(1, 2)]
    assert (receiver.count("late"), receiver.count("duplicate")) == (1, 1)
    receiver.expect_frame(1, {0, 1})
    receiver.send_frame(2)
    assert receiver.events() == [(2, 0)]


def test_flush_ends_both_frames_under_way_the_older_first() -> None:
    receiver = Receiver()
    receiver.send(1, 0)
    receiver.send(2, 0, 1)
    assert receiver.workspace.under_way().tolist() == [True]
    receiver.flush()
    receiver.flush()
    assert receiver.events() == [(1, 3), (2, 2)]
    assert receiver.workspace.under_way().tolist() == [False]


def test_event_carries_the_header_of_the_first_packet_that_came() -> None:
    receiver = Receiver()
    receiver.send(9, 2, 0, 1, 3)
    event = receiver.workspace.take_events()[0]
    assert event.dtype == EVENT
    assert event["packet_header"][:48].tobytes() == receiver.packet(9, 2)[:48]


def test_frames_that_share_a_slot_do_not_wipe_each_other() -> None:
    receiver = Receiver(n_slots=10)
    receiver.send(3, 0, 1)
    receiver.send_frame(13)
    receiver.send_frame(14)
    assert receiver.events() == [(3, 2), (13, 0), (14, 0)]
    receiver.expect_frame(13, {0, 1, 2, 3})


def test_prediction_never_goes_round_a_small_ring() -> None:
    receiver = Receiver(n_packets=1, n_slots=4)
    receiver.send_frame(0)
    receiver.workspace.arm(0, 32)
    ahead = receiver.workspace.armed[:32, 0]
    assert set(ahead.tolist()) <= {-1, 1, 2, 3}
    receiver.send(1, 0)
    receiver.expect_frame(0, {0})


@pytest.mark.parametrize("indexed", [False, True])
def test_lower_ids_after_a_pause_are_a_restart(indexed: bool) -> None:
    placement = scattered_placement(1, 4, PAYLOAD // PIECE, PIECE)
    receiver = Receiver(GuardedRing(50, slot_bytes(placement), indexed))
    for image_id in range(5, 9):
        receiver.send_frame(image_id)
    receiver.idle()
    receiver.send(5, 0, 1)
    receiver.send_frame(6)
    receiver.flush()
    assert receiver.events() == [(5, 0), (6, 0), (7, 0), (8, 0), (5, 2), (6, 0)]
    receiver.expect_frame(5, {0, 1})
    assert receiver.count("restarts") == 1
    assert receiver.count("unplaced_frames") == 0


def test_ids_far_below_are_a_restart_without_a_pause() -> None:
    receiver = Receiver()
    receiver.send(1000, 0, 1)
    receiver.send_frame(1)
    assert receiver.events() == [(1000, 2), (1, 0)]
    assert (receiver.count("restarts"), receiver.count("late")) == (1, 0)


@pytest.mark.parametrize("arrived", [(0, 1, 2, 3), (1, 2, 3)])
def test_the_same_single_id_after_a_pause_is_a_new_frame(arrived: tuple[int, ...]) -> None:
    receiver = Receiver()
    receiver.send(1, *arrived)
    receiver.flush()
    receiver.idle()
    receiver.send_frame(1)
    assert receiver.events() == [(1, 4 - len(arrived)), (1, 0)]
    receiver.expect_frame(1, {0, 1, 2, 3})
    assert (receiver.count("late"), receiver.count("duplicate")) == (0, 0)


def test_one_straggler_is_no_restart_when_a_frame_is_one_packet() -> None:
    receiver = Receiver(n_packets=1)
    for image_id in (10, 11, 9, 12):
        receiver.send_frame(image_id)
    assert receiver.events() == [(10, 0), (11, 0), (12, 0)]
    assert (receiver.count("late"), receiver.count("restarts")) == (1, 0)


class TwoReceivers:
    """Two receivers, a module each, on one ring with an index."""

    def __init__(self) -> None:
        self.placement = scattered_placement(2, 4, PAYLOAD // PIECE, PIECE)
        self.ring = GuardedRing(50, slot_bytes(self.placement), indexed=True)
        self.both = [self.new(0), self.new(1)]

    def new(self, module: int) -> Receiver:
        receiver = Receiver(self.ring)
        receiver.placement = Placement(
            np.ascontiguousarray(self.placement.offsets[[module]]), self.placement.piece_bytes
        )
        receiver.workspace = Workspace.of(receiver.layout, receiver.placement)
        self.ring.attach(receiver.workspace)
        return receiver


def publish(ring: GuardedRing, image_id: int) -> int:
    """Publish an image as the owner does, under the epoch in which it was claimed."""
    epoch = int(ring.entries["claim"][image_id % ring.n_slots]) >> 48 & 0x7FFF
    ring.publish(image_id, epoch)
    return epoch


Order = Callable[[list[Receiver]], list[Receiver]]


@pytest.mark.parametrize("order", [list, lambda both: both[::-1]])
def test_two_receivers_join_one_epoch_at_a_restart(order: Order) -> None:
    two = TwoReceivers()
    for image_id in range(100, 110):
        for receiver in two.both:
            receiver.send_frame(image_id)
        publish(two.ring, image_id)
    for receiver in two.both:
        assert receiver.epochs() == {1}
    for receiver in order(two.both):
        receiver.idle()
        for image_id in range(100, 105):
            receiver.send_frame(image_id)
    assert [receiver.epochs() for receiver in two.both] == [{2}, {2}]
    for receiver in two.both:
        receiver.expect_frame(102, {0, 1, 2, 3})
        assert receiver.count("unplaced_frames") == 0


@pytest.mark.parametrize("order", [list, lambda both: both[::-1]])
def test_two_new_receivers_join_one_epoch_when_ids_start_again(order: Order) -> None:
    two = TwoReceivers()
    for image_id in range(1, 10):
        for receiver in two.both:
            receiver.send_frame(image_id)
        publish(two.ring, image_id)
    again = order([two.new(0), two.new(1)])
    for receiver in again:
        receiver.send_frame(1)
    assert [receiver.epochs() for receiver in again] == [{2}, {2}]
    assert publish(two.ring, 1) == 2


def test_new_receiver_joins_a_run_under_way() -> None:
    two = TwoReceivers()
    for image_id in range(1, 10):
        two.both[0].send_frame(image_id)
        if image_id < 6:
            publish(two.ring, image_id)
    late = two.new(1)
    late.send_frame(8)
    assert late.epochs() == {1}
    late.expect_frame(8, {0, 1, 2, 3})


def test_receiver_whose_ids_go_on_follows_another_that_saw_a_restart() -> None:
    two = TwoReceivers()
    first, second = two.both
    for image_id in range(100, 110):
        first.send_frame(image_id)
        second.send_frame(image_id)
        publish(two.ring, image_id)
    first.send(3, 0)  # a stray packet that looks like a restart
    first.send_frame(110)
    second.send_frame(110)
    assert second.epochs() == {1}
    assert publish(two.ring, 110) > 1
    second.send_frame(111)
    first.send_frame(111)
    assert second.epochs() == {int(e["epoch"]) for e in first.workspace.take_events()[-1:]}
    second.expect_frame(111, {0, 1, 2, 3})


def test_receiver_of_the_time_before_stays_there_while_another_restarted() -> None:
    two = TwoReceivers()
    first, second = two.both
    for image_id in range(1000, 1004):
        first.send_frame(image_id)
        second.send_frame(image_id)
        publish(two.ring, image_id)
    first.idle()
    for image_id in range(1, 4):
        first.send_frame(image_id)
        publish(two.ring, image_id)
    second.send_frame(1004)
    assert second.epochs() == {1}
    second.idle()
    second.send_frame(4)
    assert second.epochs() == {2}


def test_frame_of_the_time_before_does_not_take_a_slot_of_the_new_run() -> None:
    two = TwoReceivers()
    first, second = two.both
    first.send_frame(100)
    second.send(100, 0, 1)
    first.idle()
    first.send_frame(50)  # the same slot, in a new epoch
    two.ring.slots[0] = STALE
    second.send(100, 2, 3)
    assert (two.ring.slots[0] == STALE).all()
    assert second.events() == []
    assert second.count("unplaced_frames") == 1


def test_frame_is_not_written_any_more_once_its_image_was_published() -> None:
    two = TwoReceivers()
    first, second = two.both
    first.send_frame(7)
    second.send(7, 0, 1)
    publish(two.ring, 7)
    before = two.ring.slots[7].copy()
    second.send(7, 3)
    second.flush()
    np.testing.assert_array_equal(two.ring.slots[7], before)
    assert second.events() == []
    assert second.count("unplaced_frames") == 1


def test_module_that_lagged_a_whole_ring_does_not_wipe_a_newer_image() -> None:
    two = TwoReceivers()
    first, second = two.both
    second.send(7, 0, 1)
    for image_id in range(7, 58):
        first.send_frame(image_id)
        publish(two.ring, image_id)
    before = two.ring.slots[7].copy()  # image 57
    second.send_frame(60)
    second.send_frame(61)
    np.testing.assert_array_equal(two.ring.slots[7], before)
    assert second.events() == [(60, 0), (61, 0)]


def test_predicted_frames_are_claimed_before_a_byte_is_laid() -> None:
    two = TwoReceivers()
    receiver = two.both[0]
    receiver.send(7, 0)
    receiver.workspace.arm(0, 6)
    claims = two.ring.entries["claim"][[7, 8]].tolist()
    assert claims == [WRITING | 1 << 48 | 7, WRITING | 1 << 48 | 8]


def test_packets_of_an_image_published_already_are_laid_aside() -> None:
    two = TwoReceivers()
    receiver = two.both[0]
    receiver.send_frame(7)
    two.ring.publish(8, 1)
    receiver.send_frame(8)
    receiver.send_frame(9)
    assert (two.ring.slots[8] == STALE).all()
    assert receiver.events() == [(7, 0), (9, 0)]
    assert receiver.count("unplaced_frames") == 1


def test_forget_accepts_any_id_next() -> None:
    receiver = Receiver()
    receiver.send(100, 0)
    receiver.workspace.forget()
    receiver.send_frame(3)
    assert receiver.events() == [(3, 0)]
    assert (receiver.count("restarts"), receiver.count("skipped_ids")) == (0, 0)


def test_events_beyond_their_room_are_counted_all_the_same() -> None:
    receiver = Receiver()
    receiver.workspace = Workspace.of(receiver.layout, receiver.placement, max_events=2)
    receiver.ring.attach(receiver.workspace)
    for image_id in range(5):
        receiver.send_frame(image_id)
    assert len(receiver.events()) == 2
    assert receiver.count("frames") == 5


def test_placement_of_another_packet_count_is_refused() -> None:
    with pytest.raises(ValueError, match="placement of 4 packets"):
        Workspace.of(small_layout(5), scattered_placement(1, 4, 3, 8))


def test_lay_respects_the_vectors() -> None:
    receiver = Receiver()
    receiver.workspace.arm(0, 1)
    lay(receiver.workspace, [[b"\x01" * 70_000]])
    assert receiver.workspace.messages[0, 7] == 48 + PAYLOAD + 65_536
