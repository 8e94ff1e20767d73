"""The sentences of the evidence: each says what the numbers behind it support, and no more."""

from math import inf

import pytest

from loratune.maths.noninferiority import Comparison, SeedNoise
from loratune.maths.rankcurve import RankCurve, Reading
from loratune.search.bracket import Bracket
from loratune.search.challenge import ChallengeAnswer, Contender
from loratune.search.claims import challenge_claims, rank_claims, slope_note, stability_claim
from loratune.search.ranks import Measured, RankAnswer
from loratune.search.space import trial
from loratune.values import HyperParameters, SearchContext, TrialResult, TrialState

CONTEXT = SearchContext(rows=2_000, tokens=60_000, supervised_tokens=10_000, margin=0.005)


def setting(r: int = 8, rate: float = 1e-3, **other: float) -> HyperParameters:
    values = {"lora_alpha": 2.0 * r, "batch_size": 16, **other}
    return HyperParameters(r=r, learning_rate=rate, **values)  # type: ignore[arg-type]


def run(r: int, rate: float, nll: float) -> TrialResult:
    asked = trial(setting(r, rate), 0)
    state = TrialState.COMPLETE if nll < inf else TrialState.DIVERGED
    return TrialResult(asked=asked, trial=asked, state=state, nll=nll)


def measured(r: int, curve: dict[float, float]) -> Measured:
    runs = tuple(run(r, rate, nll) for rate, nll in curve.items())
    best = min(curve, key=curve.__getitem__)
    found = Bracket(best=best, tried=tuple(curve.items()), closed=True, results=runs)
    return Measured(r=r, learning_rate=best, bracket=found, results=runs[:1])


def answer(
    *ranks: Measured,
    chosen: int = 0,
    comparisons: tuple[tuple[int, Comparison], ...] = (),
    unproven: Comparison | None = None,
) -> RankAnswer:
    return RankAnswer(
        chosen=ranks[chosen],
        reference=ranks[-1],
        measured=ranks,
        comparisons=comparisons,
        settled=unproven is None,
        unproven=unproven,
        intervals={m.r: (-0.01, 0.01) for m in ranks[:-1]},
        curve=RankCurve((4, 8, 64), 0.005, (Reading(64, 0.5, 1e-6), Reading(4, 0.5, 1e-6))),
        law=None,
        noise=SeedNoise(variance=1e-6, degrees=4),
        correction=1.0,
        all_results=(),
    )


@pytest.mark.parametrize(
    ("small", "large", "words"),
    [
        (  # two steps apart, and the rate between them costs the small rank .02
            {1e-4: 0.6, 3e-4: 0.56, 1e-3: 0.52, 3e-3: 0.5},
            {1e-4: 0.52, 3e-4: 0.5, 1e-3: 0.51, 3e-3: 0.6},
            "depends on the rank: 0.003 at rank 4, 0.0003 at rank 64; with 0.001 for all, "
            "rank 4 was 0.02 nats worse than at its own (one seed, all rows).",
        ),
        (  # two steps apart, all but flat
            {3e-4: 0.502, 1e-3: 0.501, 3e-3: 0.5},
            {3e-4: 0.5, 1e-3: 0.501, 3e-3: 0.502},
            "depends on the rank: 0.003 at rank 4, 0.0003 at rank 64; yet with 0.001 each rank was within",
        ),
        (  # two steps apart, no rate in common
            {1e-3: 0.6, 3e-3: 0.5},
            {1e-4: 0.6, 3e-4: 0.5},
            "The best learning rate depends on the rank: 0.003 at rank 4, 0.0003 at rank 64.",
        ),
        (  # one step apart
            {3e-4: 0.6, 1e-3: 0.502, 3e-3: 0.5},
            {3e-4: 0.6, 1e-3: 0.5, 3e-3: 0.54},
            "One learning rate served all ranks: with 0.001 each rank was within the margin of its best "
            "(one seed, all rows); the best were 0.003 at rank 4, 0.001 at rank 64.",
        ),
        (  # one step apart, but steep
            {1e-3: 0.53, 3e-3: 0.5},
            {1e-3: 0.5, 3e-3: inf},
            "differs by at most a grid step: 0.003 at rank 4, 0.001 at rank 64; with 0.001 for all, "
            "rank 4 was 0.03 nats worse",
        ),
        (
            {3e-3: 0.5},
            {1e-3: 0.5},
            "One learning rate served all ranks: the best ones lie within a grid step",
        ),
    ],
)
def test_one_learning_rate_for_all_is_judged_by_what_was_measured(
    small: dict[float, float], large: dict[float, float], words: str
) -> None:
    told = slope_note(CONTEXT, answer(measured(4, small), measured(64, large)))
    assert told is not None
    assert words in told.claim
    assert ("depends on" in told.claim) == ("depends on" in words)


UNDECIDED = Comparison(difference=0.004, standard_error=0.002, degrees=inf, margin=0.005)
BETTER = Comparison(difference=-0.001, standard_error=0.004, degrees=inf, margin=0.005)
ADEQUATE = Comparison(difference=0.0, standard_error=0.001, degrees=inf, margin=0.005)
RANKS = tuple(measured(r, {1e-3: 0.5}) for r in (4, 8, 64))


def told(found: RankAnswer, words: str) -> tuple[bool | None, float | None, str]:
    (claim,) = [claim for claim in rank_claims(CONTEXT, found) if words in claim.claim]
    return claim.holds, claim.value, claim.claim


def test_undecided_and_the_largest_kept() -> None:
    found = answer(*RANKS, chosen=2, comparisons=((8, UNDECIDED),))
    holds, value, words = told(found, "the largest is kept")
    assert (holds, value) == (False, 0.004)
    assert "the runs cannot show that a smaller rank is as good" in words
    assert "could have detected 0.004973 nats (80 % power)" in words
    assert not any("taken because" in claim.claim for claim in rank_claims(CONTEXT, found))


@pytest.mark.parametrize("comparison", [BETTER, UNDECIDED])
def test_undecided_and_a_smaller_rank_taken(comparison: Comparison) -> None:
    found = answer(*RANKS, comparisons=((8, UNDECIDED),), unproven=comparison)
    holds, value, words = told(found, "is taken because")
    assert (holds, value) == (False, comparison.difference)
    bound = f"it may lose up to {comparison.upper:.4g} nats (one-sided 95 %)"
    assert words.startswith(f"Rank 4 is as good as rank 64: not shown, {bound}")
    assert found.curve is not None
    assert found.curve.adequate[4] > 0.99
    assert "with a probability above 0.99 by the measured curve." in words


def test_undecided_below_a_rank_that_was_shown() -> None:
    found = answer(*RANKS, chosen=1, comparisons=((8, ADEQUATE), (4, UNDECIDED)))
    holds, _, words = told(found, "cannot separate")
    assert holds is None
    assert "rank 8, the smallest shown as good, is kept" in words


def challenged(*compared: tuple[int, Comparison], winner: int | None = None) -> ChallengeAnswer:
    before = Contender(setting=setting(), results=(run(8, 1e-3, 0.5),))
    contenders = tuple((Contender(setting=setting(batch_size=b), results=()), c) for b, c in compared)
    taken = before if winner is None else contenders[winner][0]
    return ChallengeAnswer(
        incumbent=before,
        winner=taken,
        changed=winner is not None,
        compared=contenders,
        failed=0,
        all_results=(),
    )


SHOWN_BETTER = Comparison(difference=-0.02, standard_error=0.001, degrees=inf, margin=0.005)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            challenged((4, UNDECIDED)),
            ["Batch size 16 is kept: batch size 4 (learning rate 0.001) is not shown"],
        ),
        (
            challenged((8, SHOWN_BETTER), (4, UNDECIDED), winner=0),
            ["Batch size 8 (learning rate 0.001) is taken: it is better than batch size 16.", "passed over"],
        ),
        (challenged((32, ADEQUATE), winner=0), ["is taken: it is non-inferior to batch size 16"]),
    ],
)
def test_a_challenge_claims_what_the_decision_relies_on(found: ChallengeAnswer, words: list[str]) -> None:
    claims = challenge_claims(CONTEXT, found, lambda s: f"batch size {s.batch_size}")
    decisive = [claim for claim in claims if claim.holds is not None]
    for claim, (_, comparison), word in zip(decisive, found.compared, words, strict=True):
        assert word in claim.claim
        assert claim.holds
        assert (claim.value, claim.interval) == (comparison.difference, comparison.interval)
        assert claim.margin == 0.005


def test_a_tie_is_told() -> None:
    claims = challenge_claims(CONTEXT, challenged((4, UNDECIDED)), lambda s: f"batch size {s.batch_size}")
    assert (
        claims[-1].claim
        == "Tie between batch size 16 and batch size 4 within the noise: batch size 16 is kept."
    )
    assert claims[-1].holds is None


@pytest.mark.parametrize(("spread", "holds"), [(0.001, True), (0.05, False)])
def test_seeds_that_disagree_show_the_edge_of_stability(spread: float, holds: bool) -> None:
    def repeated(r: int, gap: float) -> Measured:
        runs = (run(r, 1e-3, 0.5), run(r, 1e-3, 0.5 + gap))
        return Measured(r=r, learning_rate=1e-3, bracket=None, results=runs)

    found = stability_claim(CONTEXT, answer(repeated(4, spread), repeated(64, 0.001)))
    assert found is not None
    assert (found.holds, found.value) == (holds, pytest.approx(spread / 0.001))
    assert ("edge of stability; 0.0005 is safer" in found.claim) == (not holds)
    assert stability_claim(CONTEXT, answer(*RANKS)) is None
