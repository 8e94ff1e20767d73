"""Files changed at random, read by what reads them: anything but a result or one of our sentences is counted.

python bench/faults/mutations.py --count 20000
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from place import Hang, keep, limited, search

import loratune
from loratune.app.adapted import generate
from loratune.app.export import export
from loratune.app.live_page import watch
from loratune.app.report import facts_of
from loratune.costs import measuring
from loratune.data.prepare import prepare
from loratune.data.sources import DataOptions
from loratune.errors import LoratuneError
from loratune.model.base import load_model
from loratune.model.profile import profile_from_config
from loratune.model.tokenizer import load_tokenizer
from loratune.reporting.documents import to_markdown
from loratune.reporting.result import load_result
from loratune.study.ledger import LedgerError, read_ledger, write_entry
from loratune.study.record import Study
from loratune.tuning.configuration import read_options
from loratune.tuning.experience import gather, task_of_study
from loratune.tuning.options import PriorOptions, TuneOptions
from loratune.tuning.outcome import load_run

_TEXTS = (
    b"0",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"\xff\xfe",
    b"\x00",
    b"../x",
)


_CHEAP = (".json", ".jsonl", ".toml", ".npz")
"""Endings of files that are read in a moment, which come more often."""


def mutate(content: bytes, random: Random) -> bytes:
    """One to four changes: a byte, a piece that goes, is doubled, or becomes something odd, an end that is missing."""
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(content) + 1)
        length = random.choice((1, 1, 4, 40, 400))
        piece = content[place : place + length]
        new = random.choice(
            (
                bytes(random.randrange(256) for _ in piece),
                b"",
                piece * 2,
                random.choice(_TEXTS),
                random.choice(_TEXTS),
            )
        )
        content = content[:place] + new + content[place + length :]
        if random.random() < 0.05:
            content = content[:place]
    return content


def readers(folder: Path) -> dict[Path, Callable[[], object]]:
    """The files of a finished run, of the model and of the ledger, each with what a command does with it."""
    options = search(folder)
    run, model, ledger = folder / "run", str(options["model"]), folder / "ledger.db"
    loratune.tune(**options, out=run)
    write_entry(ledger, "k", str(run), task_of_study(run))

    rows = Path(str(options["data"]))

    def study() -> None:
        to_markdown(facts_of(run))
        task_of_study(run)

    def entries() -> None:
        read_ledger(ledger)
        gather(PriorOptions(model="m", data=str(rows), from_study=str(run)))

    def toml() -> None:
        TuneOptions(
            **{"model": "m", "data": "d"} | read_options(run / "loratune.toml")
        )  # the command line asks for them

    kept, followed = Study.load(run, reading=True), folder / "followed"
    followed.mkdir()
    shutil.copyfile(run / "events.jsonl", followed / "events.jsonl")

    def live() -> None:
        with watch([followed], port=0) as server:
            server.runs[0].state()

    tokenizer, weights = load_tokenizer(model), partial(load_model, model, dtype="float32", device="cpu")

    def adapter() -> None:
        generate(run, "meow 1", max_new_tokens=1)

    def carried() -> None:
        out = folder / "exported"
        shutil.rmtree(out, ignore_errors=True)
        export(run, to="peft", out=out)
        adapter()

    def prepared() -> None:
        prepare(DataOptions(data=str(rows)), tokenizer, end_of_turn=0, model_limit=256)

    return {
        run / "study.db": study,
        next((run / "trials").glob("*.npz")): kept.results,
        run / "loratune.toml": toml,
        run / "result.json": lambda: (load_result(run), load_run(run)),
        followed / "events.jsonl": live,
        run / "adapter" / "adapter_config.json": carried,
        run / "adapter" / "adapter_model.safetensors": adapter,
        rows: prepared,
        ledger: entries,
        Path(model) / "config.json": lambda: (profile_from_config(model, dtype="float32"), weights()),
        Path(model) / "tokenizer.json": lambda: load_tokenizer(model),
        Path(model) / "tokenizer_config.json": lambda: load_tokenizer(model),
        Path(model) / "model.safetensors": weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="Changed files.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    measuring.SECONDS = 0.05
    seconds: dict[str, float] = defaultdict(float)
    random, found, troubles = Random(arguments.seed), Counter[str](), Counter[str]()
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        reading = readers(Path(name))
        for read in reading.values():
            read()  # all of it is sound
        for number in range(arguments.count):
            (file,) = random.choices(list(reading), [10 if each.suffix in _CHEAP else 4 for each in reading])
            sound = file.with_name(f"{file.name}.sound")
            shutil.copyfile(file, sound)
            file.write_bytes(mutate(sound.read_bytes(), random))
            began = time.process_time()
            try:
                with limited():
                    reading[file]()
                found["read"] += 1
            except (LoratuneError, LedgerError):
                found["sentences"] += 1
            except Hang:
                found["hangs"] += 1
                troubles[f"{file.name} (change {number}): hang"] += 1
            except BaseException as error:
                found["tracebacks"] += 1
                troubles[f"{file.name}: {type(error).__name__}: {str(error)[:120]}"] += 1
            sound.replace(file)
            seconds[file.name] += time.process_time() - began
            if number % 1000 == 999:
                print(number + 1, dict(found), flush=True)
    print({name: round(spent, 1) for name, spent in sorted(seconds.items(), key=lambda each: -each[1])})
    for trouble, times in troubles.most_common():
        print(times, trouble)
    kinds = {kind: found[kind] for kind in ("read", "sentences", "tracebacks", "hangs")}
    keep("changed files", count=arguments.count, **kinds)


if __name__ == "__main__":
    main()
