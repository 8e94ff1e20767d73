"""The sentences of the evidence: each says what the numbers behind it support, and no more."""

from dataclasses import replace
from math import inf

import pytest

from loratune.maths.curves import PowerLaw
from loratune.maths.noninferiority import Comparison, SeedNoise
from loratune.search.bracket import Bracket
from loratune.search.challenge import ChallengeAnswer, Contender
from loratune.search.claims import alpha_flatness, challenge_claims, rank_claims, slope_note, stability_claim
from loratune.search.rank_answer import Measured, RankAnswer
from loratune.search.space import trial
from loratune.values import (
    DataFacts,
    Evidence,
    HyperParameters,
    SearchContext,
    TrialResult,
    TrialState,
    Wishes,
)

CONTEXT = SearchContext(
    data=DataFacts(rows=2_000, tokens=60_000, supervised_tokens=10_000),
    wishes=Wishes(margin=0.005),
)


def setting(r: int = 8, rate: float = 1e-3, **other: float) -> HyperParameters:
    values = {"lora_alpha": 2.0 * r, "batch_size": 16, **other}
    return HyperParameters(r=r, learning_rate=rate, **values)  # type: ignore[arg-type]


def run(r: int, rate: float, nll: float) -> TrialResult:
    asked = trial(setting(r, rate), 0)
    state = TrialState.COMPLETE if nll < inf else TrialState.DIVERGED
    return TrialResult(asked=asked, trial=asked, state=state, nll=nll)


def measured(r: int, curve: dict[float, float], *, closed: bool = True) -> Measured:
    runs = tuple(run(r, rate, nll) for rate, nll in curve.items())
    best = min(curve, key=curve.__getitem__)
    found = Bracket(best=best, tried=tuple(curve.items()), closed=closed, results=runs)
    own = tuple(x for x in runs if x.trial.hyper_parameters.learning_rate == best)
    return Measured(r=r, learning_rate=best, bracket=found, results=own, tested=own)


def answer(
    *ranks: Measured,
    chosen: int = 0,
    comparisons: tuple[tuple[int, Comparison], ...] = (),
    settled: bool = False,
    outliers: frozenset[int] = frozenset(),
    law: PowerLaw | None = None,
    against_best: dict[int, Comparison] | None = None,
) -> RankAnswer:
    return RankAnswer(
        chosen=ranks[chosen],
        reference=ranks[-1],
        measured=ranks,
        comparisons=comparisons,
        best=min(ranks, key=lambda m: m.results[0].nll),
        against_best=against_best or {},
        settled=settled,
        intervals={m.r: (-0.01, 0.01) for m in ranks[:-1]},
        adequate={m.r: 0.995 for m in ranks},
        law=law,
        noise=SeedNoise(variance=1e-6, degrees=4),
        correction=1.0,
        outliers=outliers,
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
RANKS = tuple(measured(r, {3e-4: 0.52, 1e-3: 0.5, 3e-3: 0.53}) for r in (4, 8, 64))
OPEN = measured(64, {1e-3: 0.5, 3e-3: 0.52}, closed=False)


def told(found: RankAnswer, words: str) -> Evidence:
    (claim,) = [claim for claim in rank_claims(CONTEXT, found) if words in claim.claim]
    return claim


def test_shown_as_good_at_the_best_learning_rate_of_both() -> None:
    claim = told(
        answer(*RANKS, comparisons=((8, ADEQUATE),), settled=True, chosen=1), "Rank 8 is non-inferior"
    )
    assert (claim.holds, claim.value, claim.margin) == (True, 0.0, 0.005)
    assert claim.claim.endswith("upper bound of its loss is 0.001645 nats.")


def test_not_compared_fairly_where_a_learning_rate_is_open() -> None:
    """Neither `adequate` nor `inferior` while one of the two has no worse rate on one side; what would close it."""
    for comparison in (ADEQUATE, UNDECIDED):
        claim = told(answer(*RANKS[:2], OPEN, comparisons=((8, comparison),)), "Rank 8 is non-inferior")
        assert claim.holds is None
        assert (
            "not compared fairly, the learning rate of rank 64 has no worse one on both sides" in claim.claim
        )
        assert "about 1 more run would make it fair" in claim.claim
    open_rank = measured(8, {1e-3: 0.53}, closed=False)
    worse = Comparison(difference=0.03, standard_error=0.001, degrees=inf, margin=0.005)
    claim = told(answer(RANKS[0], open_rank, RANKS[2], comparisons=((8, worse),)), "Rank 8 is non-inferior")
    assert claim.holds is None
    assert "about 2 more runs" in claim.claim
    fair = answer(RANKS[0], RANKS[1], RANKS[2], comparisons=((8, worse),))
    assert told(fair, "no, it loses at least 0.02836 nats").holds is False


def test_nothing_is_adequate_while_a_measured_rank_is_better() -> None:
    """A U-shaped curve: rank 4 as good as 64, rank 8 better than both."""
    best = measured(8, {3e-4: 0.52, 1e-3: 0.48, 3e-3: 0.5})
    behind = Comparison(difference=0.02, standard_error=0.001, degrees=inf, margin=0.005)
    found = answer(RANKS[0], best, RANKS[2], comparisons=((4, ADEQUATE),), against_best={4: behind})
    claim = told(found, "Rank 4 is non-inferior")
    assert claim.holds is None
    assert "rank 8 measured better by more than the margin" in claim.claim


@pytest.mark.parametrize(("difference", "holds"), [(0.001, True), (0.004, None)])
def test_a_better_rank_must_be_shown_to_be_within_the_margin(difference: float, holds: bool | None) -> None:
    """.004 measured, with a standard error of .001, may be more than the margin of .005."""
    best = measured(8, {3e-4: 0.52, 1e-3: 0.499, 3e-3: 0.5})
    behind = replace(ADEQUATE, difference=difference)
    found = answer(RANKS[0], best, RANKS[2], comparisons=((4, ADEQUATE),), against_best={4: behind})
    claim = told(found, "Rank 4 is non-inferior")
    assert claim.holds is holds
    assert ("rank 8 measured better and may be so by more than the margin" in claim.claim) == (holds is None)


def test_undecided_in_words_that_help() -> None:
    small = measured(4, {3e-4: 0.52, 1e-3: 0.502, 3e-3: 0.53})
    claim = told(answer(small, *RANKS[1:], comparisons=((4, UNDECIDED),)), "is taken because")
    assert claim.holds is None
    assert claim.claim.startswith(
        "Ranks 4 to 64 differ by at most 0.002 nats as measured; rank 4 is taken because it loses at most 0.005 nats"
    )
    assert "probability above 0.99" in claim.claim
    # 2 * 1e-6 * (1.645 + 0.84)^2 / 0.003^2 = 1.4: two of each, one of each is there
    assert claim.claim.endswith("; about 2 more runs would decide.")
    largest = told(answer(*RANKS, chosen=2, comparisons=((8, UNDECIDED),)), "is taken because")
    assert "rank 64, the largest, is taken because" in largest.claim
    assert largest.holds is None


def test_a_rank_that_stands_out_is_named() -> None:
    found = answer(*RANKS, comparisons=((8, UNDECIDED),), outliers=frozenset({8}))
    assert told(found, "is left out").claim.startswith("Rank 8 is left out of the claims about ranks")


def test_a_power_law_that_expects_nothing_is_not_told() -> None:
    law = PowerLaw(limit=0.5, scale=0.02, exponent=0.65, residual=0.001)
    found = answer(*RANKS, comparisons=((8, UNDECIDED),), law=law)
    assert "Power law" in told(found, "Power law").claim
    flat = replace(found, chosen=RANKS[2])
    assert not any("Power law" in claim.claim for claim in rank_claims(CONTEXT, flat))


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


TIED = replace(UNDECIDED, difference=0.002)
SHOWN_BETTER = Comparison(difference=-0.02, standard_error=0.001, degrees=inf, margin=0.005)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            challenged((4, TIED)),
            ["Batch size 16 is kept: batch size 4 (learning rate 0.001) is not shown"],
        ),
        (
            challenged((8, SHOWN_BETTER), (4, TIED), winner=0),
            [
                "Batch size 8 (learning rate 0.001) is taken: it is better than batch size 16.",
                "is not chosen",
            ],
        ),
        (challenged((32, ADEQUATE), winner=0), ["is taken: it is non-inferior to batch size 16"]),
    ],
)
def test_a_challenge_claims_what_the_decision_relies_on(found: ChallengeAnswer, words: list[str]) -> None:
    claims = challenge_claims(CONTEXT, found, lambda s: f"batch size {s.batch_size}")
    for claim, (contender, comparison), word in zip(claims, found.compared, words, strict=False):
        assert word in claim.claim
        assert claim.holds is (True if contender is found.winner else None)
        assert (claim.value, claim.interval) == (comparison.difference, comparison.interval)
        assert claim.margin == 0.005


def test_a_tie_is_told() -> None:
    claims = challenge_claims(CONTEXT, challenged((4, UNDECIDED)), lambda s: f"batch size {s.batch_size}")
    assert (
        claims[-1].claim
        == "Tie between batch size 16 and batch size 4 within the noise: batch size 16 is kept."
    )
    assert claims[-1].holds is None


@pytest.mark.parametrize(
    ("difference", "error", "holds"),
    [
        (0.004, 0.0005, True),
        (-0.004, 0.0005, True),
        (0.02, 0.0005, False),
        (-0.02, 0.0005, False),
        (0.0, 0.004, None),
    ],
)
def test_alpha_is_flat_or_not_or_it_cannot_be_told(
    difference: float, error: float, holds: bool | None
) -> None:
    comparison = Comparison(difference=difference, standard_error=error, degrees=inf, margin=0.005)
    told = alpha_flatness(CONTEXT, challenged((16, comparison)))
    assert told is not None
    assert told.holds is holds


def test_better_worse_or_not_told() -> None:
    assert SHOWN_BETTER.shown_better() is True
    assert replace(SHOWN_BETTER, difference=0.02).shown_better() is False
    assert replace(UNDECIDED, difference=0.002).shown_better() is None
    assert replace(SHOWN_BETTER, seeds_measured=False).shown_better() is None


@pytest.mark.parametrize(
    ("spread", "repeats", "holds"), [(0.001, 4, True), (0.05, 4, False), (0.001, 2, None), (0.012, 2, None)]
)
def test_seeds_that_disagree_show_the_edge_of_stability(
    spread: float, repeats: int, holds: bool | None
) -> None:
    """By the F distribution: of two and two runs, a ratio of 12 may be chance (1 and 1 degrees: up to 12.7)."""

    def repeated(r: int, gap: float) -> Measured:
        runs = tuple(run(r, 1e-3, 0.5 + gap * (i % 2)) for i in range(repeats))
        return Measured(r=r, learning_rate=1e-3, bracket=None, results=runs)

    found = stability_claim(CONTEXT, answer(repeated(4, spread), repeated(64, 0.001)))
    assert found is not None
    assert (found.holds, found.value) == (holds, pytest.approx(spread / 0.001))
    assert ("edge of stability; 0.0005 is safer" in found.claim) == (holds is False)
    assert ("cannot tell" in found.claim) == (holds is None)
    assert stability_claim(CONTEXT, answer(*RANKS)) is None
