"""A small Llama and rows of one length, for counting what whole steps hold in memory."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from engine_fixture import initial_adapter
from loratune.data.table import TokenTable
from loratune.lora.layout import find_targets
from loratune.lora.packed import PackedAdapters
from loratune.lora.segments import PackMember, Segment
from loratune.model.base import BaseModel
from loratune.model.profile import profile_of
from loratune.values import ALL_LINEAR, HyperParameters, ModelProfile

LENGTH = 32


def base(
    dtype: torch.dtype, vocabulary: int, hidden: int = 96, inner: int = 256, layers: int = 4
) -> BaseModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    return BaseModel(model=model, tokenizer=None, profile=profile_of(model, "random"))


def table(vocabulary: int, supervised: int) -> TokenTable:
    """Rows of one length, their last tokens supervised."""
    flags = (np.arange(LENGTH) >= LENGTH - supervised).tolist()
    rows = np.random.default_rng(0).integers(0, vocabulary, (64, LENGTH)).tolist()
    return TokenTable.from_rows([(row, flags) for row in rows])


def trial(r: int, batch_size: int, targets: tuple[str, ...] = ALL_LINEAR) -> HyperParameters:
    return HyperParameters(
        r=r, lora_alpha=r, learning_rate=1e-3, batch_size=batch_size, epochs=2.0, target_modules=targets
    )


def passengers_of(
    model: PreTrainedModel, profile: ModelProfile, pack: list[HyperParameters]
) -> list[PackMember]:
    return [
        PackMember(
            initial_adapter(
                hp,
                find_targets(profile.targets, hp.target_modules),
                seed=seed,
                base_dtype=model.dtype,
                device=torch.device("cpu"),
            ),
            trainable=True,
        )
        for seed, hp in enumerate(pack)
    ]


def saved_bytes(
    model: PreTrainedModel, profile: ModelProfile, pack: list[HyperParameters], length: int = LENGTH
) -> int:
    """Bytes that autograd keeps for the decoder's backward pass over every trial's batch, weights left out."""
    model.requires_grad_(False).eval()
    members = passengers_of(model, profile, pack)
    bounds = [sum(hp.batch_size for hp in pack[:i]) for i in range(len(pack) + 1)]
    segments = [
        Segment(member=member, start=start * length, stop=stop * length)
        for member, start, stop in zip(members, bounds, bounds[1:], strict=False)
    ]
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    tokens = torch.randint(0, profile.vocabulary, (bounds[-1], length))
    packed = PackedAdapters(model, [name for name, _, _ in profile.targets])
    with (
        packed.attached(),
        packed.route(segments, bounds[-1] * length),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(kept.values())
