"""How the engine holds a pack in memory, in numbers: every constant of the memory model stands here.

Known are the ways that `engine.machinery` chooses from: flat rows or padded ones, layers as transformers runs them or
compiled, adapters segment by segment or by Triton kernels. Correct a constant here when `bench/memory.py` shows that it
is off; a `Correction` holds what a single machine deviates by. Knows no model and no pack.
"""

from dataclasses import dataclass, replace
from typing import Literal

Device = Literal["cpu", "cuda"]

MIB = 2**20
FLOAT32 = 4
OPTIMISER_VECTORS = 2
"""AdamW's moments, float32, beside weights and gradients."""
NF4_BLOCK = 64
NF4_BYTES = 0.5 + 1 / NF4_BLOCK + FLOAT32 / (NF4_BLOCK * 256)
"""bitsandbytes' NF4 with double quantisation, per parameter: 4 bits; for every 64 parameters a scale of
8 bits; for every 256 scales a float32 (QLoRA, Dettmers et al. 2023, section 3). 0.5159 in all."""
NF4_PLAIN_SCALES_BYTES = 0.5 + FLOAT32 / NF4_BLOCK
"""The same where scales are not quantised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What one way of running keeps in memory."""

    device: Device
    flat: bool
    """Rows one after another without padding; else rectangles as wide as their longest row."""
    token_multiple: int = 1
    """A flat micro-batch is filled up to a multiple of this; see `sizes.line_tokens`."""
    collects_attention: bool = False
    """Whether an adapted layer behind the attention keeps a copy of the attention's output."""
    float32_attention: bool = False
    """Whether queries, keys, values and output are kept in float32 whatever the base's type."""
    recompute: bool
    """Whether cheap element-wise results are computed again in the backward pass instead of being kept:
    the float32 copies of norms, the activated gate of an MLP, its product with `up`."""
    keeps_attention: bool = False
    """Whether the attention of a layer that runs again in the backward pass is kept instead of being computed again."""
    keeps_product: bool = True
    """Whether the input of an adapted `down_proj` is kept after all, with `recompute`."""
    shared_inner: bool
    """Whether the inner products A·x of every adaptable layer are as wide as the widest trial's, in the
    base's type and rounded up to a block of ranks; else each trial's own, in float32."""
    rank_blocks: tuple[int, ...] = (16, 64, 128)
    """Sizes of ranks for `shared_inner`: the smallest of these that holds the rank, or several of the last."""
    copies_weights: bool = False
    """Whether the products read a copy of the adapters in the base's type, where that is smaller than float32."""
    records: bool = False
    """Whether small micro-batches are recorded as CUDA graphs, which keep what they need between steps."""
    time_again: float = 0.45
    """Share of a step's time that computing all layers' activations again adds: less than a forward pass, which has
    half of the products, takes of the whole."""
    logits_at_once: int
    """Logits that the head holds at a time."""
    likelihoods: int
    """float32 numbers per logit alive while the loss and its slope are computed."""
    backward_wide: float
    """Gradients of the width of the widest layer alive at once in a layer's backward pass, base's type."""
    backward_hidden: float
    """Bytes per token and hidden feature alive at once in a norm's backward pass."""
    float32_input: bool
    """Whether the backward pass of a low-rank product makes a float32 copy of one segment's wide input and
    gradient where the base's type is smaller."""
    workspace: int
    """Bytes that the libraries of matrix products set aside, and the tables of the kernels."""
    allocator: float
    """Share of short-lived memory that the allocator holds unused."""
    evaluation_slack: int = 0
    """Bytes more that it holds in pieces where rows are evaluated between steps."""
    runtime: int
    """Libraries, and on a GPU the CUDA context, in bytes."""

    def rank_block(self, r: int) -> int:
        """The width that the inner products of a trial of rank r take."""
        block = next((block for block in self.rank_blocks if r <= block), self.rank_blocks[-1])
        return -(-r // block) * block

    def adapter_bytes(self, bytes_per_parameter: float) -> float:
        """Bytes for each parameter of an adapter's weights, on a base with this number of bytes for each of its own."""
        copied = self.copies_weights and bytes_per_parameter < FLOAT32
        return FLOAT32 + (bytes_per_parameter if copied else 0)


ON_CPU_PADDED = Execution(
    device="cpu",
    flat=False,
    recompute=False,
    shared_inner=False,
    logits_at_once=2**24,
    likelihoods=2,
    backward_wide=2.0,
    backward_hidden=20.5,
    float32_input=True,
    workspace=0,
    # the heap of the C library fragments: peaks grew by 1.5 to 1.6 times the tensors' bytes (SmolLM2's shape,
    # 256 to 2,048 tokens, Linux)
    allocator=0.55,
    # of whole searches of SmolLM2, although much is given back before large evaluations: .2 to .6 GiB
    evaluation_slack=512 * MIB,
    runtime=640 * MIB,
)
"""Layer by layer on rectangles, adapters segment by segment: for models that do not take flat rows."""

ON_CPU = replace(ON_CPU_PADDED, flat=True, token_multiple=32, collects_attention=True, float32_attention=True)
"""The same on flat rows. Attention runs in float32 over rows of one length at a time and collects their outputs."""

ON_CUDA = Execution(
    device="cuda",
    flat=True,
    token_multiple=128,
    recompute=True,
    keeps_attention=True,
    shared_inner=True,
    copies_weights=True,
    records=True,
    logits_at_once=2**27,
    likelihoods=0,
    backward_wide=5.0,
    backward_hidden=12.0,
    float32_input=False,
    workspace=136 * MIB,
    # with segments that grow: 1 to 2 % on H200s
    allocator=0.02,
    # a chunk of float32 logits once more, as there is rarely room for one in a piece (bench/evaluation_memory.py)
    evaluation_slack=FLOAT32 * 2**27,
    runtime=840 * MIB,
)
"""Compiled layers on flat rows, Triton kernels for the adapters."""

ON_CUDA_EAGER = replace(
    ON_CUDA, recompute=False, records=False, likelihoods=2, backward_hidden=20.5, allocator=0.05
)
"""The same without compilation: everything that autograd saves is kept."""

ON_CUDA_PLAIN = replace(
    ON_CPU_PADDED,
    device="cuda",
    logits_at_once=ON_CUDA.logits_at_once,
    workspace=40 * MIB,
    allocator=0.05,
    evaluation_slack=ON_CUDA.evaluation_slack,
    runtime=ON_CUDA.runtime,
)
"""What runs on a CPU, on a GPU: old cards, float64, models that do not take flat rows."""
