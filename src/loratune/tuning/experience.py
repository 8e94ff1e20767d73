"""What is known before a search: measured tasks of the package, of the user's ledger, and of a study named by the user.

Turns finished studies into tasks and tasks into corrections of the laws. A ledger that cannot be used is a note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from json import dumps
from math import isfinite
from pathlib import Path
from typing import Any, Self

from loratune.errors import InputError, OutputError
from loratune.files.paths import user_path
from loratune.lora.layout import find_targets
from loratune.maths.curves import best_rate
from loratune.maths.laws import passes
from loratune.maths.learned import LEDGER, learn_rank, learn_rate, likeness, measured_tasks
from loratune.maths.prior import task_of
from loratune.study.ledger import Entry, LedgerError
from loratune.study.ledgers import Ledger, OwnLedger, keys_of, open_ledger, team_of
from loratune.study.record import Study
from loratune.tuning.configuration import storage_of
from loratune.tuning.options import CommonOptions, PriorOptions, SearchOptions
from loratune.tuning.workbench import Workbench
from loratune.values import Carried, Decision, Optimum, StudiedTask, TrialResult

TASK = "task"
"""Name of the study's fact that holds it as a `StudiedTask`."""
_SAMPLE = 2**20
"""Bytes read at each end of a data file."""
_FEWEST_RANKS = 2
_NAMED = "named"
"""`StudiedTask.source` of what the user named: it counts in full."""
_SHOWN = 4
"""Entries of the ledger that a note names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """Measured tasks beyond the package's, and which dataset the new task shares with them."""

    dataset: str
    tasks: tuple[StudiedTask, ...] = ()
    """All of them, the package's included."""
    notes: tuple[str, ...] = ()
    """What was taken over or could not be, a sentence each."""
    entries: tuple[Entry, ...] = ()
    """The tasks' entries in the ledger."""

    def of_ledger(self, target: StudiedTask) -> list[str]:
        """Which entries of the ledger the prior for this task takes in, in sentences."""
        weights = [(entry, likeness(entry.task, target)) for entry in self.entries]
        used = [(entry, weight) for entry, weight in weights if weight]
        sentences = []
        if used:
            same = sum(entry.task.dataset == self.dataset for entry, _ in used)
            names = [f"{entry.key} ({entry.task.model}, weight {weight:.2g})" for entry, weight in used]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            sentences.append(
                f"The prior takes in {len(used)} finished {'studies' if len(used) > 1 else 'study'} of the ledger, "
                f"{same} of them on this data: {', '.join(names[:_SHOWN])}{more}."
            )
        if far := len(weights) - len(used):
            sentences.append(
                f"{far} finished {'studies' if far > 1 else 'study'} of the ledger {'are' if far > 1 else 'is'} of "
                "models or data of another size and left out; --ledger KEY takes one in."
            )
        return sentences


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrections:
    """What the laws are corrected by for one task; kept in the study, so that a resumed search decides alike."""

    rate: float = 1.0
    rank: float = 1.0
    notes: tuple[str, ...] = ()
    batches: tuple[float, float] | None = None
    """Batch sizes worth trying, where a noise scale was measured."""
    carried: Carried | None = None
    """What a smaller model found, in place of all laws."""

    @classmethod
    def of_proxy(cls, found: Carried) -> Self:
        """The laws are not used."""
        return cls(notes=(found.sentence,), carried=found)


def dataset_name(options: CommonOptions) -> str:
    """What is the same for the same data, whatever model, seed or splits: a digest of the file, else its name."""
    path = user_path(options.data)
    if not path.is_file():
        return f"{options.data} {options.train_rows or ''}".strip()
    whole = blake2b(f"{path.stat().st_size} {options.train_rows}".encode(), digest_size=8)
    with path.open("rb") as file:
        whole.update(file.read(_SAMPLE))
        file.seek(max(0, path.stat().st_size - _SAMPLE))
        whole.update(file.read(_SAMPLE))
    return whole.hexdigest()


def task_at_hand(bench: Workbench, options: SearchOptions) -> StudiedTask:
    """The facts of what is about to be tuned; parameters per rank are of the layers that are targeted."""
    profile = bench.data.profile
    epochs = passes(options.epochs, profile.rows)
    task = task_of(profile, bench.profile, epochs=epochs, dataset=dataset_name(options))
    targets = find_targets(bench.profile.targets, options.target_modules)
    parameters = sum(target.in_features + target.out_features for target in targets)
    return replace(task, parameters_per_rank=parameters if task.parameters_per_rank else 0)


def study_key(fingerprint: dict[str, Any]) -> str:
    """Identity of a study: equal for a repetition with the same options, data and model."""
    return blake2b(dumps(fingerprint, sort_keys=True).encode(), digest_size=8).hexdigest()


def gather(options: PriorOptions, *, own_key: str = "") -> Experience:
    """The package's tasks, those of the ledger but `own_key`'s (a repetition decides alike), and the named study's.

    Raises `OutputError` where the study named by --from-study is not there or not finished.
    """
    dataset = dataset_name(options)
    if not options.kind.has_laws:
        return Experience(dataset=dataset, tasks=(), entries=(), notes=())
    tasks = list(measured_tasks())
    notes: list[str] = []
    entries: list[Entry] = []
    if not options.no_ledger:
        for ledger in _ledgers(options):
            try:
                found = ledger.read()
            except LedgerError as error:
                notes.append(_trouble(error, ledger))
                continue
            entries = _chosen(found.studies, keys_of(options.ledger), own_key)
            tasks += [entry.task for entry in entries]
            notes += [note] if (note := found.note(ledger.name)) else []
            break
    if options.from_study is not None:
        old = task_of_study(user_path(options.from_study))
        tasks = [task for task in tasks if (task.dataset, task.model) != (old.dataset, old.model)]
        tasks.append(replace(old, dataset=dataset, source=_NAMED))
        notes += _takeover(old, options.from_study, dataset)
    return Experience(dataset=dataset, tasks=tuple(tasks), entries=tuple(entries), notes=tuple(notes))


def _chosen(studies: Sequence[Entry], keys: Sequence[str], own_key: str) -> list[Entry]:
    """Those that --ledger names, which count in full whatever their size; else all. Never the study's own.

    Raises `InputError` for a key that the ledger does not have.
    """
    others = [entry for entry in studies if entry.key != own_key]
    if not keys:
        return others
    if missing := set(keys) - {entry.key for entry in studies}:
        raise InputError(
            f"--ledger must name entries of the ledger by their keys, but it has no {', '.join(sorted(missing))}; "
            "`loratune ledger list` shows them."
        )
    return [replace(entry, task=replace(entry.task, source=_NAMED)) for entry in others if entry.key in keys]


def correct(task: StudiedTask, experience: Experience) -> Corrections:
    """Factors on the laws for this task, and what they rest on where more than the package's tasks was there."""
    rate = learn_rate(task, experience.tasks).factor
    rank = learn_rank(task, experience.tasks).factor if task.parameters_per_rank else 1.0
    notes = [*experience.of_ledger(task), *experience.notes]
    if any(
        each.source == _NAMED or (each.source == LEDGER and likeness(each, task)) for each in experience.tasks
    ):
        plain = learn_rate(task, measured_tasks()).factor
        notes.append(
            f"With earlier studies the learning rate is expected at {rate:.2g} times the law's "
            f"(without them {plain:.2g}), the rank at {rank:.2g} times."
        )
    return Corrections(rate=rate, rank=rank, notes=tuple(notes))


def _takeover(old: StudiedTask, directory: str, dataset: str) -> list[str]:
    """What the named study brings, and whether its data file is this one."""
    best = min(old.optima, key=lambda each: each.nll, default=None)
    found = [] if best is None else [f"best at rank {best.r}, learning rate {best.learning_rate:.2g}"]
    if old.needed_rank:
        found.append(f"rank {old.needed_rank:g} recommended")
    note = (
        f"From {directory} ({old.model}): {len(old.optima)} measured learning-rate optima"
        + "".join(f", {each}" for each in found)
        + "; the effect of the data on learning rate and rank is taken over, sizes and family are the new model's."
    )
    if old.dataset == dataset:
        return [note]
    return [
        note,
        f"The data of {directory} is another file than this one; it is still taken for the same task.",
    ]


def task_of_study(directory: Path) -> StudiedTask:
    """A finished study as a task. Raises `OutputError` where there is none."""
    study = Study.load(directory, storage=storage_of(directory), reading=True)
    task = study.decode_fact(TASK, StudiedTask.from_dict)
    if task is None:
        raise OutputError(
            f"--from-study must name a finished study, but that of {directory} is not; finish it by tune --resume."
        )
    return task


def studied(
    task: StudiedTask, results: Sequence[TrialResult], decision: Decision, *, ranks_wished: bool
) -> StudiedTask:
    """The task with its optima and, where the search was free to choose between ranks, the rank it came to."""
    optima = optima_of(results)
    compared = len({each.r for each in optima}) >= _FEWEST_RANKS and not ranks_wished
    return replace(
        task,
        optima=optima,
        needed_rank=float(decision.hyper_parameters.r) if compared else 0.0,
        source=LEDGER,
    )


def optima_of(results: Sequence[TrialResult]) -> tuple[Optimum, ...]:
    """The best learning rate at each rank, alpha and batch size at which several were trained on all rows."""
    losses: dict[tuple[int, float, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        values = result.trial.hyper_parameters
        if result.trial.fraction < 1 or values.weight_decay or values.lora_dropout or values.variant:
            continue
        place = (values.r, values.lora_alpha, values.batch_size)
        losses[place][values.learning_rate].append(result.nll if result.finished else float("inf"))
    found = []
    for (r, alpha, batch), by_rate in sorted(losses.items()):
        rates = sorted(by_rate)
        means = [sum(by_rate[rate]) / len(by_rate[rate]) for rate in rates]
        if len(rates) < 2 or not any(map(isfinite, means)):
            continue
        rate, nll, inside = best_rate(rates, means)
        found.append(
            Optimum(r=r, lora_alpha=alpha, batch_size=batch, learning_rate=rate, nll=nll, inside=inside)
        )
    return tuple(found)


def remember(options: PriorOptions, key: str, directory: Path, task: StudiedTask) -> list[str]:
    """Write a finished study into the ledger; a sentence for each that it cannot be written into."""
    notes = []
    for ledger in _ledgers(options):
        try:
            ledger.write(key, str(directory.resolve()), task)
            break
        except LedgerError as error:
            notes.append(_trouble(error, ledger))
    return notes


def _trouble(error: LedgerError, ledger: Ledger) -> str:
    return str(error) if isinstance(ledger, OwnLedger) else f"{error} Meanwhile your own ledger is used."


def _ledgers(options: PriorOptions) -> list[Ledger]:
    """The one to be used, and behind a team's, which may be out of reach, the user's own."""
    first = open_ledger(team_of(options.ledger))
    return [first] if isinstance(first, OwnLedger) else [first, OwnLedger()]
