"""A search in seconds, as whoever looks on is told of it: run it with a terminal, or with a file, for its output."""

import sys
import warnings
from math import inf
from time import sleep

from loratune.reporting import live
from loratune.reporting.screen import Screen
from loratune.reporting.subscribers import Terminal
from loratune.reporting.terminal import print_summary
from loratune.values import ModelProfile, Stage, TrialState
from loratune.values.events import (
    Event,
    Finished,
    LiveTrial,
    Note,
    Phase,
    PhaseBegan,
    Planned,
    Progress,
    StageBegan,
    TrialEnded,
)
from report_fixture import make_facts, make_trial, search_results

EXIT_REASON = (
    "The budget of 20 s ended before the stage batch size and learning rate, which is why the exit code is 3; "
    "the answer is the best that the finished trials support, and --resume with a larger --budget goes on."
)


def planned() -> Planned:
    """The plan of the made-up run, with sentences longer than any line."""
    facts = make_facts()
    return Planned(
        data=facts.profile,
        model=ModelProfile(
            name="tiny", family="llama", hidden_size=64, layers=2, attention_heads=4, vocabulary=1000,
            parameters=1_234_567, embedding_parameters=64_000, targets=(),
        ),
        plan=facts.plan,
        slots=8,
        peak_bytes=2**30,
        memory_bytes=2**33,
        search_seconds=825,
        final_seconds=60,
        final_run_seconds=60,
        test_seconds=5,
        data_notes=("17 rows repeat another one word for word, and stand in training alone. " * 2,),
        notes=("Times are those of a device that nothing else uses, measured before the first step. " * 2,),
    )  # fmt: skip


def events() -> list[Event]:
    """From loading to the end, a tall pack in between."""
    tall = tuple(
        LiveTrial(trial=make_trial(seed=seed).trial, step=90, total_steps=360, loss=0.4321)
        for seed in range(20)
    )
    pack = Progress(trials=tall, steps=1, tokens=5000, seconds=2.0, occupancy=20.0)
    told: list[Event] = [
        *(PhaseBegan(phase=phase) for phase in (Phase.LOADING, Phase.CALIBRATING)),
        Note(text="Calibrated on 3 shapes of a pack."),
        planned(),
    ]
    for stage in (Stage.RANK, Stage.BATCH, Stage.ALPHA):
        told += [PhaseBegan(phase=Phase.SEARCHING), StageBegan(name=str(stage), trials=12), pack]
        told += [TrialEnded.of(each) for each in search_results() if each.asked.stage is stage]
    told.append(TrialEnded.of(make_trial(r=64, state=TrialState.DIVERGED)))
    told += [
        Note(text=EXIT_REASON),
        PhaseBegan(phase=Phase.TESTING),
        Finished(directory="runs/mine", seconds=9),
    ]
    return told


def play() -> None:
    """All of it, each event drawn at once and by the view's own thread, and what others print meanwhile."""
    live._PLAIN_SECONDS = inf  # on a slow machine a file would have lines that no terminal has
    with Terminal() as terminal:
        for event in events():
            terminal(event)
            if isinstance(event, Progress | Note):
                if terminal._live is not None:
                    terminal._live.refresh()  # whenever the thread comes to it
                sleep(0.3)  # the view draws itself four times a second
                print("A line that a user's own metric prints.")
                warnings.warn(f"A warning of another library after {type(event).__name__}.", stacklevel=1)
    print_summary(Screen(), make_facts(cut_by_clock=True))


if __name__ == "__main__":
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
    play()
