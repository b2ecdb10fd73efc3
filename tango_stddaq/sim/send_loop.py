"""The compiled loops that send: they keep time, and leave the GIL to others."""

from typing import Final

from numba import njit, types, uint32, uintp

from tango_stddaq.processing.clock import CLOCK_MONOTONIC, monotonic_ns
from tango_stddaq.processing.native import clock_nanosleep, errno_location, sendmmsg

PERIOD: Final = 0
"""Places in the state of a pace, float64 nanoseconds: of an image;"""
NEXT: Final = 1
"""when the next image is due, 0 for now;"""
LAST: Final = 2
"""when the last part went."""
_ABSOLUTE: Final = 1
_EARLY_NS: Final = 100_000.0
"""What is due so soon goes at once: a sleep takes about as long. So short periods go in small groups."""
_BURST_NS: Final = 500_000.0
_MAX_LAG_NS: Final = 500e6
_SPREAD: Final = 0.8
_MAX_SPREAD_NS: Final = 50e6
MESSAGE_BYTES: Final = 64
"""Bytes of a struct mmsghdr."""
_EINTR: Final = 4
_ECONNREFUSED: Final = 111
_MAX_REFUSALS: Final = 100


@njit(cache=True, nogil=True)
def now_ns(clock):
    """Return the monotonic time; `clock` is scratch, (2,) int64."""
    return float(monotonic_ns(clock))


@njit(cache=True, nogil=True)
def wait_due(state, clock, part, parts):
    """Wait until a part of the next image is due; see `Pace`. `state` and `clock` are its arrays."""
    period = state[PERIOD]
    if period <= 0:
        return
    now = now_ns(clock)
    if state[NEXT] == 0:
        state[NEXT] = now
    step = min(_SPREAD * period, _MAX_SPREAD_NS) / parts
    due = state[NEXT] + part * step
    when = max(due, state[LAST] + step / 2)
    if when > now + _EARLY_NS:
        clock[0] = int(when // 1e9)
        clock[1] = int(when % 1e9)
        # A signal may wake it early: then this part is early, and the next one is not.
        clock_nanosleep(
            types.int32(CLOCK_MONOTONIC), types.int32(_ABSOLUTE), uintp(clock.ctypes.data), uintp(0)
        )
    elif when < now - _BURST_NS:
        when = now - _BURST_NS
    state[LAST] = when
    if part == parts - 1:
        state[NEXT] += period
        if when - due > _MAX_LAG_NS:
            state[NEXT] += when - due


@njit(cache=True, nogil=True)
def send_all(handle, address, n_messages):
    """Send all messages at an address; returns 0 or an errno.

    A port that nobody listens at reports that to the next message, which was not sent then: it is tried
    again, so that a receiver that has just come gets all of it.
    """
    done = 0
    refusals = 0
    while done < n_messages:
        n = sendmmsg(
            types.int32(handle), uintp(address) + uintp(done * MESSAGE_BYTES), uint32(n_messages - done),
            types.int32(0),
        )  # fmt: skip
        if n > 0:
            done += n
            refusals = 0
            continue
        error = errno_location()[0]
        refusals += 1
        if refusals > _MAX_REFUSALS or (error != _ECONNREFUSED and error != _EINTR):
            return error
    return 0


@njit(cache=True, nogil=True)
def send_frames(
    handles, messages, per_frame, chunk, n_cycle, first, n_images, pace, clock, progress
):  # fmt: skip
    """Send the frames of images from a position of the cycle on; returns 0 or an errno.

    At a rate a frame goes in chunks of so many messages, spread over its time: buffers are small.
    `progress`, (1,) int64, counts the frames that were sent, and says where to go on after an error.
    """
    n_sets, n_modules = handles.shape
    if pace[PERIOD] <= 0:
        chunk = per_frame
    n_chunks = -(-per_frame // chunk)
    for frame in range(progress[0], n_images * n_modules):
        position = (first + frame // n_modules) % n_cycle
        module = frame % n_modules
        start = (position * n_modules + module) * per_frame
        for number in range(n_chunks):
            wait_due(pace, clock, module * n_chunks + number, n_modules * n_chunks)
            n = min(chunk, per_frame - number * chunk)
            address = messages + (start + number * chunk) * MESSAGE_BYTES
            error = send_all(handles[position % n_sets, module], address, n)
            if error:
                return error
        progress[0] = frame + 1
    return 0
