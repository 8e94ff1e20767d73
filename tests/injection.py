"""One trial on the real engine with a fault of the caller's choice, and all that is then found."""

from dataclasses import replace
from functools import partial
from typing import Any

from chain import speaker, task
from engine_fixture import engine, trial
from loratune.analysis.diagnose import before_training, combined, of_trial
from loratune.data.table import TokenTable
from loratune.engine.live import EarlyStopping
from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter
from loratune.lora.spectrum import strengths
from loratune.model.base import BaseModel
from loratune.runners.local import LocalRunner
from loratune.values import Stage, Trial, TrialResult
from loratune.values.analysis import Diagnosis, Sign
from subjects import subject_of

MARGIN = 0.005
TRAIN, VALIDATION = 1, 7
"""Seeds of tables that share no row."""


def pack_engine(
    train: TokenTable, validation: TokenTable | None = None, base: BaseModel | None = None
) -> PackEngine:
    return engine(
        base or speaker(),
        train,
        validation or task(64, seed=VALIDATION),
        max_tokens_per_micro_batch=2048,
        launch_tokens=64,
    )


def trained(packs: PackEngine, subject: Trial) -> tuple[TrialResult, Adapter]:
    done: list[tuple[TrialResult, Adapter]] = []
    waiting = [subject]
    packs.run(
        lambda: waiting.pop() if waiting else None,
        slots=1,
        on_result=lambda result, adapter: done.append((result, adapter)),
        early_stopping=EarlyStopping(),
    )
    return done[0]


def run(
    train: TokenTable,
    validation: TokenTable | None = None,
    base: BaseModel | None = None,
    margin: float = MARGIN,
    **changes: Any,
) -> tuple[tuple[Diagnosis, ...], TrialResult]:
    """All that is found on one trial, healthy unless something is changed, and its result."""
    packs = pack_engine(train, validation, base)
    facts = {"r": 4, "lora_alpha": 8, "learning_rate": 1.5e-2, "batch_size": 8, "epochs": 3}
    result, adapter = trained(packs, replace(trial(0, **(facts | changes)), stage=Stage.FINAL))
    (bare,) = packs.evaluate([None], packs.validation)
    audit = partial(strengths, adapter, packs.base.model)
    after = of_trial(subject_of(packs), result, before=bare.nll, margin=margin, audit=audit)
    return combined(looked_at(packs), after), result


def looked_at(
    packs: PackEngine, test: TokenTable | None = None, *, removed: int = 0
) -> tuple[Diagnosis, ...]:
    """What is found before training, through this process's runner."""
    return before_training(subject_of(packs, test), LocalRunner(engine=packs, test=test), removed=removed)


def only(found: tuple[Diagnosis, ...], sign: Sign) -> Diagnosis:
    assert [each.sign for each in found] == [sign], [each.sentence for each in found]
    return found[0]
