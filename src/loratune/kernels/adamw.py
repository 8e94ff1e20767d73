"""A Triton kernel that takes one AdamW step for all trials of a pack: one launch, whatever their sizes.

Each trial has a row of addresses, and numbers of its own: learning rate, decay, bias corrections, the factor that
clips its gradient, whether its step is skipped. Every number is read and written by one program. Knows nothing of
torch modules, schedules or slots.
"""

import triton
import triton.language as tl

# Columns of a trial's row, int64.
COLUMNS = 5
WEIGHTS, GRADIENT, AVERAGE, SQUARE, SIZE = (tl.constexpr(column) for column in range(COLUMNS))
_COLUMNS = tl.constexpr(COLUMNS)
# Columns of a trial's numbers, float32.
NUMBERS = 3
DECAY, STEP_SIZE, CORRECTION = (tl.constexpr(number) for number in range(NUMBERS))
_NUMBERS = tl.constexpr(NUMBERS)


@triton.jit
def _vector(row, column):
    """A flat float32 vector, which begins at a multiple of 16 bytes."""
    return tl.multiple_of(tl.load(row + column).to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def step(
    table, numbers, factors, skipped,
    BETA1: tl.constexpr, REST1: tl.constexpr, BETA2: tl.constexpr, REST2: tl.constexpr, EPS: tl.constexpr,
    BLOCK: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """One step of the trial of the second axis on a part of its numbers; its gradient is emptied.

    `numbers` [trials, NUMBERS]: learning rate times decay; learning rate over the first bias correction; the square
    root of the second. `factors` [trials] clip the gradients. Where `skipped` [trials] is not zero weights and moments
    stay. REST1 and REST2 are 1 - BETA1 and 1 - BETA2, not rounded twice.
    """
    trial = tl.program_id(1)
    row = table + trial * _COLUMNS
    size = tl.load(row + SIZE)
    begin = tl.program_id(0).to(tl.int64) * BLOCK * TURNS
    if begin >= size:
        return
    gradients = _vector(row, GRADIENT)
    weights, averages, squares = _vector(row, WEIGHTS), _vector(row, AVERAGE), _vector(row, SQUARE)
    own = numbers + trial * _NUMBERS
    decay, size_of_step, correction = (
        tl.load(own + DECAY),
        tl.load(own + STEP_SIZE),
        tl.load(own + CORRECTION),
    )
    factor = tl.load(factors + trial)
    taken = tl.load(skipped + trial) == 0
    for turn in range(TURNS):
        place = begin + turn * BLOCK + tl.arange(0, BLOCK)
        inside = place < size
        if taken:
            gradient = tl.load(gradients + place, mask=inside, other=0.0) * factor
            weight = tl.load(weights + place, mask=inside, other=0.0)
            average = BETA1 * tl.load(averages + place, mask=inside, other=0.0) + REST1 * gradient
            square = BETA2 * tl.load(squares + place, mask=inside, other=0.0) + REST2 * gradient * gradient
            weight -= decay * weight
            slope = tl.div_rn(tl.sqrt_rn(square), correction) + EPS
            weight -= tl.div_rn(size_of_step * average, slope)
            tl.store(weights + place, weight, mask=inside)
            tl.store(averages + place, average, mask=inside)
            tl.store(squares + place, square, mask=inside)
        tl.store(gradients + place, tl.zeros((BLOCK,), tl.float32), mask=inside)
