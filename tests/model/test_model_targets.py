"""Which layers are adapted: the same as PEFT's choice, and clear refusals."""

import pytest
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from families import EXPERTS, FAMILIES, random_model
from loratune.errors import HyperParameterError, ModelError
from loratune.maths.targets import check_rank, select_targets, short_names
from loratune.model.profile import adaptable_layers, expert_parameters, profile_of
from loratune.values import ALL_LINEAR


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", ["all-linear", "first name"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_layers_and_shapes_are_those_that_peft_adapts(family: str, wanted: str) -> None:
    model = random_model(family)
    name = short_names(adaptable_layers(model))[0]
    ours = select_targets(adaptable_layers(model), ALL_LINEAR if wanted == "all-linear" else (name,))
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=wanted if wanted == "all-linear" else [name])
    )
    theirs = tuple(
        (path.removeprefix("base_model.model."), layer.in_features, layer.out_features)
        for path, layer in adapted.named_modules()
        if isinstance(layer, LoraLayer)
    )
    assert ours == theirs
    assert len(ours) >= 2


@pytest.mark.parametrize("family", EXPERTS)
def test_of_a_mixture_of_experts_only_attention_is_adapted(family: str) -> None:
    targets = adaptable_layers(random_model(family))
    assert short_names(targets) == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert len(targets) == 8


def test_the_parameters_of_experts_are_counted() -> None:
    """Gate, up and down projections of every expert of two layers, the shared ones of qwen2_moe included."""
    assert expert_parameters(random_model("mixtral")) == 2 * 4 * 3 * 32 * 48
    assert expert_parameters(random_model("qwen2_moe")) == 2 * (4 + 1) * 3 * 32 * 16
    assert expert_parameters(random_model("llama")) == 0
    assert profile_of(random_model("llama"), "llama").notes == ()
    mixture = profile_of(random_model("mixtral"), "mixtral")
    (note,) = mixture.notes
    assert (
        f"the experts, {2 * 4 * 3 * 32 * 48 / mixture.parameters:.0%} of the parameters, stay frozen" in note
    )


def test_full_names_and_suffixes_mean_what_they_mean_to_peft() -> None:
    model = random_model("llama")
    full = select_targets(adaptable_layers(model), ("model.layers.1.self_attn.q_proj",))
    assert full == (("model.layers.1.self_attn.q_proj", 32, 32),)
    some = select_targets(adaptable_layers(model), ("mlp.up_proj", "k_proj"))
    assert [name for name, _, _ in some] == [
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.k_proj",
        "model.layers.1.mlp.up_proj",
    ]


def test_a_name_that_matches_nothing_is_answered_with_the_names_that_exist() -> None:
    with pytest.raises(
        ModelError, match=r"query, proj matches none; choose from q_proj, k_proj, .*down_proj\.$"
    ):
        select_targets(adaptable_layers(random_model("llama")), ("q_proj", "query", "proj"))
    with pytest.raises(ModelError, match="lm_head matches none"):
        select_targets(adaptable_layers(random_model("qwen2")), ("lm_head",))


def test_a_rank_above_the_smallest_side_names_the_layer() -> None:
    targets = adaptable_layers(random_model("llama"))
    check_rank(targets, 16)
    with pytest.raises(
        HyperParameterError, match=r"at most 16, .*layers\.0\.self_attn\.k_proj \(32 to 16\), got 17"
    ):
        check_rank(targets, 17)
