"""C functions and atomic memory operations for compiled loops.

numba resolves the C names in the running process when it links a compiled function, so that loops
that use them can still be cached on disk. Addresses are plain integers (`uintp`).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_ADDRESS = types.uintp
_I64 = ir.IntType(64)

memcpy = types.ExternalFunction("memcpy", _ADDRESS(_ADDRESS, _ADDRESS, _ADDRESS))
memmove = types.ExternalFunction("memmove", _ADDRESS(_ADDRESS, _ADDRESS, _ADDRESS))
memset = types.ExternalFunction("memset", _ADDRESS(_ADDRESS, types.int32, _ADDRESS))
poll = types.ExternalFunction("poll", types.int32(_ADDRESS, types.uint64, types.int32))
recvmmsg = types.ExternalFunction(
    "recvmmsg", types.int32(types.int32, _ADDRESS, types.uint32, types.int32, _ADDRESS)
)
sendmmsg = types.ExternalFunction(
    "sendmmsg", types.int32(types.int32, _ADDRESS, types.uint32, types.int32)
)
clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, _ADDRESS))
clock_nanosleep = types.ExternalFunction(
    "clock_nanosleep", types.int32(types.int32, types.int32, _ADDRESS, _ADDRESS)
)
errno_location = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())


@intrinsic
def load_u64(_context: Any, _address: Any) -> Any:
    """Load a 64-bit word (`address`: uintp) with acquire ordering."""

    def codegen(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "acquire", 8)

    return types.uint64(_ADDRESS), codegen


@intrinsic
def swap_u64_if(_context: Any, _address: Any, _expected: Any, _new: Any) -> Any:
    """Compare and swap a 64-bit word: address (uintp), expected, new; returns whether it swapped."""

    def codegen(_: Any, builder: Any, __: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        pair = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(_ADDRESS, types.uint64, types.uint64), codegen


def _load(bits: int, result: types.Type) -> Any:
    def codegen(_: Any, builder: Any, __: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
        value = builder.load(pointer, align=1)
        return builder.zext(value, _I64)

    return result(_ADDRESS), codegen


@intrinsic
def read_u32(_context: Any, _address: Any) -> Any:
    """Load 4 bytes at any address (uintp), as a 64-bit word."""
    return _load(32, types.uint64)


@intrinsic
def read_u16(_context: Any, _address: Any) -> Any:
    """Load 2 bytes at any address (uintp), as a 64-bit word."""
    return _load(16, types.uint64)


@intrinsic
def write_u64(_context: Any, _address: Any, _value: Any) -> Any:
    """Store 8 bytes at any address (uintp)."""

    def codegen(context: Any, builder: Any, __: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.uint64), codegen


@intrinsic
def write_f32(_context: Any, _address: Any, _value: Any) -> Any:
    """Store a 4-byte float at any address (uintp)."""

    def codegen(context: Any, builder: Any, __: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.FloatType().as_pointer())
        builder.store(args[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.float32), codegen


@intrinsic
def float_of_bits(_context: Any, _bits: Any) -> Any:
    """Read a 64-bit word as the double whose bytes it holds."""

    def codegen(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen
