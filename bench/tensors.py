"""What a prediction of memory is held against: the bytes of tensors alone."""

from loratune.costs.memory import MemoryEstimate


def tensor_bytes(estimate: MemoryEstimate) -> int:
    """What `torch.cuda.max_memory_allocated` counts of a predicted pack."""
    return estimate.steady + estimate.activations + estimate.logits + estimate.backward + estimate.workspace
