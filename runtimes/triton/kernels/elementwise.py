"""What is computed element by element, and what only moves codes.

Elements are counted over axes, the innermost first; SIZES has the length of every axis but
the outermost, and each operand its strides along all. Strides of 0 broadcast.
"""

import triton
import triton.language as tl

from runtimes.triton.kernels.rounding import to_codes


@triton.jit
def place(index, SIZES: tl.constexpr, STRIDES: tl.constexpr):
    """Return where element `index` of an operand is."""
    where = index * 0
    for axis in tl.static_range(len(SIZES)):
        where += index % SIZES[axis] * STRIDES[axis]
        index = index // SIZES[axis]
    return where + index * STRIDES[len(SIZES)]


@triton.jit
def quantize(
    x, y, total, scale, low, high, shift,
    SIZES: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``rint(x / scale) + zero_point``, a true division."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.div_rn(tl.load(x + place(index, SIZES, X), mask=index < total), scale)
    codes = to_codes(value, low, high, shift)
    tl.store(y + place(index, SIZES, Y), codes, mask=index < total)


@triton.jit(do_not_specialize=["zero"])
def dequantize(
    x, y, total, scale, zero,
    SIZES: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``f32(q - zero_point) * scale``; `zero` is the shifted zero point."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    codes = tl.load(x + place(index, SIZES, X), mask=index < total)
    value = (codes.to(tl.int32) - zero).to(tl.float32) * scale
    tl.store(y + place(index, SIZES, Y), value, mask=index < total)


@triton.jit
def shift_pixels(
    x, y, total, SIZES: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, BLOCK: tl.constexpr
):
    """Shift raw pixels, uint8, to int8."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    codes = tl.load(x + place(index, SIZES, X), mask=index < total)
    shifted = (codes.to(tl.int32) - 128).to(tl.int8)
    tl.store(y + place(index, SIZES, Y), shifted, mask=index < total)


@triton.jit
def copy(
    x, y, total, SIZES: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, BLOCK: tl.constexpr
):
    """Move codes from one layout to another."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    codes = tl.load(x + place(index, SIZES, X), mask=index < total)
    tl.store(y + place(index, SIZES, Y), codes, mask=index < total)


@triton.jit(do_not_specialize=["code"])
def fill(y, total, code, BLOCK: tl.constexpr):
    """Write one code everywhere."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, (index * 0 + code).to(tl.int8), mask=index < total)


@triton.jit
def look_up(
    x, y, total, table,
    SIZES: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``table[q]``; the table holds shifted answers to shifted codes, from -128 on."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    codes = tl.load(x + place(index, SIZES, X), mask=index < total, other=0)
    answers = tl.load(table + (codes.to(tl.int32) + 128))
    tl.store(y + place(index, SIZES, Y), answers, mask=index < total)


@triton.jit
def add(
    a, b, y, total, a_factor, b_factor, constant, low, high, shift,
    SIZES: tl.constexpr, A: tl.constexpr, B: tl.constexpr, Y: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``rint(fma(a, ra, fma(b, rb, c)))`` on raw codes (`numerics.add_coefficients`)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(a + place(index, SIZES, A), mask=index < total).to(tl.int32) + 128
    second = tl.load(b + place(index, SIZES, B), mask=index < total).to(tl.int32) + 128
    ra = tl.full((BLOCK,), a_factor, tl.float32)
    rb = tl.full((BLOCK,), b_factor, tl.float32)
    inner = tl.fma(second.to(tl.float32), rb, tl.full((BLOCK,), constant, tl.float32))
    value = tl.fma(first.to(tl.float32), ra, inner)
    codes = to_codes(value, low, high, shift)
    tl.store(y + place(index, SIZES, Y), codes, mask=index < total)


@triton.jit(do_not_specialize=["a_zero", "b_zero"])
def multiply(
    a, b, y, total, a_zero, b_zero, factor, zero, low, high, shift,
    SIZES: tl.constexpr, A: tl.constexpr, B: tl.constexpr, Y: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``rint(f32((a - za) * (b - zb)) * factor + zy)``, rounded after the product too."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(a + place(index, SIZES, A), mask=index < total).to(tl.int32) - a_zero
    second = tl.load(b + place(index, SIZES, B), mask=index < total).to(tl.int32) - b_zero
    value = (first * second).to(tl.float32) * factor + zero
    codes = to_codes(value, low, high, shift)
    tl.store(y + place(index, SIZES, Y), codes, mask=index < total)
