"""How long a strategy's whole workflow takes on a device: the recorded trials of bench/workflow/*.json, trained.

Random weights of a known shape, rows with banking77's lengths; calibration, packs and final run as `loratune tune`
has them. Each part's seconds go into a state file, so that a run can be cut into several commands; a part that is in
it is not run again. In the end what plain PEFT needs for the same steps one after the other, by its measured speed,
and a row in bench/results/workflow.csv. Imports neither Optuna nor datasets.

Learning rates are a thousandth of the recorded ones, since random weights would diverge and save time, and the final
run never stops early: what is timed is all steps.

python bench/workflow.py --list guide --shape llama3-8b
python bench/workflow.py --list evidence --shape tiny --scale 0.1
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, cast

import torch

from loratune.costs.calibration import Calibration
from loratune.costs.limits import Limits, limits_here
from loratune.costs.measuring import calibrate
from loratune.costs.planner import Planner
from loratune.costs.readings import plan_readings
from loratune.data.batches import total_steps
from loratune.model.base import BaseModel
from loratune.runners.local import LocalRunner
from loratune.runners.options import RunnerOptions
from loratune.runners.runner import TrialDone, TrialJob
from loratune.tuning.final import FOLDER, FinalRunner
from loratune.values import (
    DataFacts,
    HyperParameters,
    SearchContext,
    Trial,
    TrialResult,
    Wishes,
    default_recipe,
)
from loratune.values.events import Event, Progress, TrialEnded
from loratune.values.plain import to_plain
from peft_side import loop_rate
from record import append, circumstances
from rows import drawn_rows
from shapes import SHAPES, random_base
from subjects import subject_of
from timed import TimedEngine

HERE = Path(__file__).parent
SMALL_RATE = 1e-3
"""Of the recorded learning rates."""
NEVER = 1000
"""Patience of the final run."""
PEFT = "peft"
CALIBRATION, FINAL = "calibration", "final"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A list of trials as bench/workflow_lists.py wrote it."""

    strategy: str
    rows: int
    validation_rows: int
    test_rows: int
    epochs: float
    trials: tuple[Trial, ...]
    after: tuple[frozenset[int], ...]
    """For each trial the numbers of those that had ended when it was asked for."""
    chosen: HyperParameters

    @classmethod
    def read(cls, path: Path, scale: float) -> "Recorded":
        """With a share of the rows, and learning rates at which random weights stay finite."""
        found = json.loads(path.read_text(encoding="utf-8"))
        trials = [
            Trial.from_dict({k: v for k, v in each.items() if k != "after"}) for each in found["trials"]
        ]
        counts = {
            name: max(8, round(scale * found[name])) for name in ("rows", "validation_rows", "test_rows")
        }
        return cls(
            strategy=found["strategy"],
            epochs=found["epochs"],
            trials=tuple(replace(each, hyper_parameters=_gentle(each.hyper_parameters)) for each in trials),
            after=tuple(frozenset(each["after"]) for each in found["trials"]),
            chosen=_gentle(HyperParameters.from_dict(found["chosen"])),
            **counts,
        )

    @cached_property
    def waves(self) -> tuple[range, ...]:
        """Trials between two moments at which none was running."""
        starts = [i for i, after in enumerate(self.after) if len(after) == i]
        return tuple(
            range(start, stop) for start, stop in zip(starts, [*starts[1:], len(self.trials)], strict=True)
        )

    def ready(self, wave: range, ended: set[int]) -> list[int]:
        """Those of a wave that may begin once these have ended."""
        return [i for i in wave if self.after[i] <= ended | set(range(wave.start))]


def _gentle(setting: HyperParameters) -> HyperParameters:
    return replace(setting, learning_rate=SMALL_RATE * setting.learning_rate)


@dataclass(kw_only=True)
class Part:
    """What one part of a workflow took."""

    name: str
    trials: int = 0
    steps: int = 0
    """Optimiser steps of all its trials together."""
    pack_steps: int = 0
    tokens: int = 0
    """Trained real ones."""
    seconds: float = 0.0
    planned_seconds: float = 0.0
    """Predicted for training without evaluations."""
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """Trials that did not train all their steps."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.pack_steps += event.steps
            self.training_seconds += event.seconds
        if isinstance(event, TrialEnded):
            self.trials += 1
            self.steps += event.steps
            self.tokens += event.trained_tokens
            if event.message:
                self.notes.append(f"{event.key}: {event.message}")

    def line(self) -> str:
        """For people."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return (
            f"{self.name:<12} {self.trials:>3} trials {self.steps:>6} steps in {self.pack_steps:>5} pack steps "
            f"{self.tokens:>9,} tokens  {self.seconds:7.1f} s "
            f"(planned {self.planned_seconds:6.1f} for those asked first)  "
            f"{rate:>7,.0f} tokens/s  evaluation {self.evaluation_seconds / max(self.seconds, 1e-9):5.1%}"
        )


@dataclass
class Kept:
    """A study in memory: what the runners need of one."""

    directory: Path
    found: list[TrialResult] = field(default_factory=list)

    def results(self) -> list[TrialResult]:
        return self.found

    def record(self, result: TrialResult) -> None:
        self.found.append(result)


@dataclass(kw_only=True)
class State:
    """The finished parts, in a file."""

    path: Path
    of: dict[str, Any]
    """What was run; another run's file is not continued."""
    parts: dict[str, Part] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    peft_seconds: float = 0.0

    @classmethod
    def open(cls, path: Path, of: dict[str, Any]) -> "State":
        state = cls(path=path, of=of)
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["of"] != of:
                raise SystemExit(
                    f"{path} is the state of {found['of']}, not of {of}; delete it or give another --state."
                )
            state.parts = {name: Part(**each) for name, each in found["parts"].items()}
            state.calibration, state.peft_seconds = found["calibration"], found["peft_seconds"]
        return state

    def keep(self, part: Part) -> None:
        """A finished part; told and written."""
        self.parts[part.name] = part
        print(part.line(), *part.notes, sep="\n  ", flush=True)
        document = {
            "of": self.of, "calibration": self.calibration, "peft_seconds": self.peft_seconds,
            "parts": {name: asdict(each) for name, each in self.parts.items()},
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


class Workflow:
    """A recorded list on a base model, part by part."""

    def __init__(self, recorded: Recorded, base: BaseModel, state: State) -> None:
        self.recorded, self.base, self.state = recorded, base, state
        rows = [recorded.rows, recorded.validation_rows, recorded.test_rows]
        tables = [drawn_rows("banking77", base.profile.vocabulary, n, seed=i) for i, n in enumerate(rows)]
        self.train, self.validation, self.test = tables
        facts = SearchContext(
            data=DataFacts(
                rows=len(self.train),
                tokens=int(self.train.lengths.sum()),
                supervised_tokens=int(self.train.supervised_counts.sum()),
                validation_tokens=int(self.validation.lengths.sum()),
            ),
            wishes=Wishes(epochs=recorded.epochs),
        )
        readings = plan_readings(facts, len(self.validation))
        self.engine = TimedEngine(
            base=base,
            train=self.train,
            validation=self.validation,
            study_seed=0,
            cost=facts.cost,
            validation_subset_size=readings.rows,
            evaluations_per_trial=readings.count,
        )
        self.limits: Limits = limits_here(base, self.engine.chosen_paths, self.train, self.validation)
        self._use(self.limits.micro_batch_tokens)

    def _use(self, tokens: int) -> None:
        """Micro-batches of so many tokens, from now on; one engine for all that follows, as tune has."""
        if tokens != self.engine.max_tokens_per_micro_batch:
            self.engine = self.engine.with_micro_batches(tokens)
            self.limits = replace(self.limits, micro_batch_tokens=tokens)

    def parts(self) -> dict[str, Callable[[Part], None]]:
        """By name, in order."""
        waves = {f"wave {i}": wave for i, wave in enumerate(self.recorded.waves, 1)}
        return {
            CALIBRATION: self.calibrate,
            **{name: lambda part, wave=wave: self.wave(part, wave) for name, wave in waves.items()},  # type: ignore[misc]
            FINAL: self.final,
            PEFT: self.peft,
        }

    def run(self, names: Sequence[str]) -> None:
        """The parts of these names that are not in the state."""
        todo = self.parts()
        for name in names:
            if name in self.state.parts:
                print(self.state.parts[name].line(), "(kept)", flush=True)
                continue
            part = Part(name=name)
            self.engine.clock.seconds = 0.0
            started = perf_counter()
            todo[name](part)
            part.seconds = part.seconds or perf_counter() - started
            part.evaluation_seconds = self.engine.clock.seconds
            self.state.keep(part)

    def calibrate(self, part: Part) -> None:
        """As before a plan."""
        recipe = default_recipe(self.recorded.epochs)
        self.state.calibration = to_plain(calibrate(self.engine, self.limits, recipe))

    def _planner(self) -> Planner:
        if self.state.calibration is None:
            raise SystemExit(f"The part {CALIBRATION!r} must be run first; add it to --parts.")
        calibration = Calibration.from_dict(self.state.calibration)
        self._use(calibration.micro_batch_tokens)
        return Planner(
            limits=replace(self.limits, correction=calibration.correction),
            times=calibration.times,
            rows=len(self.train),
            tokens=int(self.train.lengths.sum()),
            slots=calibration.slots,
        )

    def wave(self, part: Part, wave: range) -> None:
        """Trials asked for from here until none is running."""
        planner, recorded = self._planner(), self.recorded
        number = {recorded.trials[i].key: i for i in wave}
        asked = set(recorded.ready(wave, set()))

        def more(results: Sequence[TrialResult], running: Sequence[Trial]) -> list[Trial]:
            ended = {number[result.asked.key] for result in results}
            further = [i for i in recorded.ready(wave, ended) if i not in asked]
            asked.update(further)
            return [recorded.trials[i] for i in further]

        first = [recorded.trials[i] for i in sorted(asked)]
        part.planned_seconds = planner.plan(first).seconds
        runner, done = (
            LocalRunner(engine=self.engine, options=RunnerOptions(planner=planner, tell=part)),
            list[TrialResult](),
        )
        while first:
            ended: list[TrialResult] = []
            for each in runner.run([TrialJob(trial=trial) for trial in first], more):
                assert isinstance(each, TrialDone)
                ended.append(each.result)
                part(TrialEnded.of(each.result))
            done += ended
            first = more(done, ())

    def final(self, part: Part) -> None:
        """The chosen setting with evaluations all along, and the test rows."""
        self._planner()
        with TemporaryDirectory() as folder:
            FinalRunner(
                runner=LocalRunner(
                    engine=self.engine,
                    test=self.test,
                    options=RunnerOptions(folder=Path(folder) / FOLDER, tell=part),
                ),
                subject=subject_of(self.engine, self.test),
                study=cast(Any, Kept(Path(folder))),
                patience=NEVER,
                tell=part,
            ).run(self.recorded.chosen, None, seed=0)

    def peft(self, part: Part) -> None:
        """Plain PEFT's seconds for all steps one after the other, from three measured seconds of each kind of step."""
        recorded, rates = self.recorded, {}
        final = Trial(hyper_parameters=recorded.chosen)
        for trial in (*recorded.trials, final):
            recipe = trial.hyper_parameters
            kind = recipe.batch_size, recipe.target_modules, recipe.lora_dropout
            if kind not in rates:
                rates[kind] = loop_rate(self.base, self.train, recipe, 3.0)
                print(
                    f"  PEFT, batch {kind[0]}, {' '.join(kind[1])}: {rates[kind]:,.0f} tokens/s", flush=True
                )
            rows = ceil(round(trial.fraction * len(self.train), 9))
            steps = total_steps(rows, recipe.batch_size, recipe.epochs)
            tokens = steps * recipe.batch_size * float(self.train.lengths.mean())
            part.trials, part.steps = part.trials + 1, part.steps + steps
            part.tokens += round(tokens)
            part.seconds += tokens / rates[kind]
        self.state.peft_seconds = part.seconds


def summary(state: State) -> dict[str, Any]:
    """All finished parts but PEFT's together."""
    ours = [part for name, part in state.parts.items() if name != PEFT]
    seconds = sum(part.seconds for part in ours)
    evaluation = sum(part.evaluation_seconds for part in ours if part.name != CALIBRATION)
    return {
        **state.of,
        "trials": sum(part.trials for part in ours),
        "steps": sum(part.steps for part in ours),
        "pack_steps": sum(part.pack_steps for part in ours),
        "tokens": sum(part.tokens for part in ours),
        "seconds": round(seconds, 1),
        "calibration_seconds": round(state.parts[CALIBRATION].seconds, 1),
        "final_seconds": round(state.parts[FINAL].seconds, 1),
        "evaluation_share": round(evaluation / seconds, 3),
        "peft_seconds": round(state.peft_seconds) or "",
        "peft_over_ours": round(state.peft_seconds / seconds, 2) or "",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for; with all of them done, print and append the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--list", default="guide", help="a name in bench/workflow")
    parser.add_argument("--shape", default="llama3-8b", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows")
    parser.add_argument("--parts", help="names, separated by commas; default: all")
    parser.add_argument("--state", type=Path, help="default: bench/results/workflow-LIST-SHAPE.json")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "workflow.csv")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    of = {"list": options.list, "shape": options.shape, "dtype": options.dtype, "scale": options.scale}
    path = options.state or HERE / "results" / f"workflow-{options.list}-{options.shape}.json"
    state = State.open(path, of)
    recorded = Recorded.read(HERE / "workflow" / f"{options.list}.json", options.scale)
    base = random_base(options.shape, getattr(torch, options.dtype), device)
    workflow = Workflow(recorded, base, state)
    print(*workflow.engine.chosen_paths.lines(), sep="\n", flush=True)
    names = list(workflow.parts())
    wanted = options.parts.split(",") if options.parts else names
    if unknown := [name for name in wanted if name not in names]:
        raise SystemExit(f"--parts must be of {', '.join(names)}, got {', '.join(unknown)}.")
    workflow.run(wanted)
    if set(names) - {PEFT} <= set(state.parts):
        row = summary(state)
        print(*(f"{key}: {value}" for key, value in row.items()), sep="\n", flush=True)
        append(options.results, circumstances() | row)


if __name__ == "__main__":
    main()
