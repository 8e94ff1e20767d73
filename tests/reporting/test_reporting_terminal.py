"""What a terminal shows: it fits, it degrades to plain lines, it says the numbers."""

from dataclasses import replace
from io import StringIO
from threading import Event
from typing import Any

import pytest
from rich.console import Console

from loratune.costs.memory import MemoryEstimate
from loratune.reporting import live, subscribers
from loratune.reporting.live import LiveView
from loratune.reporting.tables import evidence_number
from loratune.reporting.terminal import (
    print_memory,
    print_plan,
    print_profile,
    print_recommendation,
    print_summary,
)
from loratune.values import (
    Decision,
    Evidence,
    ModelProfile,
    PlannedStage,
    Recommendation,
    SearchPlan,
    Suggested,
    TrialState,
)
from loratune.values.events import (
    Finished,
    LiveTrial,
    Phase,
    PhaseBegan,
    Planned,
    Progress,
    Resumed,
    StageBegan,
    TrialEnded,
)
from report_fixture import make_facts, make_trial


def console(width: int = 100, height: int = 40) -> Console:
    return Console(file=StringIO(), width=width, height=height)


def shown(target: Console) -> list[str]:
    assert isinstance(target.file, StringIO)
    return target.file.getvalue().splitlines()


def a_pack(trials: int = 3) -> Progress:
    live_trials = tuple(
        LiveTrial(trial=make_trial(seed=seed).trial, step=90, total_steps=360, loss=0.4321)
        for seed in range(trials)
    )
    return Progress(trials=live_trials, steps=1, tokens=5000, seconds=2.0, occupancy=float(trials))


def planned(trials: int, seconds: float, cost: float, *, final: int = 0, **parts: float) -> Planned:
    """A plan of so many trials of the search; `seconds` of the search and `final` trials of the final run."""
    facts = make_facts()
    stage = PlannedStage(name="search", question="", trials=trials, cost=cost)
    return Planned(
        data=facts.profile,
        model=ModelProfile(
            name="tiny", family="llama", hidden_size=64, layers=2, attention_heads=4, vocabulary=1000,
            parameters=1_234_567, embedding_parameters=64_000, targets=(),
        ),
        plan=SearchPlan(stages=(stage,)),
        slots=4,
        peak_bytes=1,
        memory_bytes=2,
        search_seconds=seconds,
        final_seconds=parts.get("final_seconds", 0.0),
        final_run_seconds=parts.get("final_seconds", 0.0),
        test_seconds=parts.get("test_seconds", 0.0),
        final_trials=final,
    )  # fmt: skip


def ended(**values: Any) -> TrialEnded:
    return TrialEnded.of(make_trial(**values))


@pytest.mark.parametrize(
    ("width", "height", "most"), [(80, 24, 24), (80, 30, 29), (110, 34, 33), (100, 40, 39)]
)
def test_summary_fits_one_screen(width: int, height: int, most: int) -> None:
    """With a line for the prompt, where the screen is not low."""
    facts = make_facts()
    wordy = tuple(
        Evidence(claim=f"claim {i} " + "with many words " * 12, value=0.1, unit="nats", holds=True)
        for i in range(30)
    )
    crowded = make_facts(decision=Decision(hyper_parameters=facts.decision.hyper_parameters, evidence=wordy))
    for each in (facts, crowded):
        target = console(width, height)
        print_summary(target, each)
        lines = shown(target)
        assert len(lines) <= most
        assert max(len(line) for line in lines) <= width


def test_summary_says_the_answer() -> None:
    target = console()
    print_summary(target, make_facts(cut_by_clock=True))
    text = "\n".join(shown(target))
    assert "Recommended: r 8, alpha 16, learning rate 1e-3, batch size 16" in text
    assert "recommended       0.1701         84.6 %         84.1 %" in text
    words = " ".join(text.split())
    assert "84.6 %" in words
    assert "423 of 500 test rows right; the untrained model 102, always “activate_my_card” about 175" in words
    assert "yes Rank 8 is non-inferior to rank 32 (0.0021 nats, 95 % ≤ 0.0043, margin 0.005)" in words
    assert "no Rank 2 is non-inferior to rank 32" in words
    assert "note Ranks 1, 4, 16 and 64 were not tried" in words
    assert "how sure 3 claims tested: 2 yes, 1 no; the clock cut the search" in words
    assert "exit code 3: the budget's clock cut the search" in words
    assert "loratune tune --config runs/mine/loratune.toml --out runs/mine --resume" in words
    assert "…" not in words
    assert "runs/mine/" in text


def test_markup_in_names_is_printed_as_it_is() -> None:
    target = console()
    print_summary(target, make_facts(directory="runs/[red]x[/red]"))
    print_plan(
        target,
        SearchPlan(
            stages=(PlannedStage(name="[bold]a", question="", note="[/]", trials=1, cost=1),),
            dropped=("[/b]",),
        ),
        final_seconds=1,
        slots=1,
        peak_bytes=1,
    )
    text = "\n".join(shown(target))
    for words in ("runs/[red]x[/red]/", "[bold]a", "[/]", "[/b]"):
        assert words in text


def test_plan_adds_up() -> None:
    target = console()
    print_plan(target, make_facts().plan, final_seconds=60.0, slots=8, peak_bytes=2**31, memory_bytes=2**34)
    lines = shown(target)
    total = next(line for line in lines if line.startswith("total"))
    assert total.split() == ["total", "34", "26.30", "14.8", "min"]
    assert "Packs of up to 8 trials; predicted peak memory 2.0 GiB of 16.0 GiB." in lines
    for sentence in make_facts().plan.dropped:
        assert any(sentence[:40] in line for line in lines)


def test_profile_prior_and_memory() -> None:
    target = console()
    model = ModelProfile(
        name="tiny",
        family="llama",
        hidden_size=64,
        layers=2,
        attention_heads=4,
        vocabulary=1000,
        parameters=1_234_567,
        embedding_parameters=64_000,
        targets=(("q_proj", 64, 64), ("v_proj", 64, 32)),
    )
    print_profile(target, make_facts().profile, model)
    prior = Suggested(value=3.5e-4, low=1e-4, high=1e-3, reason="width 64, 2000 rows")
    print_recommendation(
        target,
        Recommendation(
            r=Suggested(value=8, low=4, high=16, reason="tokens"),
            safe_r=Suggested(value=32, low=4, high=64, reason="too small costs more"),
            lora_alpha=Suggested(value=16, low=16, high=16, reason="2 r"),
            learning_rate=prior,
            batch_size=Suggested(value=16, low=8, high=32, reason="rows"),
            epochs=Suggested(value=3, low=1, high=5, reason="rows"),
            notes=("measure it",),
        ),
    )
    text = "\n".join(shown(target))
    assert "1.23M parameters, 2 layers; 224 LoRA parameters per unit of rank" in text
    assert "3 duplicates taken out of validation and test." in text
    assert "3.5e-4" in text
    assert "1e-4 … 1e-3" in text
    assert "– measure it" in text
    assert any(
        "safe_r" in line and "32" in line and "too small costs more" in line for line in text.splitlines()
    )


@pytest.mark.parametrize(
    ("available", "sentence"),
    [(4, "This fits in 4.0 GiB."), (3.6, "This is tight in 3.6 GiB"), (2, "This does not fit in 2.0 GiB.")],
)
def test_memory_and_the_verdict_on_it(available: float, sentence: str) -> None:
    """Up to 92 % of the device it fits, up to all of it it is tight, as `MemoryEstimate.verdict` has it."""
    nothing = dict.fromkeys(
        (
            "adapters",
            "gradients",
            "optimiser",
            "activations",
            "logits",
            "backward",
            "workspace",
            "allocator",
            "runtime",
        ),
        0,
    )
    target = console()
    print_memory(
        target,
        MemoryEstimate(weights=3 * 2**30, **nothing | {"activations": 2**29}),
        int(available * 2**30),
    )
    text = "\n".join(shown(target))
    assert "total        3.5 GiB" in text
    assert sentence in text


def test_live_view_on_a_terminal() -> None:
    target = Console(file=StringIO(), width=100, force_terminal=True)
    with LiveView(target) as view:
        view(planned(8, 600.0, 5.0, final=2))
        view(StageBegan(name="rank and learning rate", trials=4))
        view(a_pack())
        view(ended(r=32, learning_rate=3e-4, seed=1))
        view(ended(r=2, state=TrialState.DIVERGED))
        picture = console()
        picture.print(view.picture())
    text = "\n".join(shown(picture))
    assert "rank and learning rate   2/10 trials (1 diverged)" in text
    leader = next(line.split() for line in shown(picture) if line.split()[:2] == ["1", "32"])
    assert leader == [
        "1",
        "32",
        "3e-4",
        "16",
        "64",
        "3",
        "1",
        f"{make_trial(r=32, learning_rate=3e-4, seed=1).nll:.4f}",
    ]
    assert "2.5k tokens/s" in text
    assert text.count("90/360") == 3
    assert "0.432" in text
    assert "diverged: r 2, learning rate 1e-3, batch 16, alpha 4 (loss is NaN)" in target.file.getvalue()  # type: ignore[attr-defined]


def test_the_best_trials_stay_in_sight() -> None:
    view = LiveView(console())
    view(StageBegan(name="rank", trials=20))
    losses = {0.5: 2, 0.2: 4, 0.4: 8, 0.3: 16, 0.6: 32, 0.1: 64, 0.7: 1}
    for nll, rank in losses.items():
        view(replace(ended(r=rank), nll=nll))
    view(replace(ended(r=512, fraction=0.25), nll=0.01))  # on part of the rows: does not compare
    view(replace(ended(r=2048, state=TrialState.DIVERGED), nll=0.0))
    view(a_pack())
    target = console()
    target.print(view.picture())
    rows = [line.split() for line in shown(target)]
    first = next(index for index, row in enumerate(rows) if row[:3] == ["best", "so", "far"])
    board = [(row[0], row[1], row[-1]) for row in rows[first + 1 : first + 6]]
    assert board == [
        ("1", "64", "0.1000"),
        ("2", "4", "0.2000"),
        ("3", "16", "0.3000"),
        ("4", "8", "0.4000"),
        ("5", "2", "0.5000"),
    ]
    assert not any("512" in row or "2048" in row for row in rows)


def test_a_low_screen_shows_fewer_slots_not_fewer_leaders() -> None:
    view = LiveView(console(80, 16))
    view(StageBegan(name="rank", trials=20))
    for seed in range(5):
        view(ended(seed=seed))
    view(a_pack(trials=20))
    target = console(80)
    target.print(view.picture())
    assert len(shown(target)) < 16
    assert any("+16" in line for line in shown(target))


def test_many_slots_are_counted() -> None:
    view = LiveView(console())
    view(StageBegan(name="rank", trials=20))
    view(a_pack(trials=20))
    target = console()
    target.print(view.picture())
    assert len(shown(target)) <= 20
    assert any("+8" in line for line in shown(target))


def test_without_a_terminal_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    target = console()
    clock = [100.0]
    monkeypatch.setattr(live, "monotonic", lambda: clock[0])
    with LiveView(target) as view:
        view(PhaseBegan(phase=Phase.LOADING))
        view(planned(8, 600.0, 8.0, final=2))
        view(StageBegan(name="alpha", trials=3))
        for _ in range(100):
            clock[0] += 1.0
            view(a_pack())
    lines = shown(target)
    assert lines[:2] == ["0 s  loading", "0 s  stage: alpha"]
    assert len(lines) == 5  # 100 steps of a second, a line each 31 s
    assert "\x1b" not in "".join(lines)
    assert "alpha: 0/10 trials, 3 in the pack, no full trial yet" in lines[2]


def test_work_without_steps_tells_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    target = console()
    clock = [100.0]
    monkeypatch.setattr(live, "monotonic", lambda: clock[0])
    with LiveView(target) as view:
        view(PhaseBegan(phase=Phase.LOADING))
        for _ in range(61):
            clock[0] += 1.0
            view.beat()
        view(PhaseBegan(phase=Phase.CALIBRATING))
        for _ in range(40):
            clock[0] += 1.0
            view.beat()
        view(Finished(directory="runs/mine", seconds=101.0, cut=False))
        clock[0] += 60.0
        view.beat()  # what comes now is the answer
    assert shown(target) == [
        "0 s  loading",
        "31 s  still loading",
        "61 s  calibrating",
        "92 s  still calibrating",
    ]


def test_commands_beat_by_themselves_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subscribers, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(live, "_PLAIN_SECONDS", 0.0)
    told = Event()
    with subscribers.Terminal() as terminal:
        say = terminal._say
        monkeypatch.setattr(terminal, "_say", lambda text: (say(text), told.set()))
        assert told.wait(60)
    assert "still starting" in capsys.readouterr().err


def test_time_left_moves_from_the_plan_to_the_run_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(live, "monotonic", lambda: clock[0])
    view = LiveView(console())
    with view:
        view(planned(4, 400.0, 4.08))
        assert view.seconds_left == 400.0
        clock[0] = 200.0  # twice as slow as planned: one of four trials done
        view(ended(seed=1))
        assert view.seconds_left == pytest.approx(0.25 * 600 + 0.75 * 200)
        for seed in (2, 3, 4):
            view(ended(seed=seed))
        assert view.seconds_left == 0.0


@pytest.mark.parametrize("taken", [1, 2, 4])
def test_the_final_run_is_still_to_come_whatever_the_search_takes(
    monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """Two runs of the search planned, at 100 s each; then two of the final run."""
    clock = [0.0]
    monkeypatch.setattr(live, "monotonic", lambda: clock[0])
    with LiveView(console()) as view:
        view(planned(2, 200.0, 2.08, final=2, final_seconds=200.0))
        for seed in range(taken):
            clock[0] += 100.0
            view(ended(seed=seed))
        assert view.seconds_left == pytest.approx(200.0 + 100.0 * max(0, 2 - taken), rel=0.05)
        view(StageBegan(name="final", trials=2))
        target = console()
        target.print(view.picture())
        assert any(f"{taken}/{taken + 2} trials" in line for line in shown(target))
        assert view.seconds_left == pytest.approx(200.0, abs=4)
        clock[0] += 100.0
        view(ended(seed=4))
        assert view.seconds_left == pytest.approx(100.0, abs=4)
        clock[0] += 100.0
        view(ended(seed=5))
        assert view.seconds_left == pytest.approx(0.0, abs=4)


def test_a_resumed_run_still_has_its_final_run_to_come() -> None:
    """The search had spent more than planned."""
    with LiveView(console()) as view:
        view(planned(2, 200.0, 2.08, final=2, final_seconds=200.0))
        view(Resumed(trials=tuple(ended(seed=seed) for seed in range(3))))
        assert view.seconds_left == pytest.approx(200.0, abs=4)


def test_a_resumed_run_counts_what_is_done_but_not_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(live, "monotonic", lambda: clock[0])
    target = console()
    with LiveView(target) as view:
        view(planned(4, 400.0, 4.08))
        view(Resumed(trials=(ended(seed=1), ended(seed=2))))
        assert view.seconds_left == pytest.approx(200.0)
    assert "Resumed with 2 finished trials." in shown(target)


def test_time_left_counts_what_comes_after_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring the test rows may take longer than all training before it."""
    clock = [0.0]
    monkeypatch.setattr(live, "monotonic", lambda: clock[0])
    target = console()
    with LiveView(target) as view:
        view(planned(0, 0.0, 0.0, final=2, final_seconds=500.0, test_seconds=300.0))
        view(StageBegan(name="final", trials=2))
        for seed in range(2):
            clock[0] += 100.0
            view(ended(seed=seed))
            assert view.seconds_left == pytest.approx(400.0 - 100 * seed, abs=4)
        clock[0] += 30.0
        view(PhaseBegan(phase=Phase.TESTING))
        assert shown(target)[-1] == "3.8 min  testing, about 5.0 min left"
        clock[0] += 100.0
        assert view.seconds_left == pytest.approx(200.0)
        clock[0] += 300.0
        assert view.seconds_left == 0.0


def test_without_a_plan_the_run_itself_tells_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `train`, which measures nothing beforehand: no time until there is one to tell."""
    clock = [0.0]
    monkeypatch.setattr(live, "monotonic", lambda: clock[0])
    target = console()
    with LiveView(target) as view:
        view(StageBegan(name="final", trials=1))
        assert view.seconds_left is None
        clock[0] += 40.0
        view(a_pack(trials=1))  # 90 of 360 steps
        assert view.seconds_left == pytest.approx(120.0)
        view(PhaseBegan(phase=Phase.TESTING))
        assert view.seconds_left is None
    assert shown(target)[-1] == "40 s  testing"


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(0.03, "learning rate", "learning rate 0.03"), (8.0, "rank", "rank 8"), (0.001, "nats", "0.001 nats")],
)
def test_a_unit_that_is_a_name_stands_before_its_number(value: float, unit: str, said: str) -> None:
    assert evidence_number(Evidence(claim="c", value=value, unit=unit, holds=True)) == said
