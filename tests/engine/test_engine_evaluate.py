"""Evaluation against plain full logits; label trees against one plain row per label."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from engine_fixture import engine, labelled_table, tiny_family, tiny_llama, trial
from loratune.engine.label_search import LabelTrie, searched_tokens
from loratune.engine.labels import LabelScorer, LabelTree, labelling_passes
from loratune.engine.pack import PackEngine
from loratune.engine.selfcheck import random_table
from loratune.lora.layout import Adapter
from loratune.model.base import BaseModel
from loratune.values import PASSES_PER_LABELLING

LABELS = [[5, 6, 90], [5, 7, 90], [8, 90], [5, 90], [9, 5, 6, 90]]
TOKENS = tuple(np.array(label, np.int32) for label in LABELS)


def moved(packs: PackEngine, seed: int, **changes: object) -> Adapter:
    """An adapter whose B is not zero."""
    adapter = packs.initial(trial(seed, **changes))
    torch.manual_seed(seed)
    adapter.weights.add_(torch.randn_like(adapter.weights) * 0.05)
    return adapter


def plain(base: BaseModel, tokens: np.ndarray, supervised: np.ndarray) -> tuple[float, bool]:
    """Sum of the NLL and exact match of one row, from the full logits of the bare base."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        likelihood = base.model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    where = torch.from_numpy(supervised[1:].copy())
    nll = -likelihood.gather(1, ids[1:, None])[:, 0][where].sum().item()
    return nll, bool((likelihood.argmax(-1) == ids[1:])[where].all())


def test_base_equals_full_logits() -> None:
    base = tiny_llama()
    table = random_table(97, rows=20)
    (found,) = engine(base, table).evaluate([None], table)
    expected = [plain(base, *table.row(i)) for i in range(len(table))]
    np.testing.assert_allclose(found.example_nll, [nll for nll, _ in expected], rtol=1e-10)
    assert found.exact_match.tolist() == [match for _, match in expected]
    assert found.nll == pytest.approx(sum(nll for nll, _ in expected) / table.supervised_counts.sum())


def test_exact_match_where_greedy_decoding_gives_the_completion() -> None:
    base = tiny_llama()
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    for _ in range(4):
        prompt = torch.cat([prompt, base.model(input_ids=prompt).logits[:, -1:].argmax(-1)], 1)
    right = prompt[0].tolist()
    wrong = [*right[:-1], (right[-1] + 1) % 97]
    flags = [False] * 5 + [True] * 4
    table = type(random_table(97)).from_rows([(right, flags), (wrong, flags)])
    (found,) = engine(base, table).evaluate([None], table)
    assert found.exact_match.tolist() == [True, False]


@pytest.mark.parametrize("max_tokens", [16, 64, 4096])
def test_many_models_at_once_equal_one_by_one(max_tokens: int) -> None:
    table = random_table(97, rows=12)
    packs = engine(tiny_llama(), table, max_tokens_per_micro_batch=max_tokens)
    models = [moved(packs, 1), None, moved(packs, 2, r=2, target_modules=("v_proj",)), moved(packs, 3)]
    together = packs.evaluate(models, table)
    for model, found in zip(models, together, strict=True):
        (alone,) = packs.evaluate([model], table)
        np.testing.assert_allclose(found.example_nll, alone.example_nll, rtol=1e-10)
    assert len({round(each.nll, 6) for each in together}) == 4


def test_a_broken_adapter_leaves_the_others_alone() -> None:
    table = random_table(97, rows=12)
    packs = engine(tiny_llama(torch.float32), table)
    broken = moved(packs, 1)
    broken.weights.fill_(float("nan"))
    nan, base = packs.evaluate([broken, None], table)
    assert np.isnan(nan.example_nll).all()
    assert not nan.exact_match.any()
    np.testing.assert_allclose(base.example_nll, packs.evaluate([None], table)[0].example_nll, rtol=1e-5)


def test_head_keeps_logits_in_chunks() -> None:
    table = random_table(97, rows=20)
    packs = engine(tiny_llama(), table)
    (whole,) = packs.evaluate([None], table)
    with patch("loratune.objectives.causal._CHUNK_ELEMENTS", {"cpu": 97 * 20}):
        (cut,) = packs.evaluate([None], table)
    np.testing.assert_allclose(cut.example_nll, whole.example_nll, rtol=1e-12)


def test_label_tree_shares_beginnings() -> None:
    tree = LabelTree.build(TOKENS)
    assert sorted(tree.branches.fed.tolist()) == [5, 5, 6, 6, 7, 8, 9]
    for label, path in zip(LABELS, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == label
    assert (np.diff(tree.owners) >= 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3_text", "phi"])
def test_trees_equal_plain_rows(family: str) -> None:
    """gemma3_text has a sliding window of 8, which a 4-D mask overrides: the comparison must notice."""
    base = tiny_family(family)
    table = labelled_table(LABELS, 10)
    packs = engine(base, table, label_tokens=TOKENS)
    models = [moved(packs, 1, target_modules=("all-linear",)), None]
    scorer = LabelScorer(packs._evaluator, TOKENS)
    with packs.attached(), torch.no_grad():
        rows = scorer.by_rows(models, table, TOKENS)
        predictions = scorer.predict(models, table)
        assert scorer._trees_work is (family != "gemma3_text")
        if scorer._trees_work:
            for by_tree, by_row in zip(scorer.by_trees(models, table, TOKENS), rows, strict=True):
                np.testing.assert_allclose(by_tree, by_row, rtol=1e-8)
    for prediction, by_row in zip(predictions, rows, strict=True):
        assert prediction.tolist() == by_row.argmax(1).tolist()


def sure_base() -> BaseModel:
    """One whose most likely tokens are nearly certain."""
    base = tiny_llama()
    with torch.no_grad():
        base.model.model.norm.weight.mul_(30)
    return base


def continued(base: BaseModel, prompt: list[int], count: int) -> list[int]:
    """The tokens that the bare base finds most likely after a prompt."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, base.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("trees", [True, False])
def test_labels_likelier_than_all_others_are_not_scored_again(trees: bool, apart: bool) -> None:
    """What a model evaluates settles the rows of whose label it is sure; none where one label begins another."""
    base = sure_base()
    prompts = np.random.default_rng(0).integers(0, 97, (8, 5)).tolist()
    labels = [continued(base, prompt, 3) for prompt in prompts]
    assert len({tuple(label) for label in labels}) == 8
    chosen = [*range(8), *range(1, 8), 0]  # each prompt with its own label, and with another's
    rows = [(prompts[i % 8] + labels[label], [False] * 5 + [True] * 3) for i, label in enumerate(chosen)]
    table = type(random_table(97)).from_rows(rows, labels=chosen)
    tokens = tuple(np.array(label, np.int32) for label in (labels if apart else [*labels, labels[0][:2]]))
    packs = engine(base, table, label_tokens=tokens)
    models = [moved(packs, 1), None]
    known = packs.evaluate(models, table)
    sure = sum(int((each.example_nll < np.log(2) - 0.1).sum()) for each in known)
    assert 4 <= sure <= 16
    scorer = LabelScorer(packs._evaluator, tokens)
    with packs.attached(), torch.no_grad():
        scorer._trees_work = trees
        expected = scorer.predict(models, table)
        with patch.object(packs._evaluator, "states", wraps=packs._evaluator.states) as states:
            found = scorer.predict(models, table, known)
    scored = sum(len(call.args[0].counts) for call in states.call_args_list)
    asked = 2 * len(table) - (sure if apart else 0)
    assert scored == asked * (1 if trees else len(tokens))
    for own, all_scored in zip(found, expected, strict=True):
        assert own.tolist() == all_scored.tolist()
    if apart:
        assert expected[1][:8].tolist() == list(range(8)), "the continuations that were planted"


def many_labels(count: int) -> list[list[int]]:
    """Numbers in base 30 with an end: beginnings are shared, and some labels are the beginning of others' tokens."""
    return [
        [*(int(digit) for digit in np.base_repr(i, 30).translate(_DIGITS).split()), 90] for i in range(count)
    ]


_DIGITS = {ord(c): f"{int(c, 36)} " for c in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_search_among_many_finds_the_most_likely_label(family: str) -> None:
    """gemma3_text takes no mask of ours: there every path is a row of its own."""
    labels = many_labels(400)
    tokens = tuple(np.array(label, np.int32) for label in labels)
    table = labelled_table(labels, 4)
    packs = engine(tiny_family(family), table, label_tokens=tokens)
    models = [moved(packs, 1, target_modules=("all-linear",)), None]
    scorer = LabelScorer(packs._evaluator, tokens)
    with packs.attached(), torch.no_grad():
        found = scorer.predict(models, table)
        expected = scorer.by_rows(models, table, tokens)
    assert scorer._trees_work is (family == "llama")
    for labels_of, likelihood in zip(found, expected, strict=True):
        assert labels_of.tolist() == likelihood.argmax(1).tolist()


def test_the_search_leaves_most_labels_alone() -> None:
    """What it gives the model is counted: a small part of the trie for every row."""
    labels = many_labels(3000)
    tokens = tuple(np.array(label, np.int32) for label in labels)
    table = labelled_table(labels, 5)
    packs = engine(tiny_llama(), table, label_tokens=tokens)
    scorer = LabelScorer(packs._evaluator, tokens)
    given = []
    original = packs._evaluator.states
    packs._evaluator.states = lambda batch, riders, **more: (  # type: ignore[method-assign]
        given.append(batch.counts.sum()),
        original(batch, riders, **more),
    )[1]
    with packs.attached():
        scorer._trees_work = True
        scorer.predict([None], table)
    trie = LabelTrie(tokens)
    assert sum(given) < 0.5 * len(table) * trie.fed
    prompts = int(table.lengths.sum() - table.supervised_counts.sum())
    assert labelling_passes(tokens, table) == searched_tokens(5, prompts) / table.lengths.sum()
    assert labelling_passes(TOKENS, table) == PASSES_PER_LABELLING


def test_predictions_are_the_most_likely_labels() -> None:
    base = tiny_llama()
    table = labelled_table(LABELS, 8)
    (found,) = engine(base, table, label_tokens=TOKENS).evaluate([None], table, labels=True)
    assert found.predictions is not None
    for i in range(len(table)):
        tokens, supervised = table.row(i)
        prompt = tokens[: int(np.argmax(supervised))]
        nll = []
        for label in LABELS:
            row = np.concatenate([prompt, label])
            nll.append(plain(base, row, np.arange(len(row)) >= len(prompt))[0])
        assert found.predictions[i] == int(np.argmin(nll))
