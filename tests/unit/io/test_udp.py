"""UDP reception with real sockets on the loopback interface."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq

from tango_stddaq.detectors.layout import FRAME_HEADER, HEADER_MARK
from tango_stddaq.errors import ReceiverError
from tango_stddaq.io.udp import PacketLoop, UdpSocket
from tango_stddaq.processing.assembly import MAX_FINISHED_PER_MESSAGE, Workspace
from tango_stddaq.processing.columns import BUNDLE
from tango_stddaq.processing.frame_headers import FrameHeaders

from ...conftest import free_udp_ports
from ..processing.kernel import (
    UNTOUCHED,
    GuardedRing,
    datagram,
    payload_of,
    scattered_placement,
    slot_pixels,
    small_layout,
)

SOL_UDP, UDP_SEGMENT = 17, 103
PAYLOAD = 24
N_PACKETS = 4
LAYOUT = small_layout(N_PACKETS, PAYLOAD)
PLACEMENT = scattered_placement(2, N_PACKETS, 3, 8)


@pytest.fixture
def ports() -> Iterator[list[UdpSocket]]:
    first = free_udp_ports(2)
    sockets = [UdpSocket.bind(first), UdpSocket.bind(first + 1)]
    yield sockets
    for entry in sockets:
        entry.handle.close()


@pytest.fixture
def ring() -> GuardedRing:
    return GuardedRing(20, int(PLACEMENT.offsets.max()) + 8)


@pytest.fixture
def workspace(ring: GuardedRing) -> Workspace:
    workspace = Workspace.of(LAYOUT, PLACEMENT)
    ring.attach(workspace)
    return workspace


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        yield handle


def packet(image_id: int, number: int, source: int) -> bytes:
    return datagram(image_id, number, payload_of(image_id, number, source, PAYLOAD))


def send(sender: socket.socket, to: UdpSocket, data: bytes) -> None:
    sender.sendto(data, ("127.0.0.1", to.port))


def receive_all(loop: PacketLoop, n: int) -> None:
    while n > 0:
        got = loop.turn(2000)
        assert got, "packets are missing"
        n -= got
    assert n == 0


def test_packets_of_two_modules_are_laid_into_the_ring(
    ports: list[UdpSocket], workspace: Workspace, ring: GuardedRing, sender: socket.socket
) -> None:
    loop = PacketLoop(workspace, ports)
    order = [0, 2, 1, 3]
    for image_id in range(5, 15):
        for source, port in enumerate(ports):
            for number in order:
                send(sender, port, packet(image_id, number, source))
    receive_all(loop, 10 * 2 * N_PACKETS)
    events = workspace.take_events()
    assert sorted((int(e["source"]), int(e["image_id"])) for e in events) == [
        (source, image_id) for source in range(2) for image_id in range(5, 15)
    ]
    assert not events["n_missing_packets"].any()
    for image_id in range(5, 15):
        for source in range(2):
            frame = {p: payload_of(image_id, p, source, PAYLOAD) for p in range(N_PACKETS)}
            wanted = slot_pixels(PLACEMENT, source, dict(frame))
            mine = wanted != UNTOUCHED
            found = ring.slots[image_id % 20][: wanted.size]
            np.testing.assert_array_equal(found[mine], wanted[mine])
    assert ring.guards_are_intact


def test_datagrams_of_another_size_are_counted(
    ports: list[UdpSocket], workspace: Workspace, sender: socket.socket
) -> None:
    loop = PacketLoop(workspace, ports)
    good = packet(1, 0, 0)
    for data in (b"", good[:-1], good + b"x", bytes(9000), good):
        send(sender, ports[0], data)
    receive_all(loop, 5)
    totals = workspace.totals()
    assert (totals["packets"], totals["bad_size"]) == (5, 4)
    assert workspace.current_ids().tolist() == [1, -1]


def test_nothing_sent_is_a_turn_of_0(ports: list[UdpSocket], workspace: Workspace) -> None:
    assert PacketLoop(workspace, ports).turn(1) == 0


def test_packets_wait_in_the_kernel_while_finished_frames_are_not_taken(
    ports: list[UdpSocket], ring: GuardedRing, sender: socket.socket
) -> None:
    workspace = Workspace.of(LAYOUT, PLACEMENT, batch=2, max_events=2 * MAX_FINISHED_PER_MESSAGE + 3)
    ring.attach(workspace)
    loop = PacketLoop(workspace, ports)
    for image_id in range(30):
        for number in range(N_PACKETS):
            send(sender, ports[0], packet(image_id, number, 0))
    found: list[int] = []
    for _ in range(200):
        loop.turn(1)
        found += workspace.take_events()["image_id"].tolist()
    assert found == list(range(30))


def test_frames_that_follow_soon_are_announced_together(
    ports: list[UdpSocket], workspace: Workspace, sender: socket.socket
) -> None:
    loop = PacketLoop(workspace, ports, announce_ns=500_000_000)
    loop._nap_ns = 100_000  # by itself only where the receive buffer is large

    def send_frame(image_id: int) -> None:
        for number in range(N_PACKETS):
            send(sender, ports[0], packet(image_id, number, 0))

    send_frame(1)
    assert loop.turn(2000) == N_PACKETS  # after a silence: at once
    assert workspace.take_events()["image_id"].tolist() == [1]
    send_frame(2)
    later = threading.Timer(0.05, send_frame, [3])
    later.start()
    assert loop.turn(2000) == 2 * N_PACKETS
    later.join()
    assert workspace.take_events()["image_id"].tolist() == [2, 3]


def header_maker() -> FrameHeaders:
    """Of a detector with nothing of its own in its frame headers."""
    detector: Any = SimpleNamespace(
        modules=(0, 1), connections=(0, 1), frame_fields=(), frame_header=FRAME_HEADER, layout=LAYOUT
    )
    return FrameHeaders(detector)


def test_frames_are_announced_where_somebody_takes_them_and_stay_where_nobody_does(
    ports: list[UdpSocket], workspace: Workspace, sender: socket.socket
) -> None:
    missing = np.zeros(2, np.int64)
    with zmq.Context() as context, context.socket(zmq.PAIR) as out, context.socket(zmq.PAIR) as into:
        out.bind("inproc://frames")
        loop = PacketLoop(workspace, ports, 0, header_maker(), missing, out)
        for image_id in (1, 2, 3):  # the first of 1 is lost; 3 shows that 1 is over
            for number in range(image_id == 1, N_PACKETS):
                send(sender, ports[1], packet(image_id, number, 1))
        receive_all(loop, 3 * N_PACKETS - 1)
        kept = workspace.events[: workspace.n_events[0]].copy()
        assert kept["image_id"].tolist() == [1, 2, 3]
        assert missing.tolist() == [0, 0]  # whoever announces them adds them
        into.connect("inproc://frames")
        assert out.poll(1000, zmq.POLLOUT)
        for number in range(N_PACKETS):
            send(sender, ports[0], packet(3, number, 0))
        receive_all(loop, N_PACKETS)
        assert workspace.n_events[0] == 0
        headers = np.frombuffer(b"".join(iter_messages(into)), FRAME_HEADER)
        found = headers[["image_id", "module_id", "n_missing_packets"]].tolist()
        assert found == [(1, 1, 1), (2, 1, 0), (3, 1, 0), (3, 0, 0)]
        assert (headers["mark"] == HEADER_MARK).all()
        assert missing.tolist() == [0, 1]


def iter_messages(handle: "zmq.Socket[bytes]") -> Iterator[bytes]:
    while handle.poll(0):
        yield handle.recv()


def test_lower_ids_after_idle_turns_are_a_restart(
    ports: list[UdpSocket], workspace: Workspace, sender: socket.socket
) -> None:
    loop = PacketLoop(workspace, ports)
    found: list[int] = []
    for image_id in (7, 8, 7):
        for number in range(N_PACKETS):
            send(sender, ports[0], packet(image_id, number, 0))
        receive_all(loop, N_PACKETS)
        found += workspace.take_events()["image_id"].tolist()
        for _ in range(5):
            assert loop.turn(0) == 0
    assert found == [7, 8, 7]
    assert workspace.totals()["restarts"] == 1


def test_closed_socket_is_an_error_with_a_reason(ports: list[UdpSocket], workspace: Workspace) -> None:
    loop = PacketLoop(workspace, ports)
    for entry in ports:
        entry.handle.close()
    with pytest.raises(ReceiverError, match="receiving failed: Bad file descriptor"):
        loop.turn(10)


def test_port_in_use_is_refused_with_its_number(ports: list[UdpSocket]) -> None:
    with pytest.raises(ReceiverError, match=f"UDP port {ports[0].port}: cannot be bound"):
        UdpSocket.bind(ports[0].port)


def test_port_0_takes_a_free_one_and_says_which() -> None:
    entry = UdpSocket.bind(0, "127.0.0.1")
    with closing(entry.handle):
        assert entry.port == entry.handle.getsockname()[1] > 0
        assert entry.buffer_bytes > 0


def test_kernel_counts_what_does_not_fit_the_buffer(sender: socket.socket) -> None:
    entry = UdpSocket.bind(0, "127.0.0.1")
    with closing(entry.handle):
        entry.handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert entry.kernel_drops() == 0
        for _ in range(100):
            send(sender, entry, bytes(4000))
        received = 0
        while True:
            try:
                entry.handle.recv(5000)
            except BlockingIOError:
                break
            received += 1
        assert received + entry.kernel_drops() == 100
        assert entry.kernel_drops() > 0


def test_bundles_of_a_sender_that_segments_in_the_kernel(
    ports: list[UdpSocket], workspace: Workspace, ring: GuardedRing, sender: socket.socket
) -> None:
    """From packets one by one to bundles and back; a bundle need not end with a frame."""
    loop = PacketLoop(workspace, ports)
    numbers = [(image_id, number) for image_id in range(18) for number in range(N_PACKETS)]
    packets = [packet(*one, 0) for one in numbers]
    singly, bundled = packets[:8], packets[8:48]
    for data in singly:
        send(sender, ports[0], data)
    receive_all(loop, len(singly))
    sender.setsockopt(SOL_UDP, UDP_SEGMENT, len(packets[0]))
    for first in range(0, len(bundled), 7):
        send(sender, ports[0], b"".join(bundled[first : first + 7]))
        receive_all(loop, len(bundled[first : first + 7]))
    assert workspace.state[0, BUNDLE] == 7
    sender.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
    for data in packets[48:]:
        send(sender, ports[0], data)
        receive_all(loop, 1)
    assert workspace.state[0, BUNDLE] == 1
    events = workspace.take_events()
    assert events["image_id"].tolist() == list(range(18))
    assert not events["n_missing_packets"].any()
    totals = workspace.totals()
    assert (totals["packets"], totals["late"], totals["bad_size"]) == (len(packets), 0, 0)
    for image_id in range(18):
        frame = {n: payload_of(image_id, n, 0, PAYLOAD) for n in range(N_PACKETS)}
        wanted = slot_pixels(PLACEMENT, 0, frame)
        mine = wanted != UNTOUCHED
        np.testing.assert_array_equal(ring.slots[image_id][: wanted.size][mine], wanted[mine])
