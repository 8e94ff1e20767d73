"""Triton kernels of attention within the rows of one line of tokens, forward and backward.

Shapes: N tokens of the line, H heads of queries, G of keys and values, D features of a head. A program works on a
tile of tokens of one head, whichever rows they belong to, so that short rows share tiles; for each token a table says
where its row begins and ends. Tiles do nothing for rows that they do not touch: the work is N times the mean length
of a row, without atomic additions, so that results do not depend on timing. The passes are those of FlashAttention-2
(Dao 2023, algorithms 1 and 2). Knows nothing of torch modules or autograd.
"""

import triton
import triton.language as tl

_INFINITE = tl.constexpr(float("inf"))


@triton.jit
def _lines(x, tokens, features, stride, inside, DIM: tl.constexpr):
    """[tokens, features] of one head; zero where there is nothing."""
    mask = inside[:, None] & (features < DIM)[None, :]
    return tl.load(x + tokens.to(tl.int64)[:, None] * stride + features[None, :], mask=mask, other=0.0)


@triton.jit
def _finite(x):
    return tl.abs(x.to(tl.float32)) < _INFINITE


@triton.jit
def _shielded(x, MIXED: tl.constexpr):
    """x with zeros for what is not finite: another row's NaN times a weight of zero would be a NaN."""
    return tl.where(_finite(x), x, 0.0).to(x.dtype) if MIXED else x


@triton.jit
def _visible(first, m, n):
    """[M, N] whether the query m sees the key n; `first` [M] is the first key that it sees."""
    return (n[None, :] >= first[:, None]) & (n[None, :] <= m[:, None])


@triton.jit
def _forward(
    k, v, query, first, m, features, low, high, k_stride, v_stride,
    SCALE: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    MIXED: tl.constexpr,
):  # fmt: skip
    """Weighted sum of the values [M, D], the sum of the weights [M], and the exponent (base 2) they are relative to."""
    most = tl.full((BLOCK_M,), -_INFINITE, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for begin in tl.range(low, high, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        key = _lines(k, n, features, k_stride, n < high, DIM)
        value = _lines(v, n, features, v_stride, n < high, DIM)
        visible = _visible(first, m, n)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * SCALE
        score = tl.where(visible, score, -_INFINITE)
        now = tl.maximum(most, tl.max(score, 1))
        base = tl.where(now == -_INFINITE, 0.0, now)  # of a query that has seen no key yet
        weight = tl.exp2(score - base[:, None])
        kept = tl.exp2(most - base)
        total = total * kept + tl.sum(weight, 1)
        accumulator = accumulator * kept[:, None]
        accumulator = tl.dot(
            weight.to(value.dtype), _shielded(value, MIXED), accumulator, input_precision="ieee"
        )
        if MIXED:  # what the shield took away shows in the rows that see it
            broken = tl.max(tl.where(_finite(value), 0.0, 1.0), 1)
            seen = tl.max(tl.where(visible, broken[None, :], 0.0), 1)
            total = tl.where(seen > 0, float("nan"), total)
        most = now
    return accumulator, total, most


@triton.jit
def _queries(bounds, tokens, window, BLOCK_M: tl.constexpr):
    """A tile's queries, which of them there are, their end; where their rows begin, and the first keys they see."""
    start = tl.program_id(0) * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    row = tl.load(bounds + tl.minimum(m, tokens - 1))
    return m, m < tokens, tl.minimum(start + BLOCK_M, tokens), row, tl.maximum(row, m - window)


@triton.jit
def attend(
    q, k, v, out, exponents, bounds, tokens, window, q_token, q_head, k_token, k_head, v_token, v_head,
    out_token, out_head,
    SCALE: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out [N, H, D], and the base-2 logarithm of each query's sum of exponentials [H, N].

    `bounds` [2, N] int32: where each token's row begins and ends. A query sees `window` tokens before it at most.
    SCALE is the scale of the scores times log2(e).
    """
    head = tl.program_id(1).to(tl.int64)
    m, inside, high, row, first = _queries(bounds, tokens, window, BLOCK_M)
    low = tl.min(first)
    features = tl.arange(0, BLOCK_D)
    query = _lines(q + head * q_head, m, features, q_token, inside, DIM)
    k += (head // GROUP) * k_head
    v += (head // GROUP) * v_head
    if tl.min(row) == tl.max(row):
        accumulator, total, most = _forward(
            k, v, query, first, m, features, low, high, k_token, v_token,
            SCALE, DIM, BLOCK_M, BLOCK_N, BLOCK_D, False,
        )  # fmt: skip
    else:
        accumulator, total, most = _forward(
            k, v, query, first, m, features, low, high, k_token, v_token,
            SCALE, DIM, BLOCK_M, BLOCK_N, BLOCK_D, True,
        )  # fmt: skip
    where = out + head * out_head + m.to(tl.int64)[:, None] * out_token + features[None, :]
    mask = inside[:, None] & (features < DIM)[None, :]
    tl.store(where, (accumulator / total[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(exponents + head * tokens + m, most + tl.log2(total), mask=inside)


@triton.jit
def _slopes(query, key, value, gradient, exponent, product, visible, SCALE: tl.constexpr):
    """Weights [M, N] of keys for queries, and the slopes of the loss with respect to their scores."""
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * SCALE
    weight = tl.where(visible, tl.exp2(score - exponent[:, None]), 0.0)
    slope = tl.dot(gradient, tl.trans(value), input_precision="ieee")
    return weight, tl.where(visible, weight * (slope - product[:, None]), 0.0)


@triton.jit
def _backward_query(
    k, v, query, gradient, exponent, product, first, m, features, low, high, k_stride, v_stride,
    SCALE: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    MIXED: tl.constexpr,
):  # fmt: skip
    """Σ over the keys of slope · key [M, D]. What is not finite in a row's own keys shows in its slopes."""
    accumulator = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for begin in tl.range(low, high, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        key = _lines(k, n, features, k_stride, n < high, DIM)
        value = _lines(v, n, features, v_stride, n < high, DIM)
        _, slope = _slopes(query, key, value, gradient, exponent, product, _visible(first, m, n), SCALE)
        accumulator = tl.dot(slope.to(key.dtype), _shielded(key, MIXED), accumulator, input_precision="ieee")
    return accumulator


@triton.jit
def backward_query(
    q, k, v, out, grad, exponents, products, grad_q, bounds, tokens, window,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head, grad_token, grad_head,
    FACTOR: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries, as contiguous as `out`, and Σ_d grad · out of each [H, N].

    FACTOR is the scale of the scores, SCALE times log2(e).
    """
    head = tl.program_id(1).to(tl.int64)
    m, inside, high, row, first = _queries(bounds, tokens, window, BLOCK_M)
    low = tl.min(first)
    features = tl.arange(0, BLOCK_D)
    query = _lines(q + head * q_head, m, features, q_token, inside, DIM)
    gradient = _lines(grad + head * grad_head, m, features, grad_token, inside, DIM)
    output = _lines(out + head * out_head, m, features, out_token, inside, DIM)
    product = tl.sum(gradient.to(tl.float32) * output.to(tl.float32), 1)
    place = head * tokens + m
    exponent = tl.load(exponents + place, mask=inside, other=0.0)
    tl.store(products + place, product, mask=inside)
    k += (head // GROUP) * k_head
    v += (head // GROUP) * v_head
    if tl.min(row) == tl.max(row):
        accumulator = _backward_query(
            k, v, query, gradient, exponent, product, first, m, features, low, high, k_token, v_token,
            SCALE, DIM, BLOCK_M, BLOCK_N, BLOCK_D, False,
        )  # fmt: skip
    else:
        accumulator = _backward_query(
            k, v, query, gradient, exponent, product, first, m, features, low, high, k_token, v_token,
            SCALE, DIM, BLOCK_M, BLOCK_N, BLOCK_D, True,
        )  # fmt: skip
    where = grad_q + head * out_head + m.to(tl.int64)[:, None] * out_token + features[None, :]
    mask = inside[:, None] & (features < DIM)[None, :]
    tl.store(where, (accumulator * FACTOR).to(grad_q.dtype.element_ty), mask=mask)


@triton.jit
def _backward_key(
    q, grad, exponents, products, key, value, end, n, features, start, high, q_stride, grad_stride, of_key, of_value,
    SCALE: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Adds Σ over one head's queries of slope · query and of weight · gradient, [N, D] each."""
    for begin in tl.range(start, high, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        inside = m < high
        query = _lines(q, m, features, q_stride, inside, DIM)
        gradient = _lines(grad, m, features, grad_stride, inside, DIM)
        exponent = tl.load(exponents + m, mask=inside, other=0.0)
        product = tl.load(products + m, mask=inside, other=0.0)
        visible = (m[:, None] >= n[None, :]) & (m[:, None] < end[None, :])
        weight, slope = _slopes(query, key, value, gradient, exponent, product, visible, SCALE)
        if MIXED:  # what the shield takes away of a gradient has made its product so too
            weight = tl.where(visible & ~_finite(product)[:, None], float("nan"), weight)
        of_value = tl.dot(
            tl.trans(weight.to(gradient.dtype)), _shielded(gradient, MIXED), of_value, input_precision="ieee"
        )
        of_key = tl.dot(
            tl.trans(slope.to(query.dtype)), _shielded(query, MIXED), of_key, input_precision="ieee"
        )
    return of_key, of_value


@triton.jit
def backward_key(
    q, k, v, grad, exponents, products, grad_k, grad_v, bounds, tokens, window,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head, out_token, out_head,
    FACTOR: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values [N, G, D], from all heads that share them; after `backward_query`."""
    group = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * BLOCK_N
    n = start + tl.arange(0, BLOCK_N)
    features = tl.arange(0, BLOCK_D)
    inside = n < tokens
    key = _lines(k + group * k_head, n, features, k_token, inside, DIM)
    value = _lines(v + group * v_head, n, features, v_token, inside, DIM)
    row = tl.load(bounds + tokens + tl.minimum(n, tokens - 1))
    end = tl.minimum(row, n + window + 1)
    high = tl.max(end)
    mixed = tl.min(row) != tl.max(row)
    of_key = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    of_value = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for number in range(GROUP):
        head = group * GROUP + number
        queries, gradients = q + head * q_head, grad + head * grad_head
        line = head * tokens
        if mixed:
            of_key, of_value = _backward_key(
                queries, gradients, exponents + line, products + line, key, value, end, n, features, start, high,
                q_token, grad_token, of_key, of_value, SCALE, DIM, BLOCK_M, True,
            )  # fmt: skip
        else:
            of_key, of_value = _backward_key(
                queries, gradients, exponents + line, products + line, key, value, end, n, features, start, high,
                q_token, grad_token, of_key, of_value, SCALE, DIM, BLOCK_M, False,
            )  # fmt: skip
    where = group * out_head + n.to(tl.int64)[:, None] * out_token + features[None, :]
    mask = inside[:, None] & (features < DIM)[None, :]
    tl.store(grad_k + where, (of_key * FACTOR).to(grad_k.dtype.element_ty), mask=mask)
    tl.store(grad_v + where, of_value.to(grad_v.dtype.element_ty), mask=mask)
