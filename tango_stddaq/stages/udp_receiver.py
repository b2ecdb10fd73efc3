"""UDP receiver: the packets of one or many modules, laid by the kernel straight into a ring.

Two modes. *direct*: into the image ring, one message of frame headers to `-sync` per turn. *frames*:
into one frame ring per module, headers published on `<detector_name>-<module>`, as the existing
programs do; a converter carries on from there.
"""

import logging
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar

import numpy as np
import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.config_sizes import MIN_SLOTS
from tango_stddaq.detectors.layout import Placement
from tango_stddaq.io import channels
from tango_stddaq.io.ring import RingOwner, RingWriter
from tango_stddaq.io.udp import MAX_HEADERS, WANTED_BUFFER_BYTES, PacketLoop, UdpSocket
from tango_stddaq.processing.assembly import COUNTERS, Workspace
from tango_stddaq.processing.frame_headers import FrameHeaders
from tango_stddaq.stages.base import TURN_S
from tango_stddaq.stages.converting import ConvertingStage
from tango_stddaq.stages.sync_link import PatientLink
from tango_stddaq.stats import Counter


class ReceiveMode(StrEnum):
    """Where a receiver lays pixels."""

    DIRECT = "direct"
    FRAMES = "frames"


class UdpReceiver(ConvertingStage):
    """Receives the modules given.

    Parameters
    ----------
    modules, gains_file, pedestals_file
        See `ConvertingStage`.
    mode
        See the module's description.
    frame_timeout_s
        After so long without a packet, while it listens, a frame under way is finished as incomplete.

    Attributes
    ----------
    missing_per_module
        (n_modules,) int64: packets missing of each module so far, in the order of `modules`.
    """

    name = "udp-recv"
    main_counter = "frames"
    counters_spec: ClassVar[tuple[Counter, ...]] = (
        Counter("packets", "packets", "Packets received, good or not."),
        Counter("bytes", "bytes", "Pixel bytes of finished frames."),
        Counter("frames", "frames", "Frames finished, complete or not."),
        Counter("incomplete_frames", "frames", "Frames finished with packets missing.", loss=True),
        Counter("missing_packets", "packets", "Packets missing in finished frames.", loss=True),
        Counter("skipped_ids", "frames", "Frames of which no packet came: gaps in ids.", loss=True),
        Counter("kernel_drops", "packets", "Packets the kernel dropped: buffer full.", loss=True),
        Counter("bad_size", "packets", "Packets dropped: not a packet's size.", loss=True),
        Counter("bad_header", "packets", "Packets dropped: header out of range.", loss=True),
        Counter("duplicate", "packets", "Packets dropped: had come before."),
        Counter("late", "packets", "Packets dropped: their frame was finished.", loss=True),
        Counter("moved", "packets", "Packets that came out of order and were moved."),
        Counter("unplaced_frames", "frames", "Frames dropped: too late for the ring.", loss=True),
        Counter("unannounced_frames", "frames", "Frames lost: nobody took them in time.", loss=True),
        Counter(
            "unread_frames",
            "frames",
            "At the stop: announced while no synchronizer was there.",
            loss=True,
        ),
        Counter("invalid_pixels", "pixels", "Pixels of an invalid gain stage: now NaN."),
        Counter("restarts", "restarts", "Times that a module's frame numbers started again."),
        Counter("no_ring", "packets", "Packets dropped: came while there was no ring.", loss=True),
        Counter("ring_waits", "times", "Times that the image ring was gone or not there yet."),
    )

    def __init__(
        self,
        config: DaqConfig,
        modules: Sequence[int] | None = None,
        mode: ReceiveMode = ReceiveMode.DIRECT,
        frame_timeout_s: float = 0.5,
        label: str | None = None,
        gains_file: str = "",
        pedestals_file: str = "",
    ) -> None:
        super().__init__(config, modules, label, gains_file, pedestals_file)
        self.mode = mode
        self.frame_timeout_s = frame_timeout_s
        self.buffer_bytes = 0
        self._headers = FrameHeaders(self.detector, self.modules)
        self.missing_per_module = np.zeros(len(self.modules), np.int64)
        self._sockets: list[UdpSocket] = []
        self._owned: list[RingOwner] = []
        self._ring: RingWriter | None = None
        self._out: list[zmq.Socket[bytes]] = []
        self._sync: PatientLink | None = None
        self._loop: PacketLoop | None = None
        self._drops_before = 0
        self._silent_s = 0.0

    def _open(self) -> None:
        layout, sizes = self.detector.layout, self.config.sizes
        workspace = self._new_workspace(
            self._image_placement()
            if self.mode is ReceiveMode.DIRECT
            else Placement.contiguous(len(self.modules), layout)
        )
        # Compiles, or loads: with the first packet it would be too late, and with the first frame that
        # is given up the synchronizer would lose its patience. It may take long: nothing is made yet.
        PacketLoop(workspace, [], headers=self._headers, missing=self.missing_per_module).turn(0)
        workspace.flush(0)
        self._headers.of(workspace.events[:0], self.missing_per_module)
        for module in self.modules:
            self._sockets.append(UdpSocket.bind(self.config.start_udp_port + module))
        name = self.config.detector_name
        if self.mode is ReceiveMode.FRAMES:
            for source, module in enumerate(self.modules):
                ring = RingOwner(
                    f"{name}-{module}",
                    MIN_SLOTS,
                    layout.frame_bytes,
                    layout.mask_words,
                    self.config.ring_memory,
                )
                self._owned.append(ring)
                self._use_ring(workspace, source, ring, 0)
                self._out.append(channels.bind(zmq.PUB, channels.ipc_address(name, str(module))))
        else:
            self._sync = PatientLink(self.config, self._n_announced())
            self._out.append(self._sync.handle)
            self._attach(sizes.n_slots, sizes.slot_bytes)
        self._loop = PacketLoop(
            workspace,
            self._sockets,
            headers=self._headers,
            missing=self.missing_per_module,
            target=self._out[0] if self.mode is ReceiveMode.DIRECT else None,
        )
        self.buffer_bytes = min(entry.buffer_bytes for entry in self._sockets)
        if self.buffer_bytes < WANTED_BUFFER_BYTES:
            self.say(
                logging.WARNING,
                f"receive buffer is {self.buffer_bytes} bytes, {WANTED_BUFFER_BYTES} were asked for: "
                f"set net.core.rmem_max to {WANTED_BUFFER_BYTES}",
            )
        self._drops_before = self._kernel_drops()

    def _turn(self) -> None:
        workspace, loop = self._workspace, self._loop
        if workspace is None or loop is None:
            return
        self._take_new_maps()
        if self._sync is not None:
            self._sync.look(self._n_announced())
        if self.mode is ReceiveMode.DIRECT and (self._ring is None or self._ring.retired):
            self._wait_for_ring()
            return
        began_s = time.monotonic()
        if loop.turn(int(TURN_S * 1000)):
            self._silent_s = 0.0
        else:
            # What it did not listen to is no silence: a process that got no core for seconds finds the
            # packets of that time in the kernel, and the next ones come as late as it is itself.
            self._silent_s += min(time.monotonic() - began_s, TURN_S)
        if self._silent_s > self.frame_timeout_s:
            for source in np.flatnonzero(workspace.under_way()):
                workspace.flush(int(source))
        if workspace.n_events[0]:
            self._announce(workspace)

    def _announce(self, workspace: Workspace) -> None:
        n_events = int(workspace.n_events[0])
        headers = self._headers.of(workspace.events[:n_events], self.missing_per_module)
        if self.mode is ReceiveMode.DIRECT:
            for first in range(0, n_events, MAX_HEADERS):
                some = headers[first : first + MAX_HEADERS]
                if not self._publish(self._out[0], some.tobytes()):
                    self.counters["unannounced_frames"] += some.size
        else:
            sources = workspace.events["source"][:n_events].tolist()
            for source, header in zip(sources, headers, strict=True):
                if self._owned[source].publish(int(header["image_id"]), int(header["epoch"])):
                    self._publish(self._out[source], header.tobytes())
                else:  # ids started again: a converter would take the pixels of the new frame
                    self.counters["unannounced_frames"] += 1
        workspace.n_events[0] = 0

    def _publish(self, out: "zmq.Socket[bytes]", data: bytes) -> bool:
        """Send; False if nobody took it within the time of a turn."""
        while True:
            try:
                out.send(data, zmq.DONTWAIT)
            except zmq.Again:  # the synchronizer is gone or stuck; meanwhile the kernel buffers
                if self._stop.is_set() or not out.poll(int(TURN_S * 1000), zmq.POLLOUT):
                    return False
            else:
                return True

    def _n_announced(self) -> int:
        workspace = self._workspace
        if workspace is None:
            return 0
        n_frames = int(workspace.counters[:, COUNTERS.index("frames")].sum())
        return n_frames - int(workspace.n_events[0]) - self.counters["unannounced_frames"]

    def _give_up_unread(self) -> None:
        n_unread = self._sync.look(self._n_announced()) if self._sync is not None else 0
        if n_unread:
            self.counters["unread_frames"] += n_unread
            text = f"{n_unread} frames were announced since the synchronizer went: none read them"
            self.say(logging.WARNING, f"[event] {text}")

    def _attach(self, n_slots: int, slot_bytes: int) -> bool:
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        try:
            ring = RingWriter.attach(
                self.config.segment("image"), n_slots, slot_bytes, self.config.ring_memory
            )
        except FileNotFoundError:
            return False
        workspace = self._workspace
        if workspace is None:
            ring.close()
            return False
        for source, row in enumerate(self._rows):
            self._use_ring(workspace, source, ring, self._place_of(row))
        workspace.forget()
        self._ring = ring
        return True

    def _use_ring(
        self, workspace: Workspace, source: int, ring: RingOwner | RingWriter, place: int
    ) -> None:
        """Lay the frames of a source there; `place`: of its module among those that share a slot."""
        masks, words = ring.masks_address, self.detector.layout.mask_words
        workspace.set_ring(
            source,
            ring.base_address,
            ring.slot_bytes,
            ring.n_slots,
            ring.index_address,
            masks + place * words * 8 if masks else 0,
            ring.mask_words * 8,
        )

    def _wait_for_ring(self) -> None:
        if self._ring is not None:
            self.say(logging.WARNING, "[event] the image ring was given up by its owner")
            self._ring.close()
            self._ring = None
            self.counters["ring_waits"] += 1
        sizes = self.config.sizes
        if self._attach(sizes.n_slots, sizes.slot_bytes):
            # What waited in the kernel is older than the ring: it would look like a restarted detector.
            self.counters["no_ring"] += sum(entry.drain() for entry in self._sockets)
            self.say(logging.INFO, "attached to the image ring")
        else:
            self._stop.wait(TURN_S)

    def _kernel_drops(self) -> int:
        return sum(entry.kernel_drops() for entry in self._sockets)

    def _tick(self) -> None:
        if self._workspace is None:
            return
        totals = self._workspace.totals()
        for name, value in totals.items():
            if name in self.counters:
                self.counters[name] = value
        self.counters["bytes"] = (
            totals["frames"] * self.detector.layout.frame_bytes
            - totals["missing_packets"] * self.detector.layout.payload_bytes
        )
        if self._sockets:
            self.counters["kernel_drops"] = self._kernel_drops() - self._drops_before

    def _reset(self) -> None:
        if self._sync is not None:
            self._sync.count_anew(self._n_announced())
        self.missing_per_module[:] = 0
        if self._workspace is not None:
            self._workspace.counters[:] = 0
        if self._sockets:
            self._drops_before = self._kernel_drops()

    def _describe(self) -> str:
        if self.mode is ReceiveMode.DIRECT and self._ring is None:
            return f"Waiting for the ring {self.config.segment('image')} of the module synchronizer."
        return super()._describe()

    def _close(self) -> None:
        if self._sockets:
            self._tick()
            self._give_up_unread()
        self._loop = None
        for entry in self._sockets:
            entry.handle.close()
        if self._sync is not None:
            self._sync.close()
        for out in self._out:
            channels.close(out)
        for ring in self._owned:
            ring.close()
        if self._ring is not None:
            self._ring.close()
        self._sockets, self._out, self._owned, self._ring, self._sync = [], [], [], None, None
        self._workspace = None
