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
        return value if bits == 64 else builder.zext(value, _I64)

    return result(_ADDRESS), codegen


@intrinsic
def read_u64(_context: Any, _address: Any) -> Any:
    """Load 8 bytes at any address (uintp)."""
    return _load(64, types.uint64)


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
def write_u32(_context: Any, _address: Any, _value: Any) -> Any:
    """Store the lower 4 bytes of a 64-bit word at any address (uintp)."""

    def codegen(context: Any, builder: Any, __: Any, args: Any) -> Any:
        low = builder.trunc(args[1], ir.IntType(32))
        builder.store(low, builder.inttoptr(args[0], ir.IntType(32).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.uint64), codegen


@intrinsic
def write_u32_be(_context: Any, _address: Any, _value: Any) -> Any:
    """Store the low 4 bytes of a 64-bit word at any address (uintp), the highest first."""

    def codegen(context: Any, builder: Any, __: Any, args: Any) -> Any:
        word = builder.bswap(builder.trunc(args[1], ir.IntType(32)))
        builder.store(word, builder.inttoptr(args[0], ir.IntType(32).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.uint64), codegen


_PAIRS = [at + k for at in (0, 1, 3, 4, 6, 7, 9, 10) for k in (0, 1)]
"""The two bytes of twelve that hold each of eight 12-bit pixels."""


@intrinsic
def unpack_8_pixels(_context: Any, _source: Any, _target: Any) -> Any:
    """Unpack eight 12-bit pixels, packed little endian, to 16 bits each, at any addresses (uintp).

    Four instructions of a vector unit: 16 bytes are read, though 12 are used.
    """
    bytes_16 = ir.VectorType(ir.IntType(8), 16)
    words_8 = ir.VectorType(ir.IntType(16), 8)

    def codegen(context: Any, builder: Any, __: Any, args: Any) -> Any:
        packed = builder.load(builder.inttoptr(args[0], bytes_16.as_pointer()), align=1)
        order = ir.Constant(ir.VectorType(ir.IntType(32), 16), _PAIRS)
        pairs = builder.bitcast(builder.shuffle_vector(packed, packed, order), words_8)
        shifted = builder.lshr(pairs, ir.Constant(words_8, [0, 4] * 4))
        pixels = builder.and_(shifted, ir.Constant(words_8, [0xFFF] * 8))
        builder.store(pixels, builder.inttoptr(args[1], words_8.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(_ADDRESS, _ADDRESS), codegen


_FLOATS_8 = ir.VectorType(ir.FloatType(), 8)
_INTS_8 = ir.VectorType(ir.IntType(32), 8)


def _gain_8(n_stages: int) -> Any:
    """Return the code of a conversion of eight pixels that are of the first `n_stages` stages.

    Arguments: addresses of the pixels (16 bits), of the result (float32), of the pedestals and gains of
    the first pixel in stage 0, and the bytes from stage to stage. Returns how many are invalid.
    """

    def codegen(_: Any, builder: Any, __: Any, args: Any) -> Any:
        source, target, pedestals, gains, stride = args

        def load(address: Any, kind: Any) -> Any:
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

        def constant(value: int) -> Any:
            return ir.Constant(_INTS_8, [value] * 8)

        values = builder.zext(load(source, ir.VectorType(ir.IntType(16), 8)), _INTS_8)
        adc = builder.sitofp(builder.and_(values, constant(0x3FFF)), _FLOATS_8)
        bits = builder.lshr(values, constant(14))
        pedestal, gain = load(pedestals, _FLOATS_8), load(gains, _FLOATS_8)
        for stage, code in ((1, 1), (2, 3))[: n_stages - 1]:
            is_stage = builder.icmp_unsigned("==", bits, constant(code))
            offset = builder.mul(stride, ir.Constant(_I64, stage))
            pedestal = builder.select(
                is_stage, load(builder.add(pedestals, offset), _FLOATS_8), pedestal
            )
            gain = builder.select(is_stage, load(builder.add(gains, offset), _FLOATS_8), gain)
        result = builder.fmul(builder.fsub(adc, pedestal), gain)
        n_invalid = ir.Constant(_I64, 0)
        if n_stages == 3:
            is_invalid = builder.icmp_unsigned("==", bits, constant(2))
            result = builder.select(is_invalid, ir.Constant(_FLOATS_8, [float("nan")] * 8), result)
            mask = builder.bitcast(is_invalid, ir.IntType(8))
            n_invalid = builder.ctpop(builder.zext(mask, _I64))
        builder.store(result, builder.inttoptr(target, _FLOATS_8.as_pointer()), align=1)
        return n_invalid

    return types.int64(_ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS), codegen


@intrinsic
def gain_8_of_stage_0(_context: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any) -> Any:
    """Convert eight Jungfrau pixels that are all of stage 0; see `_gain_8`."""
    return _gain_8(1)


@intrinsic
def gain_8_of_stages_0_and_1(_context: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any) -> Any:
    """Convert eight Jungfrau pixels of stages 0 and 1; see `_gain_8`."""
    return _gain_8(2)


@intrinsic
def gain_8(_context: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any) -> Any:
    """Convert eight Jungfrau pixels of any stages; see `_gain_8`."""
    return _gain_8(3)


@intrinsic
def float_of_bits(_context: Any, _bits: Any) -> Any:
    """Read a 64-bit word as the double whose bytes it holds."""

    def codegen(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen
