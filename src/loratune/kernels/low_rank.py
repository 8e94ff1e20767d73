"""Triton kernels of the packed low-rank products: one launch serves all trials, whatever their ranks.

Shapes: N tokens of the micro-batch, D features of a module's input or output, R rank. A launch works on
blocks of tokens that belong to one slot each; where the slot's matrices lie comes from a table of
addresses (see `fused`), so a slot that is refilled changes numbers, not launches. A slot's rank is computed in
blocks of 16, 64 or 128 ranks, whichever holds it: a program branches on it, so that all slots share one launch and
none pays for another's rank. No block reads another slot's rows or weights. Every output element is written by one
program: results do not depend on timing. Knows nothing of torch modules or autograd.
"""

import triton
import triton.language as tl

# Columns of a slot's row in a module's table, int64.
COLUMNS = 9
COLUMN_A, COLUMN_B, COLUMN_GRADIENT_A, COLUMN_GRADIENT_B = range(4)
A = tl.constexpr(COLUMN_A)
B = tl.constexpr(COLUMN_B)
GRADIENT_B = tl.constexpr(COLUMN_GRADIENT_B)
RANK = tl.constexpr(4)
SCALING = tl.constexpr(5)  # bits of a float32
SALT = tl.constexpr(6)  # of the module, for dropout
THRESHOLD = tl.constexpr(7)  # int32: inputs whose hash lies below are dropped
KEEP = tl.constexpr(8)  # bits of the float32 1 / (1 - p)
_COLUMNS = tl.constexpr(COLUMNS)
RANK_BLOCKS = (16, 64, 128)
"""Ranks are computed in the smallest of these that holds them, larger ranks in several of the last."""
SMALL, MIDDLE, LARGE = (tl.constexpr(block) for block in RANK_BLOCKS)

_FIRST = tl.constexpr(0x7FEB352D)
_SECOND = tl.constexpr(0x846CA68B)
_GOLDEN = tl.constexpr(0x9E3779B9)


@triton.jit
def _float(bits):
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _matrix(row, column, kind: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer to a matrix of that type; aligned to 16 bytes where the features are a multiple of eight."""
    pointer = tl.load(row + column).to(tl.pointer_type(kind))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _mix(x):
    """Two rounds of lowbias32 on uint32; see `dropout`."""
    x ^= x >> 16
    x *= _FIRST
    x ^= x >> 15
    x *= _SECOND
    x ^= x >> 16
    return x


@triton.jit
def _multiplier(row, keys, places, tokens, inside, features):
    """[tokens, features] 0 where an input is dropped and 1 / (1 - p) where it is kept; see `dropout.keep_mask`."""
    salt = tl.load(row + SALT).to(tl.uint32)
    key = tl.load(keys + tokens, mask=inside, other=0).to(tl.uint32, bitcast=True)
    place = tl.load(places + tokens, mask=inside, other=0).to(tl.uint32, bitcast=True)
    token = _mix(_mix(key ^ salt) + place * _GOLDEN)
    feature = _mix(features.to(tl.uint32) + _GOLDEN)
    value = _mix(token[:, None] ^ feature[None, :]).to(tl.int32, bitcast=True)
    keep = value >= tl.load(row + THRESHOLD).to(tl.int32)
    return tl.where(keep, _float(tl.load(row + KEEP)), 0.0)


@triton.jit
def _wide(rank, EIGHTS: tl.constexpr):
    """A rank above 16; where it is a multiple of eight the compiler learns it here and reads B 16 bytes at a time."""
    return rank // 8 * 8 if EIGHTS else rank


@triton.jit
def _shrink(
    x, h, row, rank, first, m, inside, keys, places, features, stride_h, part,
    COLUMN: tl.constexpr, DROPOUT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """`shrink` of tokens m and BLOCK_R ranks from `first` on, over the features of one of PARTS."""
    share = tl.cdiv(tl.cdiv(features, PARTS), BLOCK_K) * BLOCK_K
    stop = tl.minimum((part + 1) * share, features)
    r = first + tl.arange(0, BLOCK_R)
    start = m.to(tl.int64)[:, None] * features
    weights = _matrix(row, COLUMN, x.dtype.element_ty, ALIGNED)
    accumulator = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for begin in tl.range(part * share, stop, BLOCK_K, num_stages=STAGES):
        k = begin + tl.arange(0, BLOCK_K)
        here = k < stop
        value = tl.load(x + start + k[None, :], mask=inside[:, None] & here[None, :], other=0.0)
        if DROPOUT:
            scale = _multiplier(row, keys, places, m, inside, k)
            value = (value.to(tl.float32) * scale).to(value.dtype)
        index = r[None, :] * features + k[:, None] if COLUMN == A else k[:, None] * rank + r[None, :]
        weight = tl.load(weights + index, mask=here[:, None] & (r < rank)[None, :], other=0.0)
        accumulator = tl.dot(value, weight, accumulator, input_precision="ieee")
    if COLUMN == B:
        accumulator *= _float(tl.load(row + SCALING))
    where = h + m.to(tl.int64)[:, None] * stride_h + r[None, :]
    tl.store(where, accumulator.to(h.dtype.element_ty), mask=inside[:, None] & (r < rank)[None, :])


@triton.jit
def shrink(
    x, h, table, blocks, keys, places, features, stride_h, plane,
    COLUMN: tl.constexpr, DROPOUT: tl.constexpr, ALIGNED: tl.constexpr, LARGEST: tl.constexpr, EIGHTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """h [N, R] = x [N, D] · Aᵀ (COLUMN A, dropout on x), or scaling · x · B (COLUMN B).

    With several PARTS of the features h is [PARTS, N, R], to be added up by `add_parts`.
    """
    block = blocks + tl.program_id(0) * 3
    slot = tl.load(block + 2)
    if slot < 0:
        return
    row = table + slot * _COLUMNS
    rank = tl.load(row + RANK).to(tl.int32)
    first = tl.program_id(1) * LARGE
    if first >= rank:
        return
    part = tl.program_id(2)
    h += part.to(tl.int64) * plane
    m = tl.load(block) + tl.arange(0, BLOCK_M)
    inside = m < tl.load(block + 1)
    if rank <= SMALL:
        _shrink(
            x, h, row, rank, first, m, inside, keys, places, features, stride_h, part,
            COLUMN, DROPOUT, ALIGNED, BLOCK_M, BLOCK_K, SMALL, STAGES, PARTS,
        )  # fmt: skip
    if LARGEST > SMALL:
        if (rank > SMALL) & (rank <= MIDDLE):
            _shrink(
                x, h, row, _wide(rank, EIGHTS), first, m, inside, keys, places, features, stride_h, part,
                COLUMN, DROPOUT, ALIGNED, BLOCK_M, BLOCK_K // 2, MIDDLE, STAGES, PARTS,
            )  # fmt: skip
    if LARGEST > MIDDLE:
        if rank > MIDDLE:
            _shrink(
                x, h, row, _wide(rank, EIGHTS), first, m, inside, keys, places, features, stride_h, part,
                COLUMN, DROPOUT, ALIGNED, BLOCK_M, BLOCK_K // 2, LARGE, STAGES, PARTS,
            )  # fmt: skip


@triton.jit
def add_parts(parts, h, count, plane, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """h [count] = the sum of PARTS planes, in one order; what no slot has written stays meaningless."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(PARTS):
        total += tl.load(parts + part * plane + place, mask=inside, other=0.0)
    tl.store(h + place, total.to(h.dtype.element_ty), mask=inside)


@triton.jit
def _product(
    h, weights, rank, m, n, inside, here, features, stride_h, accumulator,
    COLUMN: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """accumulator + h · Bᵀ (COLUMN B), or h · A, of tokens m and features n."""
    for begin in tl.range(0, rank, BLOCK_R, num_stages=STAGES):
        r = begin + tl.arange(0, BLOCK_R)
        used = r < rank
        inner = tl.load(
            h + m.to(tl.int64)[:, None] * stride_h + r[None, :],
            mask=inside[:, None] & used[None, :], other=0.0,
        )  # fmt: skip
        index = n[None, :] * rank + r[:, None] if COLUMN == B else r[:, None] * features + n[None, :]
        weight = tl.load(weights + index, mask=used[:, None] & here[None, :], other=0.0)
        accumulator = tl.dot(inner, weight, accumulator, input_precision="ieee")
    return accumulator


@triton.jit
def expand(
    h, y, out, table, blocks, keys, places, features, stride_h,
    COLUMN: tl.constexpr, DROPOUT: tl.constexpr, ALIGNED: tl.constexpr, LARGEST: tl.constexpr, EIGHTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """out [N, D] = y + scaling · h · Bᵀ (COLUMN B), or h · A times the dropout's multiplier (COLUMN A).

    Rows of no slot, or of a slot without this module, get y, or zero. A block is done in PARTS.
    """
    block = blocks + (tl.program_id(0) // PARTS) * 3
    if tl.load(block) >= tl.load(block + 1):  # an empty one
        return
    slot = tl.load(block + 2)
    m = tl.load(block) + (tl.program_id(0) % PARTS) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = m < tl.load(block + 1)
    here = n < features
    place = m.to(tl.int64)[:, None] * features + n[None, :]
    mask = inside[:, None] & here[None, :]
    if COLUMN == B:  # asked for first: the rest of the block waits for three loads in a row
        base = tl.load(y + place, mask=mask, other=0.0)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    row = table + tl.maximum(slot, 0) * _COLUMNS
    rank = tl.where(slot < 0, 0, tl.load(row + RANK).to(tl.int32))
    weights = _matrix(row, COLUMN, h.dtype.element_ty, ALIGNED)
    if rank <= SMALL:
        accumulator = _product(
            h, weights, rank, m, n, inside, here, features, stride_h, accumulator, COLUMN, SMALL, 3
        )
    # one turn of the loop but for huge ranks: loads ahead would only take shared memory
    if LARGEST > SMALL:
        if (rank > SMALL) & (rank <= MIDDLE):
            wide = _wide(rank, EIGHTS)
            accumulator = _product(
                h, weights, wide, m, n, inside, here, features, stride_h, accumulator, COLUMN, MIDDLE, 1
            )
    if LARGEST > MIDDLE:
        if rank > MIDDLE:
            wide = _wide(rank, EIGHTS)
            accumulator = _product(
                h, weights, wide, m, n, inside, here, features, stride_h, accumulator, COLUMN, LARGE, 1
            )
    if COLUMN == B:
        accumulator *= _float(tl.load(row + SCALING))
        accumulator += base.to(tl.float32)
    elif DROPOUT:
        accumulator *= _multiplier(row, keys, places, m, inside, n)
    tl.store(out + place, accumulator.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(
    x, h, row, rank, first, begin, stop, n, keys, places, features, stride_h,
    COLUMN: tl.constexpr, DROPOUT: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`gradient` of features n and BLOCK_R ranks from `first` on, of the tokens [begin, stop)."""
    r = first + tl.arange(0, BLOCK_R)
    used = r < rank
    here = n < features
    accumulator = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for start in tl.range(begin, stop, BLOCK_M, num_stages=STAGES):
        m = start + tl.arange(0, BLOCK_M)
        inside = m < stop
        value = tl.load(
            x + m.to(tl.int64)[:, None] * features + n[None, :],
            mask=inside[:, None] & here[None, :], other=0.0,
        )  # fmt: skip
        if DROPOUT:
            value = (value.to(tl.float32) * _multiplier(row, keys, places, m, inside, n)).to(value.dtype)
        inner = tl.load(
            h + m.to(tl.int64)[:, None] * stride_h + r[None, :],
            mask=inside[:, None] & used[None, :], other=0.0,
        )  # fmt: skip
        accumulator = tl.dot(tl.trans(value), inner, accumulator, input_precision="ieee")
    if COLUMN == GRADIENT_B:
        accumulator *= _float(tl.load(row + SCALING))
        index = n[:, None] * rank + r[None, :]
    else:
        index = r[None, :] * features + n[:, None]
    where = _matrix(row, COLUMN, tl.float32, ALIGNED) + index
    mask = here[:, None] & used[None, :]
    tl.store(where, tl.load(where, mask=mask, other=0.0) + accumulator, mask=mask)


@triton.jit
def gradient(
    x, h, table, segments, keys, places, features, stride_h,
    COLUMN: tl.constexpr, DROPOUT: tl.constexpr, ALIGNED: tl.constexpr, LARGEST: tl.constexpr, EIGHTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Adds hᵀ · dropout(x) [R, D] to A's gradient, or scaling · xᵀ · h [D, R] to B's."""
    segment = segments + tl.program_id(0) * 3
    slot = tl.load(segment + 2)
    if slot < 0:
        return
    row = table + slot * _COLUMNS
    rank = tl.load(row + RANK).to(tl.int32)
    first = tl.program_id(2) * LARGE
    if first >= rank:
        return
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(segment)
    stop = tl.load(segment + 1)
    if rank <= SMALL:
        _gradient(
            x, h, row, rank, first, begin, stop, n, keys, places, features, stride_h,
            COLUMN, DROPOUT, ALIGNED, BLOCK_M, BLOCK_N, SMALL, STAGES,
        )  # fmt: skip
    if LARGEST > SMALL:
        if (rank > SMALL) & (rank <= MIDDLE):
            _gradient(
                x, h, row, _wide(rank, EIGHTS), first, begin, stop, n, keys, places, features, stride_h,
                COLUMN, DROPOUT, ALIGNED, BLOCK_M, BLOCK_N, MIDDLE, STAGES,
            )  # fmt: skip
    if LARGEST > MIDDLE:
        if rank > MIDDLE:
            _gradient(
                x, h, row, _wide(rank, EIGHTS), first, begin, stop, n, keys, places, features, stride_h,
                COLUMN, DROPOUT, ALIGNED, BLOCK_M, BLOCK_N, LARGE, STAGES,
            )  # fmt: skip
