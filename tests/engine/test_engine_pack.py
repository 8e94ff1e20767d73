"""The pack loop: entering, reading, ending, stopping early, refilling, and leaving the model clean."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isfinite

import numpy as np
import pytest
import torch

from engine_fixture import REFERENCE, engine, labelled_table, tiny_llama, trial
from loratune.costs.measuring import forward_rate, measure_step
from loratune.data.batches import MicroBatch
from loratune.data.table import TokenTable
from loratune.engine.body import compiled
from loratune.engine.evaluate import Evaluation
from loratune.engine.live import EarlyStopping
from loratune.engine.loop import PackProgress
from loratune.engine.machinery import Paths
from loratune.engine.pack import PackEngine
from loratune.engine.portions import Cuts
from loratune.engine.selfcheck import random_table
from loratune.engine.slot import Slot
from loratune.errors import ResourceError
from loratune.lora.layout import Adapter
from loratune.values import CurvePoint, Trial, TrialResult, TrialState

TRAIN, VALIDATION = random_table(97, rows=24), random_table(97, rows=10, seed=1)
LABELS = [[5, 6, 90], [7, 90], [8, 9, 90]]


def packs(**changes: object) -> PackEngine:
    facts: dict[str, object] = {"validation_subset_size": 4, "evaluations_per_trial": 3}
    return engine(tiny_llama(torch.float32), TRAIN, VALIDATION, **(facts | changes))


def supply(trials: list[Trial]) -> Callable[[], Trial | None]:
    waiting = list(trials)
    return lambda: waiting.pop(0) if waiting else None


def run(
    subject: PackEngine, trials: list[Trial], slots: int = 2, **options: object
) -> dict[int, tuple[TrialResult, Adapter]]:
    """Results by seed."""
    found: dict[int, tuple[TrialResult, Adapter]] = {}

    def keep(result: TrialResult, adapter: Adapter) -> None:
        found[result.trial.seed] = (result, adapter)

    subject.run(supply(trials), slots=slots, on_result=keep, **options)  # type: ignore[arg-type]
    return found


def test_slots_are_refilled_at_the_next_step() -> None:
    seen: list[list[tuple[int, int]]] = []

    def watch(progress: PackProgress) -> None:
        seen.append([(slot.trial.seed, slot.step) for slot in progress.slots])

    found = run(
        packs(),
        [trial(0, batch_size=12), trial(1, batch_size=6), trial(2, batch_size=12), trial(3, batch_size=24)],
        on_progress=watch,
    )
    assert seen == [[(0, 1), (1, 1)], [(0, 2), (1, 2)], [(1, 3), (2, 1)], [(1, 4), (2, 2)], [(3, 1)]]
    assert sorted(found) == [0, 1, 2, 3]
    assert all(result.state is TrialState.COMPLETE for result, _ in found.values())


def test_a_result_may_bring_new_trials() -> None:
    waiting = [trial(0, batch_size=24)]
    ended: list[int] = []

    def more(result: TrialResult, adapter: Adapter) -> None:
        ended.append(result.trial.seed)
        if result.trial.seed < 2:
            waiting.append(trial(result.trial.seed + 1, batch_size=24))

    packs().run(lambda: waiting.pop() if waiting else None, slots=1, on_result=more)
    assert ended == [0, 1, 2]


def test_results_do_not_depend_on_company() -> None:
    trials = [trial(0), trial(1, r=8, batch_size=7), trial(2, lora_dropout=0.2, epochs=2.0)]
    together = run(packs(), trials, slots=3)
    for each in trials:
        (result, _), (alone, _) = together[each.seed], run(packs(), [each])[each.seed]
        assert result.nll == pytest.approx(alone.nll, rel=1e-5)
        assert result.train_nll == pytest.approx(alone.train_nll, rel=1e-5)
        assert [p.validation_nll for p in result.curve] == pytest.approx(
            [p.validation_nll for p in alone.curve], rel=1e-5
        )


def test_what_a_result_holds() -> None:
    subject = packs(cost=lambda _: 2.5)
    result, adapter = run(subject, [trial(4, fraction=0.5, epochs=2.0)])[4]
    assert result.steps == 6
    assert [point.step for point in result.curve] == [2, 4, 6]
    assert [point.fraction for point in result.curve] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert result.trained_tokens == 2 * TRAIN.lengths[subject.batches(trial(fraction=0.5)).rows].sum()
    assert result.cost == 2.5
    assert result.seconds > 0
    assert result.example_nll is not None
    assert result.example_nll.shape == (10,)
    (evaluation,) = subject.evaluate([adapter], VALIDATION)
    np.testing.assert_allclose(result.example_nll, evaluation.example_nll, rtol=1e-5)
    assert result.nll == pytest.approx(result.example_nll.sum() / VALIDATION.supervised_counts.sum())
    assert result.curve[-1].validation_nll == result.nll
    assert result.metrics["perplexity"] == pytest.approx(np.exp(result.nll))
    assert result.metrics["exact_match"] == result.example_scores["exact_match"].mean()
    assert set(result.metrics) == {"nll", "perplexity", "exact_match"}


def test_training_learns() -> None:
    """Rows of one repeated completion: the loss of a working trainer falls far below the base's."""
    table = labelled_table([[5, 6, 90]], 32)
    subject = engine(tiny_llama(torch.float32), table, table)
    (base,) = subject.evaluate([None], table)
    result, _ = run(subject, [trial(0, epochs=6.0, learning_rate=1e-2)])[0]
    assert result.nll < 0.2 * base.nll
    assert result.train_nll < 0.5 * base.nll


def test_labels_are_scored() -> None:
    table = labelled_table(LABELS, 30)
    tokens = tuple(np.array(label, np.int32) for label in LABELS)
    subject = engine(tiny_llama(torch.float32), table, table, label_tokens=tokens)
    result, adapter = run(subject, [trial(0, epochs=4.0, learning_rate=1e-2)])[0]
    (evaluation,) = subject.evaluate([adapter], table, labels=True)
    assert evaluation.predictions is not None
    assert result.metrics["accuracy"] == (evaluation.predictions == table.row_labels).mean()
    assert result.example_scores["prediction"].tolist() == evaluation.predictions.tolist()
    assert 0 < result.metrics["f1"] <= 1


def test_a_diverged_trial_leaves_and_the_others_stay() -> None:
    bad = trial(1, learning_rate=1e30, warmup_ratio=0.0)
    found = run(packs(), [trial(0), bad, trial(2)])
    result, _ = found[1]
    assert result.state is TrialState.DIVERGED
    assert result.nll == inf
    assert result.steps < 6
    assert result.message
    assert not result.finished
    for seed in (0, 2):
        assert found[seed][0].finished
        assert found[seed][0].nll == pytest.approx(run(packs(), [trial(seed)])[seed][0].nll, rel=1e-5)


def test_the_search_may_stop_a_trial() -> None:
    asked: list[int] = []

    def stop(which: Trial, curve: tuple[CurvePoint, ...]) -> bool:
        asked.append(len(curve))
        return which.seed == 1

    found = run(packs(cost=lambda _: 3.0), [trial(0), trial(1)], should_stop=stop)
    result, _ = found[1]
    assert result.state is TrialState.STOPPED
    assert result.steps == 2
    assert result.cost == pytest.approx(1.0)
    assert result.nll == result.curve[-1].validation_nll
    assert result.example_nll is None
    assert "stopped by the search at step 2 of 6" in result.message
    assert found[0][0].finished
    assert asked == [1, 1, 2], "the last reading asks nobody"


def test_early_stopping_hands_over_the_best_weights() -> None:
    """Trained on random rows for long, validation gets worse: it stops, and the best reading counts."""
    subject = packs()
    wanted = trial(0, epochs=20.0, learning_rate=2e-2)
    stopping = EarlyStopping(evaluations=20, patience=3)
    result, adapter = run(subject, [wanted], early_stopping=stopping)[0]
    readings = [point.validation_nll for point in result.curve]
    assert result.state is TrialState.COMPLETE
    assert result.nll == min(readings)
    assert len(readings) == int(np.argmin(readings)) + 1 + 3
    assert result.steps < 120
    assert "stopped early" in result.message
    (evaluation,) = subject.evaluate([adapter], VALIDATION)
    assert evaluation.nll == pytest.approx(result.nll, rel=1e-6)


@pytest.mark.parametrize("patience", [3, 1000], ids=["stopped early", "all steps"])
def test_early_stopping_looks_at_a_sample_and_reports_on_all_rows(
    patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Always the same few rows; in the end the weights that are best on them are evaluated on all, once."""
    subject, read, sizes = packs(), PackEngine.read, list[int]()

    def seen(self: PackEngine, models: Sequence[Adapter | None], table: TokenTable) -> list[Evaluation]:
        sizes.append(len(table))
        return read(self, models, table)

    monkeypatch.setattr(PackEngine, "read", seen)
    wanted = trial(0, epochs=20.0, learning_rate=2e-2)
    stopping = EarlyStopping(evaluations=20, rows=4, patience=patience)
    result, adapter = run(subject, [wanted], early_stopping=stopping)[0]
    readings = [point.validation_nll for point in result.curve]
    assert sizes == [4] * len(readings) + [10]
    assert (len(readings) < 20) == (patience == 3)
    of_sample, of_all = (subject.evaluate([adapter], table)[0] for table in (subject.sample(4), VALIDATION))
    assert of_sample.nll == pytest.approx(min(readings), rel=1e-6)
    assert of_all.nll == pytest.approx(result.nll, rel=1e-6)
    assert result.example_nll is not None
    np.testing.assert_allclose(result.example_nll, of_all.example_nll, rtol=1e-6)
    np.testing.assert_allclose(result.example_nll[subject.sampled_rows(4)], of_sample.example_nll, rtol=1e-6)


def test_samples_are_nested() -> None:
    subject = packs()
    small, large, everything = (subject.sampled_rows(rows).tolist() for rows in (3, 7, None))
    assert set(small) < set(large)
    assert large == sorted(large)
    assert everything == list(range(10))


def test_best_weights_that_fail_on_other_rows_are_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite on the sample, but not on a row outside it: the trial has diverged."""
    read = PackEngine.read

    def broken(self: PackEngine, models: Sequence[Adapter | None], table: TokenTable) -> list[Evaluation]:
        found = read(self, models, table)
        if len(table) == 10:
            found[0].example_nll[0] = float("nan")
        return found

    monkeypatch.setattr(PackEngine, "read", broken)
    result, _ = run(packs(), [trial(0)], early_stopping=EarlyStopping(evaluations=3, rows=4))[0]
    assert result.state is TrialState.DIVERGED
    assert result.nll == inf
    assert result.example_nll is None
    assert "validation loss nan" in result.message


@pytest.mark.parametrize("rows", [None, 4])
def test_nan_is_never_the_best(rows: int | None) -> None:
    """The weights become NaN between two readings: the finite reading before counts."""
    subject = packs()
    live: list[Adapter] = []
    start = subject.initials

    def initials(which: Sequence[Trial]) -> list[Adapter]:
        live.extend(start(which))
        return live[-len(which) :]

    object.__setattr__(subject, "initials", initials)

    def poison(progress: PackProgress) -> None:
        if progress.slots[0].step == 3:
            live[0].weights.fill_(float("nan"))

    stopping = EarlyStopping(evaluations=3, rows=rows)
    result, adapter = run(subject, [trial(0)], early_stopping=stopping, on_progress=poison)[0]
    assert result.state is TrialState.COMPLETE
    assert isfinite(result.nll)
    assert len(result.curve) == 1
    assert adapter.weights.isfinite().all()
    assert "the weights of step 2 are kept" in result.message


def test_interrupt_leaves_the_model_clean() -> None:
    subject = packs()

    def interrupt(progress: PackProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(subject, [trial(0)], on_progress=interrupt)
    assert not any(module._forward_hooks for module in subject.base.model.modules())
    assert run(subject, [trial(0)])[0][0].finished


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_is_said_in_one_sentence(error: Exception) -> None:
    def fail(progress: PackProgress) -> None:
        raise error

    with pytest.raises(ResourceError, match=r"memory does not hold the pack; .*slots"):
        run(packs(), [trial(0)], on_progress=fail)


def test_fractions_train_on_the_same_first_rows() -> None:
    subject = packs()
    quarter, half = (set(subject.batches(trial(0, fraction=f)).rows.tolist()) for f in (0.25, 0.5))
    assert len(quarter) == 6
    assert quarter < half


@pytest.mark.parametrize("paths", [None, REFERENCE], ids=["flat", "padded"])
def test_a_measured_step_counts_real_tokens_and_padded_ones(paths: Paths | None) -> None:
    subject = packs(max_tokens_per_micro_batch=10**6, launch_tokens=10**6, paths=paths)
    trials = [trial(0), trial(1)]
    step = measure_step(subject, trials, seconds=0.0)
    batches = [
        [list(rows) for _, rows in zip(range(2), subject.batches(each), strict=False)] for each in trials
    ]
    lengths = [TRAIN.lengths[[*batches[0][i], *batches[1][i]]] for i in range(2)]
    assert step.tokens == lengths[1].sum()  # the first step is a warm-up
    assert step.largest == max(each.sum() if paths is None else len(each) * each.max() for each in lengths)
    assert step.peak_bytes is None or step.peak_bytes > 2**20
    assert forward_rate(subject, trials, seconds=0.0) > 0


def test_other_micro_batches_compile_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does any other setting; another model has layers of its own."""
    asked: list[object] = []

    def counting(function: object, **_: object) -> object:
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", counting)
    base = tiny_llama(torch.float32)
    large = replace(base, profile=replace(base.profile, parameters=10**15))  # too large to be recorded
    paths = replace(packs().chosen_paths, compiled=True)
    first = engine(large, TRAIN, VALIDATION, paths=paths)
    expected = run(first, [trial(0)])[0][0].nll
    before = len(asked)
    assert before > 0
    second = replace(first.with_micro_batches(64, in_evaluation=32), labels_at_end=False)
    assert second.micro_batch_tokens == 64
    assert run(second, [trial(0)])[0][0].nll == pytest.approx(expected, rel=1e-5)
    assert len(asked) == before
    assert replace(first, base=tiny_llama()).machinery is not first.machinery


def test_one_warning_of_the_compiler_is_silenced() -> None:
    """Word for word; all others are heard, this one from anybody else too."""
    inductor = "torch._inductor.lowering"
    text = "\nOnline softmax is disabled on the fly since Inductor decides to\nsplit the reduction."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert compiled(max)
        for message, module in ((text, inductor), ("another", inductor), (text, "elsewhere")):
            warnings.warn_explicit(message, UserWarning, "file.py", 1, module=module)
    assert [told for each in heard if (told := str(each.message)) in (text, "another")] == ["another", text]


@pytest.mark.parametrize("paths", [None, REFERENCE], ids=["flat", "padded"])
def test_a_micro_batch_made_ahead_changes_nothing(
    paths: Paths | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the host prepares the next rows before it waits; one trial ends, one enters on the way."""
    made: list[tuple[int, ...]] = []
    collate = Cuts.collate

    def seen(self: Cuts, table: TokenTable, rows: np.ndarray, device: torch.device) -> MicroBatch:
        made.append(tuple(rows))
        return collate(self, table, rows, device)

    monkeypatch.setattr(Cuts, "collate", seen)

    def train(ahead: bool) -> tuple[list[Slot], int]:
        subject = packs(max_tokens_per_micro_batch=64, paths=paths)
        trials = [trial(0, lora_dropout=0.1), trial(1, batch_size=12), trial(2, r=8, batch_size=5)]
        slots = subject.slots(trials)
        made.clear()
        with subject.attached() as step:
            step._looks_ahead = ahead
            for now in range(8):
                live = [slot for i, slot in enumerate(slots) if not slot.done and (i < 2 or now >= 3)]
                if live:
                    step(live)
                    assert (step._ahead is not None) == (ahead and not all(slot.done for slot in live))
        return slots, len(made)

    (plain, count), (ahead, ahead_count) = train(False), train(True)
    for ours, theirs in zip(ahead, plain, strict=True):
        assert ours.step == theirs.step > 0
        assert ours.losses == theirs.losses
        assert torch.equal(ours.adapter.weights, theirs.adapter.weights)
    assert 0 <= ahead_count - count <= 1, "at most where a trial enters what was made is not used"
