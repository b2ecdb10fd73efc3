"""The compiled half of the synchronizer; arrays as `synchronize.Synchronizer` lays them out."""

from typing import Final

import numpy as np
from numba import uint64, uintp

from tango_stddaq.detectors.layout import FRAME_HEADER, HEADER_MARK
from tango_stddaq.processing.compiled import compiled, inner
from tango_stddaq.processing.native import memcpy, read_u16
from tango_stddaq.processing.slots import MAX_IMAGE_ID, NO_EPOCH, is_later_epoch

_NAMES: Final = (
    "last", "epoch", "was_idle", "n_late", "n_duplicate", "n_restarts", "n_foreign", "n_skipped",
    "n_unmarked", "n_waiting", "head", "released", "n_modules", "queue_size", "packets_per_frame",
    "now_ns", "patience_ns", "max_waiting",
)  # fmt: skip
STATE: Final = {name: at for at, name in enumerate(_NAMES)}
"""Columns of the synchronizer's state."""
N_STATE: Final = len(_NAMES)
(
    _LAST, _EPOCH, _WAS_IDLE, _N_LATE, _N_DUPLICATE, _N_RESTARTS, _N_FOREIGN, _N_SKIPPED, _N_UNMARKED,
    _N_WAITING, _HEAD, _RELEASED, _N_MODULES, _QUEUE_SIZE, _PACKETS, _NOW_NS, _PATIENCE_NS, _MAX_WAITING,
) = range(N_STATE)  # fmt: skip

ID, MISSING_PACKETS, MISSING_MODULES, SINCE_NS, EPOCH, HEADER = range(6)
"""Words of a `synchronize.JOINED` record."""
_HEADER_BYTES: Final = FRAME_HEADER.itemsize
_fields = FRAME_HEADER.fields or {}
_MODULE_AT, _MARK_AT, _EPOCH_AT = (_fields[name][1] for name in ("module_id", "mark", "epoch"))


@compiled
def take(
    frames, places, state, newest, late_run, waiting, n_arrived, arrived, order, free, out, out_arrived,
    is_joined,
):  # fmt: skip
    """Take frame headers, (n, 64) uint8, n may be 0; returns how many images stand in `out`.

    `is_joined` gets which of the frames belong to an image: the others were dropped.
    """
    n_out = np.int64(0)
    words = frames.view(np.int64)
    base = np.int64(frames.ctypes.data)
    for i in range(frames.shape[0]):
        is_joined[i] = False
        image_id, missing = words[i, 0], words[i, 1]
        header = base + i * _HEADER_BYTES
        module = np.int64(places[read_u16(uintp(header + _MODULE_AT))])
        if module < 0 or image_id < 0 or image_id > MAX_IMAGE_ID:
            state[_N_FOREIGN] += 1
            continue
        epoch = np.int64(NO_EPOCH)
        if read_u16(uintp(header + _MARK_AT)) == uint64(HEADER_MARK):
            epoch = np.int64(read_u16(uintp(header + _EPOCH_AT)))
        else:
            state[_N_UNMARKED] += 1
        if missing < 0 or missing > state[_PACKETS]:
            missing = state[_PACKETS]
        verdict = _judge(image_id, module, epoch, state, newest, late_run)
        if verdict == _LATE:
            state[_N_LATE] += 1
            continue
        if verdict == _AGAIN:
            n_out = _release_all(
                n_out, state, waiting, n_arrived, arrived, order, free, out, out_arrived
            )
            state[_LAST] = -1
            for m in range(newest.shape[0]):
                newest[m], late_run[m] = -1, 0
            state[_N_RESTARTS] += 1
        state[_WAS_IDLE] = 0
        if epoch != NO_EPOCH or verdict == _AGAIN:
            state[_EPOCH] = epoch
        _note_forward(image_id, module, newest, late_run)
        entry = _entry_of(image_id, header, state, waiting, n_arrived, arrived, order, free)
        bit = uint64(1) << uint64(module & 63)
        if arrived[entry, module >> 6] & bit:
            state[_N_DUPLICATE] += 1
            continue
        is_joined[i] = True
        arrived[entry, module >> 6] |= bit
        n_arrived[entry] += 1
        waiting[entry, MISSING_PACKETS] += missing
        waiting[entry, EPOCH] = max(waiting[entry, EPOCH], epoch)
        if n_arrived[entry] == state[_N_MODULES] or state[_N_WAITING] > state[_QUEUE_SIZE]:
            n_out = _release_ready(
                n_out, state, waiting, n_arrived, arrived, order, free, out, out_arrived
            )
    # Time passes without frames as well.
    return _release_ready(n_out, state, waiting, n_arrived, arrived, order, free, out, out_arrived)


@compiled
def flush(state, newest, late_run, waiting, n_arrived, arrived, order, free, out, out_arrived):
    """Release everything that waits; returns how many images stand in `out`."""
    return _release_all(0, state, waiting, n_arrived, arrived, order, free, out, out_arrived)


_GOOD, _LATE, _AGAIN = range(3)


@inner
def _judge(image_id, module, epoch, state, newest, late_run):
    """Return whether a frame goes on, comes too late, or begins a run of ids that started again."""
    current = state[_EPOCH]
    if min(epoch, current) != NO_EPOCH and epoch != current:
        return _AGAIN if is_later_epoch(epoch, current) else _LATE
    if image_id > state[_LAST]:
        return _GOOD
    if epoch != NO_EPOCH or not _looks_like_restart(image_id, module, state, newest, late_run):
        return _LATE
    return _AGAIN


@inner
def _looks_like_restart(image_id, module, state, newest, late_run):
    """Tell a straggler from a detector that counts from the start again, without an epoch.

    Frames of one module come in order: while its ids go up, it only lags behind the others. A first
    frame that goes back may be a straggler if it is of a recent image; once a module's old frames
    go on for longer than images wait here, it cannot be.
    """
    if state[_WAS_IDLE]:
        return True
    if image_id > newest[module]:
        _note_forward(image_id, module, newest, late_run)
        return False
    if newest[module] - image_id > 2 * state[_QUEUE_SIZE]:
        return True
    late_run[module] += 1
    return late_run[module] > state[_QUEUE_SIZE]


@inner
def _note_forward(image_id, module, newest, late_run):
    newest[module] = max(image_id, newest[module])
    late_run[module] = 0


@inner
def _entry_of(image_id, header, state, waiting, n_arrived, arrived, order, free):
    """Return the entry of an image that waits; if there is none a new one, in its place in the order."""
    head, n = state[_HEAD], state[_N_WAITING]
    low, high = head, head + n
    while low < high:
        middle = (low + high) // 2
        if waiting[order[middle], ID] < image_id:
            low = middle + 1
        else:
            high = middle
    if low < head + n and waiting[order[low], ID] == image_id:
        return order[low]
    if head + n == order.shape[0]:  # the end of the memory: go on at its beginning
        for k in range(n):
            order[k] = order[head + k]
        low, head, state[_HEAD] = low - head, 0, 0
    for k in range(head + n, low, -1):
        order[k] = order[k - 1]
    entry = free[free.shape[0] - 1 - n]
    order[low] = entry
    state[_N_WAITING] = n + 1
    waiting[entry, ID] = image_id
    waiting[entry, MISSING_PACKETS] = 0
    waiting[entry, SINCE_NS] = state[_NOW_NS]
    waiting[entry, EPOCH] = NO_EPOCH
    kept = np.int64(waiting.ctypes.data) + 8 * (entry * waiting.shape[1] + HEADER)
    memcpy(uintp(kept), uintp(header), uintp(_HEADER_BYTES))
    n_arrived[entry] = 0
    for word in range(arrived.shape[1]):
        arrived[entry, word] = uint64(0)
    return entry


@inner
def _release_ready(n_out, state, waiting, n_arrived, arrived, order, free, out, out_arrived):
    while state[_N_WAITING] > 0:
        entry = order[state[_HEAD]]
        if n_arrived[entry] < state[_N_MODULES] and state[_N_WAITING] <= state[_MAX_WAITING]:
            has_waited = state[_NOW_NS] - waiting[entry, SINCE_NS] >= state[_PATIENCE_NS]
            if state[_N_WAITING] <= state[_QUEUE_SIZE] or not has_waited:
                break
        n_out = _release_first(n_out, state, waiting, n_arrived, arrived, order, free, out, out_arrived)
    return n_out


@inner
def _release_all(n_out, state, waiting, n_arrived, arrived, order, free, out, out_arrived):
    while state[_N_WAITING] > 0:
        n_out = _release_first(n_out, state, waiting, n_arrived, arrived, order, free, out, out_arrived)
    return n_out


@inner
def _release_first(n_out, state, waiting, n_arrived, arrived, order, free, out, out_arrived):
    entry = order[state[_HEAD]]
    state[_HEAD] += 1
    state[_N_WAITING] -= 1
    free[free.shape[0] - 1 - state[_N_WAITING]] = entry
    image_id = waiting[entry, ID]
    for word in range(out.shape[1]):
        out[n_out, word] = waiting[entry, word]
    out[n_out, MISSING_MODULES] = state[_N_MODULES] - n_arrived[entry]
    for word in range(arrived.shape[1]):
        out_arrived[n_out, word] = arrived[entry, word]
    if state[_RELEASED] >= 0 and image_id > state[_RELEASED] + 1:
        state[_N_SKIPPED] += image_id - state[_RELEASED] - 1
    state[_LAST] = state[_RELEASED] = image_id
    return n_out + 1
