"""Going on with a study: whether one is there, whether anything is left to do, what a resumption relies on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, fields, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from shlex import quote
from time import monotonic
from typing import Any

from loratune.costs.calibration import CALIBRATION, Calibration
from loratune.errors import OutputError, ResourceError, interrupted
from loratune.files.lock import FolderLock, check_new, is_empty
from loratune.files.paths import check_own, disk_is_full, fullest_disk
from loratune.files.read_json import parse_json
from loratune.files.write import remove_unfinished, write_atomically
from loratune.lora.peft_io import WEIGHTS
from loratune.metrics import find, is_address, searched_by
from loratune.metrics.function import source_digest
from loratune.model.device import WORKERS
from loratune.model.digest import tokenizer_digest, weights_digest, weights_times
from loratune.model.source import locate
from loratune.runners.leases import FOLDER as QUEUE
from loratune.study.database import FILE
from loratune.study.ledgers import team_of
from loratune.study.record import PROXY, Study
from loratune.study.secrets import masked
from loratune.tuning.configuration import FILE as TOML
from loratune.tuning.configuration import hides_storage, to_toml
from loratune.tuning.experience import Corrections, correct, gather, study_key, task_at_hand
from loratune.tuning.forecast import Forecast, budget_values, first_forecast, forecast
from loratune.tuning.options import TuneOptions
from loratune.tuning.proxy import belongs_to
from loratune.tuning.workbench import Workbench, search_context
from loratune.values import PLAIN, Carried, Pace
from loratune.values.events import Note, Phase, PhaseBegan, Tell
from loratune.values.plain import from_plain, to_plain

_FREE = (
    "out",
    "storage",
    "resume",
    "budget",
    "pack_size",
    "recalibrate",
    "device",
    "device_memory",
    "recompute",
    "devices",
    "shard_base",
    "ray",
    "ledger",
    "no_ledger",
    "from_study",
    "price_per_hour",
    "report_to",
)
"""Options that may change between a run and its resumption: they change no trial beyond rounding
(what earlier studies say is kept in the study)."""
_WEIGHT_FORMAT = "weight_format"
_METRIC_DIGEST = "metric_digest"
_WEIGHTS_TIMES = "weights_times"
_SAMPLE = 64 * 1024
"""Bytes read at each end of a weight file: names and shapes stand at the start, numbers at the end."""


def option_values(options: TuneOptions) -> dict[str, Any]:
    """The options that a study's trials and decisions depend on, as JSON values."""
    given = {name: value for name, value in asdict(options).items() if name not in _FREE}
    return {**given, "metric": options.optimised}


def default_values() -> dict[str, Any]:
    """What an option stands for that a study does not have, as it is older than the option."""
    return {
        each.name: each.default
        for each in fields(TuneOptions)
        if each.default is not MISSING and each.name not in _FREE
    }


def fingerprint(options: TuneOptions, bench: Workbench) -> dict[str, Any]:
    """`option_values`, and what became of them: digests of rows and model, number format, largest batch."""
    return {
        **option_values(options),
        "data_digest": bench.data.fingerprint,
        "model_digest": model_digest(options.model),
        "tokenizer_digest": tokenizer_digest(locate(options.model)),
        "weights_digest": weights_digest(locate(options.model), every_byte=options.hash_weights),
        "base_dtype": bench.facts.dtype,
        **_format_of(bench.profile.weight_format),
        **_own_metric(options.optimised),
        "largest_batch": search_context(bench, options).limits.largest_batch,
    }


def _own_metric(name: str) -> dict[str, str]:
    """What became of the user's own function, as text: edited, it would score later trials otherwise."""
    digest = source_digest(find(name)) if is_address(name) else None
    return {} if digest is None else {_METRIC_DIGEST: digest}


def _format_of(weight_format: str) -> dict[str, str]:
    """Left out where weights are plain, as they all were in older studies."""
    return {} if weight_format == PLAIN else {_WEIGHT_FORMAT: weight_format}


def kept_format(study: Study) -> str | None:
    """The base model's in a study that was begun, which a device with more or less room does not change."""
    kept = study.get_fact("fingerprint")
    return str(kept.get(_WEIGHT_FORMAT, PLAIN)) if isinstance(kept, dict) else None


def model_digest(model: str) -> str:
    """16 hex digits over the configuration and the names, sizes and both ends of the weight files.

    Studies of format 1 have no other digest of the model.

    Raises `ModelError` where there is no such model.
    """
    source = locate(model)
    whole = blake2b(digest_size=8)
    if source.gguf is None:
        whole.update((source.folder / "config.json").read_bytes())
        weights = sorted(source.folder.glob("*.safetensors"))
    else:
        weights = [source.folder / source.gguf]
    for path in weights:
        whole.update(f"{path.name} {path.stat().st_size} ".encode())
        whole.update(_ends(path))
    return whole.hexdigest()


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_SAMPLE)
        file.seek(max(0, path.stat().st_size - _SAMPLE), os.SEEK_SET)
        return start + file.read(_SAMPLE)


_RESULT = "result.json"
CUT, SECONDS, PEAK, CLOCK_START = "cut", "seconds", "peak_bytes", "clock_start"
_BUDGET, _CORRECTIONS = "budget", "corrections"


def find_study(options: TuneOptions) -> Study | None:
    """The study that `--resume` continues; None where a new one begins.

    Raises `OutputError` where `--out` holds anything else, or a study that was started with other options.
    """
    directory = options.directory
    if not options.resume:
        check_new(directory, "continue its study with --resume, or choose another --out")
        return None
    check_own(directory)
    begun = options.proxy is None or (directory / FILE).exists()  # else it was at the proxy's search
    study = Study.find(directory, storage=options.storage, reading=True) if begun else None
    if study is not None:
        study.check(option_values(options), absent=default_values())
    elif directory.exists() and not (directory.is_dir() and _only_begun(options)):
        raise OutputError(
            f"--resume must find a study of loratune tune in --out, but {directory} holds something else; "
            "choose another --out."
        )
    return study


def _only_begun(options: TuneOptions) -> bool:
    """Whether a run was killed here before it had a study: nothing but a database without one, and the proxy's run."""
    begun = {FILE} if options.proxy is None else {FILE, TOML, PROXY}
    directory = options.directory
    return is_empty(directory) or {path.name for path in directory.iterdir() if path.name[0] != "."} <= begun


def is_finished(study: Study, options: TuneOptions) -> bool:
    """Whether nothing is left to do: complete, not cut by the clock, and planned for the same budget."""
    complete = _has_answer(options.directory) and not study.get_fact(CUT, False)
    return complete and _planned(study, options) is not None


def _has_answer(directory: Path) -> bool:
    """Whether the answer is still what was written; what has been lost of it is made again from the study."""
    try:
        written = parse_json((directory / _RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and "schema" in written and (directory / "adapter" / WEIGHTS).is_file()


def _planned(study: Study, options: TuneOptions) -> dict[str, Any] | None:
    """`runs`, `seconds` and `pace` as planned for this budget; None where it was another or is not kept."""
    kept = study.decode_fact(_BUDGET, _budget)
    return kept[1] if kept is not None and kept[0] == options.budget else None


def _budget(kept: Any) -> tuple[str, dict[str, Any]]:
    pace = kept.get("pace")  # a version that knew of none planned without
    numbers = {name: float(kept[name]) for name in ("runs", "seconds")}
    return str(kept["option"]), {**numbers, "pace": None if pace is None else from_plain(Pace, pace)}


def open_study(options: TuneOptions, bench: Workbench, lock: FolderLock, tell: Tell) -> Study:
    """Create the study, or open it, as the only run in its directory.

    Raises `OutputError` where another run is at it, or it was started with other data or another model.
    """
    lock.acquire()
    study = Study.open(
        options.directory,
        storage=options.storage,
        resume=options.resume,
        fingerprint=fingerprint(options, bench),
        metric=searched_by(find(options.optimised)).name,
        absent=default_values() | _own_metric(options.optimised),  # an older study takes the function of now
    )
    notice_times(study, options, tell)
    if study.damaged:
        tell(Note(text=f"{study.damaged} trials of the study cannot be read; they are trained again."))
    return study


def notice_times(study: Study, options: TuneOptions, tell: Tell) -> None:
    """Tell once of weight files that were written since the study began: a sample of them cannot see every change."""
    times = weights_times(locate(options.model))
    earlier = study.get_fact(_WEIGHTS_TIMES, times)
    if earlier != times and not options.hash_weights:
        tell(
            Note(
                text=f"Weight files of {options.model} were written or copied since the study began; sizes and sampled "
                "blocks are as they were (every byte is compared in studies that begin with --hash-weights)."
            )
        )
    if study.get_fact(_WEIGHTS_TIMES) != times:
        study.put_fact(_WEIGHTS_TIMES, times)


def has_carried(study: Study | None) -> bool:
    """Whether what a proxy found is in the study of the larger model."""
    kept = study.decode_fact(_CORRECTIONS, partial(from_plain, Corrections)) if study else None
    return kept is not None and kept.carried is not None


def price(
    options: TuneOptions,
    bench: Workbench,
    study: Study | None,
    started: float,
    tell: Tell,
    carried: Carried | None = None,
) -> Forecast:
    """Calibration, budget and what corrects the laws are settled once per study: a resumed search decides alike.

    `carried`: what a proxy has just found.
    """
    kept = study.decode_fact(CALIBRATION, Calibration.from_dict) if study else None
    if kept is None:
        tell(PhaseBegan(phase=Phase.CALIBRATING))
    calibration = bench.calibrate(options, monotonic() - started) if kept is None else kept
    planned = _planned(study, options) if study else None
    corrections = study.decode_fact(_CORRECTIONS, partial(from_plain, Corrections)) if study else None
    if corrections is not None:
        return forecast(
            bench, options, calibration, started=started, planned=planned, corrections=corrections
        )
    if carried is not None:
        corrections = Corrections.of_proxy(carried)
        return forecast(bench, options, calibration, started=started, corrections=corrections)
    experience = gather(options, own_key=study_key(fingerprint(options, bench)))
    corrections = correct(task_at_hand(bench, options), experience)
    return first_forecast(bench, options, calibration, started=started, corrections=corrections, tell=tell)


def begin(study: Study, options: TuneOptions, priced: Forecast) -> None:
    """Write down what a resumption relies on, where it is new or a kill left it out.

    A complete run becomes an incomplete one: its clock starts again and its result is removed.
    """
    result = options.directory / _RESULT
    if result.exists():
        study.put_fact(CLOCK_START, study.get_fact(SECONDS, 0.0))
        result.unlink()
        study.put_fact("facts", None)
    if study.get_fact(CALIBRATION) is None:
        study.put_fact(CALIBRATION, to_plain(priced.calibration))
    if study.get_fact(_CORRECTIONS) is None:
        study.put_fact(_CORRECTIONS, to_plain(priced.corrections))
    if _planned(study, options) is None:
        study.put_fact(_BUDGET, budget_values(options.budget, priced))
    if options.devices == WORKERS:
        study.put_fact(QUEUE, str(options.directory.resolve()))
    for folder in (options.directory, options.directory / "trials"):
        remove_unfinished(folder)
    write_atomically(options.directory / TOML, to_toml(replace(options, resume=False)))


def predicted_seconds(study: Study, options: TuneOptions, priced: Forecast) -> float:
    """Seconds of the whole run, as they were predicted when it was planned."""
    planned = _planned(study, options)
    return planned["seconds"] if planned else priced.seconds


@contextmanager
def resumable(options: TuneOptions, keep_costs: Callable[[], None]) -> Iterator[None]:
    """If a run ends early, its costs so far are kept and the message says how to continue.

    Raises `Interrupted` for signals, `ResourceError` for a disk that is full; other errors pass.
    """
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # the same disk, perhaps; the first error is what the user must hear of
            keep_costs()
        kept = f"finished work is kept: continue with {resume_command(options)}."
        if isinstance(error, KeyboardInterrupt):
            raise interrupted(error, f"Interrupted; {kept}") from None
        if disk_is_full(error):
            raise ResourceError(
                f"The disk {fullest_disk(options.directory)} is full; free some space there, {kept}"
            ) from None
        raise
    keep_costs()


def resume_command(options: TuneOptions) -> str:
    """What the user types to go on; with it a metric of their own, a cluster and a team's ledger, which are only used
    where they name them, and a storage URL that the file does not hold; secrets masked.
    """
    directory = belongs_to(options.directory)
    command = f"loratune tune --config {quote(str(directory / TOML))} --resume"
    if is_address(options.optimised):
        command += f" --metric {options.metric}"
    if options.ray is not None:
        command += f" --ray {quote(options.ray)}"
    if (team := team_of(options.ledger)) is not None:
        command += f" --ledger {quote(masked(team))}"
    if options.storage is None or not hides_storage(options):
        return command
    return f"{command} --storage {quote(masked(options.storage))}"
