"""What is known of a study's rows and base model without a device; what needs one is a job of a runner."""

from dataclasses import dataclass

from loratune.data.batches import Rows, TrialBatches, batches_of, sampled_rows
from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.engine.scoring import Scoring
from loratune.lora.spectrum import Strengths
from loratune.runners.runner import (
    AdapterFile,
    Audited,
    AuditJob,
    Evaluated,
    Runner,
    ScoringJob,
    Split,
    Text,
    only,
)
from loratune.values import ModelProfile, Trial


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """Rows, profile, and how results are measured."""

    train: TokenTable
    validation: TokenTable
    scoring: Scoring
    profile: ModelProfile
    labelled: bool
    """Whether completions are labels."""
    seed: int
    """The study's seed."""
    test: TokenTable | None = None
    group: int = 1
    """Rows that belong together."""
    on_cpu: bool = True
    """Whether trials are trained there."""

    @property
    def classifies(self) -> bool:
        """Whether a head answers, so that text has no likelihood."""
        return self.train.answers is not None

    def sampled_rows(self, rows: int | None) -> Rows:
        """Validation rows: those that an engine's readings take; None: all."""
        return sampled_rows(len(self.validation), rows, seed=self.seed, group=self.group)

    def batches(self, trial: Trial) -> TrialBatches:
        """The rows of a trial, step by step."""
        return batches_of(trial, len(self.train), study_seed=self.seed, group=self.group)


def base_on(runner: Runner, split: Split, rows: Rows | None = None, text: Text = "supervised") -> Evaluation:
    """The bare base on some rows of a split; None: all."""
    chosen = None if rows is None else tuple(int(row) for row in rows)
    done = only(runner.run([ScoringJob(adapters=(None,), split=split, chosen=chosen, text=text)]))
    assert isinstance(done, Evaluated)
    return done.evaluations[0]


def audited(runner: Runner, adapter: AdapterFile) -> Strengths:
    """The strengths of an adapter's matrices."""
    done = only(runner.run([AuditJob(adapter=adapter)]))
    assert isinstance(done, Audited)
    return done.strengths
