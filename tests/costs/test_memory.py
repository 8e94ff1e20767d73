"""The memory model against real tensors: parts that must be exact are exact, the rest within stated bounds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from engine_fixture import initial_adapter
from families import EXPERTS, FAMILIES, random_model
from loratune.costs.correction import UNCORRECTED, Correction, Peak, corrected, fit_correction
from loratune.costs.execution import NF4_BYTES, ON_CPU, ON_CPU_PADDED, ON_CUDA
from loratune.costs.limits import Limits
from loratune.costs.memory import (
    MemoryEstimate,
    adapter_bytes,
    estimate_pack,
    tokens_in_flight,
    weight_bytes,
)
from loratune.costs.packing import Admission
from loratune.costs.planner import LivePack, Planner
from loratune.costs.step_time import StepTime
from loratune.lora.layout import find_targets
from loratune.lora.packed import PackedAdapters
from loratune.lora.segments import PackMember, Segment
from loratune.model.profile import profile_of
from loratune.values import ALL_LINEAR, HyperParameters, ModelProfile, Trial
from loratune.values.plain import from_plain, to_plain

GIB = 2**30
ROWS, LENGTH = 8, 32


def trial(r: int = 4, batch_size: int = ROWS, targets: tuple[str, ...] = ALL_LINEAR) -> HyperParameters:
    return HyperParameters(
        r=r, lora_alpha=2 * r, learning_rate=1e-3, batch_size=batch_size, target_modules=targets
    )


def llama_8b() -> ModelProfile:
    """Shapes of Llama-3.1-8B, built on the meta device."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        return profile_of(LlamaForCausalLM._from_config(config, dtype=torch.bfloat16), "llama-8b")


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


def saved_bytes(model: PreTrainedModel, profile: ModelProfile, pack: list[HyperParameters]) -> int:
    """Bytes that autograd keeps for the decoder's backward pass over every trial's batch, weights left out."""
    model.requires_grad_(False).eval()
    members = passengers_of(model, profile, pack)
    bounds = [sum(hp.batch_size for hp in pack[:i]) for i in range(len(pack) + 1)]
    segments = [
        Segment(member=member, start=start * LENGTH, stop=stop * LENGTH)
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

    tokens = torch.randint(0, profile.vocabulary, (bounds[-1], LENGTH))
    packed = PackedAdapters(model, [name for name, _, _ in profile.targets])
    with (
        packed.attached(),
        packed.route(segments, bounds[-1] * LENGTH),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(kept.values())


def estimated(profile: ModelProfile, pack: list[HyperParameters]) -> MemoryEstimate:
    return estimate_pack(profile, pack, max_length=LENGTH, micro_batch_tokens=2**20, execution=ON_CPU_PADDED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_persistent_parts_are_the_bytes_of_the_tensors(dtype: torch.dtype) -> None:
    model = random_model("llama", dtype)
    profile = profile_of(model, "llama")
    pack = [trial(4), trial(2, targets=("q_proj", "v_proj")), trial(16)]
    estimate = estimated(profile, pack)
    members = passengers_of(model, profile, pack)
    weights = [member.adapter.weights for member in members]
    optimiser = torch.optim.AdamW(weights)
    for member, tensor in zip(members, weights, strict=True):
        tensor.grad = member.gradient
    optimiser.step()
    moments = [state[name] for state in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert estimate.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimate.adapters == sum(tensor.nbytes for tensor in weights)
    assert estimate.gradients == sum(p.gradient.nbytes for p in members if p.gradient is not None)
    assert estimate.optimiser == sum(moment.nbytes for moment in moments)


def test_dora_keeps_its_outputs_and_has_magnitudes() -> None:
    model = random_model("llama")
    profile = profile_of(model, "llama")
    plain, dora = trial(), replace(trial(), use_dora=True)
    (member,) = passengers_of(model, profile, [dora])
    assert estimated(profile, [dora]).adapters == member.adapter.weights.nbytes
    more = saved_bytes(model, profile, [dora]) - saved_bytes(model, profile, [plain])
    told = estimated(profile, [dora]).activations - estimated(profile, [plain]).activations
    assert told == more > 0


RATIOS = {
    "llama": (1.0, 1.06),  # the first norm sees no gradient: 2 layers make that large
    "qwen2": (1.0, 1.06),
    "qwen3": (1.0, 1.06),
    "gemma": (1.0, 1.06),
    "mistral": (1.0, 1.06),
    "gpt2": (1.0, 1.12),
    "phi": (1.0, 1.14),
    "mixtral": (0.95, 1.05),
    "gemma3_text": (0.90, 1.0),  # past its window a mask makes attention keep all heads' keys
    "phi3": (0.85, 1.0),  # fused projections are split into copies
    "qwen2_moe": (0.90, 1.0),
    "gpt_neox": (1.0, 1.40),  # its GELU keeps one tensor, the model allows for four
}
"""Predicted over measured activations, lowest and highest."""


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_activations_are_what_autograd_saves(family: str, dtype: torch.dtype) -> None:
    model = random_model(family, dtype)
    profile = profile_of(model, family)
    low, high = RATIOS[family]
    assert low <= estimated(profile, [trial()]).activations / saved_bytes(model, profile, [trial()]) <= high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_layer_more_adds_exactly_what_autograd_saves_for_it(dtype: torch.dtype) -> None:
    def llama(layers: int) -> PreTrainedModel:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        return LlamaForCausalLM(config).to(dtype)

    pack = [trial(4, 3), trial(16, 2), trial(2, 3, ("q_proj", "down_proj"))]
    measured, predicted = [], []
    for layers in (2, 5):
        model = llama(layers)
        profile = profile_of(model, "llama")
        measured.append(saved_bytes(model, profile, pack))
        predicted.append(estimated(profile, pack).activations)
    assert measured[1] - measured[0] == predicted[1] - predicted[0]


def on_cuda(pack: list[HyperParameters], model: ModelProfile | None = None, **changes: Any) -> MemoryEstimate:
    facts: dict[str, Any] = {"max_length": 128, "micro_batch_tokens": 4096, "execution": ON_CUDA}
    return estimate_pack(model or llama_8b(), pack, **facts | changes)


def test_parts_add_up_and_grow_with_what_they_depend_on() -> None:
    small = on_cuda([trial(8, 4)] * 4)
    assert small.total == sum(small.parts.values())
    assert small.total == small.steady + small.transient + small.workspace + small.runtime
    assert small.weights == 16_060_522_496
    double = on_cuda([trial(8, 4)] * 8)
    assert (double.adapters, double.optimiser) == (2 * small.adapters, 2 * small.optimiser)
    assert on_cuda([trial(8, 4)] * 4, max_length=256).activations == 2 * small.activations
    assert small.steady - small.weights == 4 * adapter_bytes(llama_8b(), trial(8, 4), ON_CUDA)
    rarely = on_cuda([trial(8, 4)] * 4, supervised=0.125)
    assert rarely.logits < small.logits
    assert rarely.activations == small.activations


def test_recomputation_saves_what_it_says() -> None:
    """Per token of an 8B Llama: norms' float32 copies and activated gates go, the residual stream comes."""
    kept = on_cuda([trial(8, 32)], execution=replace(ON_CUDA, recompute=False)).activations
    saved = on_cuda([trial(8, 32)]).activations
    assert (kept - saved) / 4096 == 4 * 65 * 4096 + 2 * 32 * 14336 - 2 * 2 * 32 * 4096


def test_a_rank_pattern_counts_each_layer_with_its_own_rank() -> None:
    model = llama_8b()
    name, inputs, outputs = model.targets[0]
    patterned = replace(trial(8), rank_pattern=((name, 24),))
    assert adapter_bytes(model, patterned, ON_CPU_PADDED) - adapter_bytes(
        model, trial(8), ON_CPU_PADDED
    ) == 16 * 16 * (inputs + outputs)
    copied = adapter_bytes(model, patterned, ON_CUDA) - adapter_bytes(model, trial(8), ON_CUDA)
    assert copied == 18 * 16 * (inputs + outputs), "a bfloat16 copy of the weights"


def test_four_bit_bases_hold_their_linear_layers_in_nf4() -> None:
    """QLoRA's figure: 4.127 bits per parameter of the linear layers; embeddings, head and norms stay."""
    assert pytest.approx(4.127, abs=0.001) == 8 * NF4_BYTES
    model = llama_8b()
    linear = sum(inputs * outputs for _, inputs, outputs in model.targets)
    rest = 2 * 128256 * 4096 + 65 * 4096
    assert linear + rest == model.parameters
    largest = 4096 * 14336
    four_bit = replace(model, packed_parameters=linear, largest_packed=largest)
    assert weight_bytes(four_bit) == round(linear * NF4_BYTES + 2 * rest)
    assert weight_bytes(replace(four_bit, doubly_packed=False)) == round(linear * 4.5 / 8 + 2 * rest)
    packed, whole = on_cuda([trial(8, 4)], four_bit), on_cuda([trial(8, 4)])
    assert packed.activations == whole.activations
    # a layer is unpacked to be used, its scales before it
    assert packed.workspace - whole.workspace == 2 * largest + 4 * largest / 64


def test_micro_batches_bound_what_is_in_flight() -> None:
    pack = [trial(4, 16)] * 8
    assert tokens_in_flight(pack, 100, 2048, ON_CPU_PADDED) == 2048
    assert tokens_in_flight(pack, 3000, 2048, ON_CPU_PADDED) == 3000  # one row always goes in
    assert tokens_in_flight([trial(4, 2)], 100, 2048, ON_CPU_PADDED) == 200
    # flat: 12,800 tokens are 5 micro-batches of 2,560 tokens and at most a row more, filled up to sixteenths of 4,096
    assert tokens_in_flight(pack, 100, 3000, ON_CUDA, recorded=16384) == 2816
    assert tokens_in_flight(pack, 100, 3000, ON_CUDA) == 2688  # to 128 where nothing is recorded
    assert tokens_in_flight([trial(4, 2)], 100, 2048, ON_CUDA) == 256
    bounded = [on_cuda([trial(4, b)], max_length=64, micro_batch_tokens=2048) for b in (32, 256)]
    assert bounded[0].activations <= bounded[1].activations <= 1.01 * bounded[0].activations


def test_verdicts_turn_at_eight_per_cent_below_the_limit() -> None:
    nothing = dict.fromkeys(MemoryEstimate.__dataclass_fields__, 0)
    estimate = MemoryEstimate(**nothing | {"weights": 50, "optimiser": 30, "activations": 12})
    assert [estimate.verdict(limit) for limit in (91, 92, 99, 100)] == [
        "does not fit",
        "tight",
        "tight",
        "fits",
    ]
    assert [estimate.fits(limit) for limit in (99, 100)] == [False, True]


def limits(**changes: Any) -> Limits:
    facts: dict[str, Any] = {"max_length": 512, "micro_batch_tokens": 2048, "device_bytes": 40 * GIB}
    return Limits(model=llama_8b(), execution=ON_CUDA, **facts | changes)


def test_limits_are_the_last_values_that_fit() -> None:
    subject, recipe = limits(), trial(16, 8)
    row_by_row = replace(subject, micro_batch_tokens=512)
    trials = subject.largest_pack(recipe, 256)
    assert trials > 1
    assert all(row_by_row.fits([recipe] * count) == (count <= trials) for count in range(1, trials + 20))
    assert subject.largest_pack(recipe, 2) == 2
    rank = subject.largest_rank(recipe, trials=4)
    assert 16 < rank < 1024
    fitting = [row_by_row.fits([replace(recipe, r=r)] * 4) for r in range(1, 1025)]
    assert fitting == [r <= rank for r in range(1, 1025)]
    tokens = subject.largest_micro_batch([recipe] * 4)
    crowd = [replace(recipe, batch_size=1000)] * 4
    assert replace(subject, micro_batch_tokens=tokens).fits(crowd)
    assert not replace(subject, micro_batch_tokens=tokens + 512).fits(crowd)
    batch = subject.largest_batch(recipe)
    whole = replace(subject, micro_batch_tokens=2**30)
    assert whole.fits([replace(recipe, batch_size=batch)])
    assert not whole.fits([replace(recipe, batch_size=batch + 1)])


@pytest.mark.parametrize("device", [40, 60, 80, 140])
def test_the_largest_micro_batch_fits_where_a_step_fills_it(device: int) -> None:
    """Longer steps are cut into equal parts, which are smaller than the largest allowed."""
    subject, recipe = limits(device_bytes=device * GIB), trial(16, 8)
    tokens = subject.largest_micro_batch([recipe])
    full = replace(recipe, batch_size=tokens // 512)
    assert replace(subject, micro_batch_tokens=tokens).fits([full])
    more = replace(recipe, batch_size=tokens // 512 + 1)
    assert not replace(subject, micro_batch_tokens=tokens + 512).fits([more])


def test_what_adapters_may_take_is_what_is_left() -> None:
    """Trials whose adapters fill the room fit together; with one more they do not."""
    subject, recipe = limits(), trial(16, 8)
    each = subject.adapter_bytes(recipe)
    count = subject.room([recipe] * 64) // each
    assert subject.fits([recipe] * count)
    assert not subject.fits([recipe] * (count + 1))


@pytest.mark.parametrize(("device", "micro_batch", "rank", "batch"), [(80, 8192, 64, 4), (40, 12288, 16, 8)])
def test_what_is_left_of_a_pack_fits_too(device: int, micro_batch: int, rank: int, batch: int) -> None:
    """Fewer rows may be in one micro-batch that is larger than each of two."""
    subject = limits(device_bytes=device * GIB, micro_batch_tokens=micro_batch, max_length=128)
    recipe = trial(rank, batch)
    for trials in range(1, 40):
        together = min(trials, subject.room([recipe] * trials) // subject.adapter_bytes(recipe))
        for left in range(1, together + 1):
            assert subject.estimate([recipe] * left).fits(subject.device_bytes)


@pytest.mark.parametrize("seed", range(8))
def test_plans_fit_by_the_model_that_made_them(seed: int) -> None:
    """Mixed trials on devices that hold the largest just so; it runs alone, and the others no fuller than they fit."""
    random = np.random.default_rng(seed)
    packs = [trial(int(random.choice([4, 16, 64, 128])), int(random.choice([1, 4, 16]))) for _ in range(12)]
    tight = limits(device_bytes=1, micro_batch_tokens=8192, max_length=128)
    alone = max(tight.fullest([each]).total for each in packs)
    subject = replace(tight, device_bytes=round(alone * random.uniform(1.0, 1.3)))
    times = StepTime(points=((1000, 0.2), (8000, 0.6)), micro_batch_tokens=8192)
    planner = Planner(limits=subject, times=times, rows=500, tokens=500 * 60, slots=8)
    (plan,) = planner.plan([Trial(hyper_parameters=each, seed=i) for i, each in enumerate(packs)]).parts
    memory = [subject.adapter_bytes(each) for each in packs]
    admission = Admission(memory, plan.order, slots=plan.slots, room=plan.memory)
    live: list[int] = []
    while not admission.empty or live:
        while (number := admission.next()) is not None:
            live.append(number)
        together = subject.estimate([packs[number] for number in live])
        assert len(live) == 1 or together.fits(subject.device_bytes)
        admission.ended(live.pop(int(random.integers(len(live)))))


def planner_of(subject: Limits, *, evaluated_tokens: int = 0, spread: float = 0.0) -> Planner:
    times = StepTime(points=((1000, 0.2), (16000, 0.9)), micro_batch_tokens=subject.micro_batch_tokens)
    return Planner(
        limits=subject,
        times=times,
        rows=1000,
        tokens=50_000,
        slots=12,
        evaluated_tokens=evaluated_tokens,
        spread=spread,
    )


def pack_of(recipe: HyperParameters, count: int) -> LivePack:
    return LivePack((recipe,) * count, 50.0 * count * recipe.batch_size)


def step_of(subject: Limits, pack: LivePack) -> MemoryEstimate:
    return subject.fullest(pack.trials, step_tokens=pack.tokens)


SEARCH = {"device_bytes": 140 * GIB, "micro_batch_tokens": 65536, "max_length": 100}


def test_the_peak_of_a_search_is_that_of_its_largest_pack() -> None:
    """With a step's tokens in flight; not of all trials together, and not of one alone."""
    subject = replace(limits(**SEARCH), execution=ON_CPU)
    planner = planner_of(subject)
    packs = [pack_of(trial(r, 16), count) for r, count in ((4, 4), (64, 12), (16, 1))]
    assert planner.peak_bytes(packs) == step_of(subject, packs[1]).total
    assert planner.peak_bytes(packs) == max(planner.peak_bytes([pack]) for pack in packs)
    assert planner.peak_bytes(packs[:1]) > subject.estimate(packs[0].trials[:1]).steady


def test_steps_of_uneven_rows_are_larger_than_their_mean() -> None:
    """Fewer rows vary more: log-normal lengths, the largest of 300 steps."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.0, 0.7, 20_000), 1, 400)
    spread = float(lengths.std() / lengths.mean())
    subject = replace(limits(**SEARCH), execution=ON_CPU)
    for rows in (16, 32, 128):
        pack = LivePack((trial(8, rows),), rows * float(lengths.mean()))
        largest = max(random.choice(lengths, rows).sum() for _ in range(300))
        expected = subject.fullest(pack.trials, step_tokens=largest).transient
        predicted = planner_of(subject, spread=spread).peak_bytes([pack])
        even = planner_of(subject).peak_bytes([pack])
        steady = step_of(subject, pack).total - step_of(subject, pack).transient
        assert predicted - steady == pytest.approx(expected, rel=0.15)
        assert predicted > even


def test_what_recorded_steps_hold_stands_beside_others_and_evaluations() -> None:
    subject = limits(**SEARCH)
    small, recorded, larger = (pack_of(trial(8, rows), 8) for rows in (2, 4, 100))
    other = pack_of(trial(32, 4), 8)
    assert recorded.tokens < subject.recorded_tokens < larger.tokens
    planner = planner_of(subject)
    kept = step_of(subject, recorded).transient
    assert planner.peak_bytes([recorded]) == step_of(subject, recorded).total
    assert planner.peak_bytes([recorded, small, recorded]) == step_of(subject, recorded).total
    # the first step of another kind is not recorded, as it compiles
    assert planner.peak_bytes([recorded, other]) == step_of(subject, other).total + kept
    assert planner.peak_bytes([recorded, larger]) >= step_of(subject, larger).total + kept
    beyond = subject.evaluating(131_072) + subject.execution.evaluation_slack
    evaluating = planner_of(subject, evaluated_tokens=131_072)
    assert evaluating.peak_bytes([recorded]) == step_of(subject, recorded).total + beyond


def test_the_peak_of_a_search_never_falls_as_steps_grow() -> None:
    """Least of all where the largest are just not recorded any more."""
    subject = limits(**SEARCH)
    for tokens in (0, 8_192, 131_072):
        planner = planner_of(subject, evaluated_tokens=tokens, spread=0.5)
        peaks = [planner.peak_bytes([pack_of(trial(8, rows), 4)]) for rows in range(1, 40)]
        assert peaks == sorted(peaks)


def test_on_a_cpu_nothing_is_recorded() -> None:
    """So the peak of packs one after the other is the largest of theirs."""
    subject = replace(limits(device_bytes=140 * GIB, max_length=100), execution=ON_CPU)
    packs = [pack_of(trial(8, rows), 8) for rows in (1, 4, 20)]
    planner = planner_of(subject)
    assert planner.peak_bytes(packs) == max(planner.peak_bytes([pack]) for pack in packs)


def test_nothing_fits_on_a_small_card_and_ranks_stop_at_the_layers() -> None:
    tiny = limits(device_bytes=8 * GIB)
    assert (
        tiny.largest_pack(trial(16), 9) == tiny.largest_rank(trial(16)) == tiny.largest_batch(trial(16)) == 0
    )
    assert replace(tiny, device_bytes=4000 * GIB).largest_rank(trial(16)) == 1024


def test_a_correction_is_found_again_and_applied() -> None:
    """A device that takes 1.3 times the short-lived bytes and 100 MiB less for libraries, measured twice."""
    packs = [[trial(8, 4)], [trial(8, 16)]]
    estimates = [on_cuda(pack) for pack in packs]
    truth = [e.total + round(0.3 * e.transient) - 100 * 2**20 for e in estimates]
    found = fit_correction([e.peak(measured) for e, measured in zip(estimates, truth, strict=True)])
    assert found.scale == pytest.approx(1.3, rel=1e-6)
    assert found.fixed == pytest.approx(-100 * 2**20, rel=1e-3)
    later = on_cuda([trial(64, 32)], correction=found)
    plain = on_cuda([trial(64, 32)])
    assert later.total == pytest.approx(plain.total + 0.3 * plain.transient - 100 * 2**20, rel=1e-6)
    assert later.steady == plain.steady
    assert from_plain(Correction, to_plain(found)) == found


def peak(transient: int, measured: int) -> Peak:
    return Peak(steady=1000, runtime=500, transient=transient, measured=measured)


def test_peaks_of_about_one_size_are_all_covered() -> None:
    """The largest may be measured where less was in flight."""
    peaks = [
        Peak(steady=10**10, runtime=10**9, transient=7_360_000_000, measured=18_600_000_000),
        Peak(steady=10**10, runtime=10**9, transient=7_100_000_000, measured=25_700_000_000),
    ]
    found = fit_correction(peaks)
    for peak in peaks:
        assert (
            peak.steady + peak.runtime + found.scale * peak.transient + found.fixed
            >= 0.999999 * peak.measured
        )


def test_a_correction_never_falls_below_what_was_measured() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        peaks = [peak(t, 1500 + round(t * random.uniform(0.3, 3))) for t in (1000, 2500, 5000)]
        found = fit_correction(peaks)
        assert 0.5 <= found.scale <= 2.0
        for each in peaks:
            assert (
                each.steady + each.runtime + found.fixed + found.scale * each.transient >= each.measured - 1
            )


def test_corrections_from_little() -> None:
    assert fit_correction([]) == UNCORRECTED
    assert fit_correction([peak(1000, 2300)]) == Correction(fixed=-200)
    assert fit_correction([peak(1000, 1600)]) == Correction(
        fixed=-500
    )  # the process cannot take less than nothing
    assert fit_correction([peak(1000, 3000)]) == Correction(scale=1.5)
    assert fit_correction([peak(1000, 5000)]) == Correction(scale=2.0, fixed=1500)


def test_after_running_out_of_memory_the_same_pack_is_predicted_above_what_it_needed() -> None:
    before = Correction(scale=1.2, fixed=100)
    failed = peak(1000, 0)
    after = corrected(before, 3000, failed)
    assert after.fixed == before.fixed
    assert 1500 + after.fixed + after.scale * 1000 == pytest.approx(1.01 * 3000)
    assert corrected(before, 2000, failed) == before  # predicted above that already: something else is wrong
    beyond = corrected(before, 50_000, failed)  # more than any allocator wastes
    assert beyond.scale == before.scale
    assert 1500 + beyond.fixed + beyond.scale * 1000 == pytest.approx(1.01 * 50_000, abs=1)
