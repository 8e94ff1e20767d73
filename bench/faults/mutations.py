"""Files changed at random, read by what reads them: anything but a result or one of our sentences is counted.

python bench/faults/mutations.py --count 20000
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from place import Hang, keep, limited, search

import loratune
from loratune.costs import measuring
from loratune.errors import LoratuneError
from loratune.model.base import load_model
from loratune.model.profile import profile_from_config
from loratune.model.tokenizer import load_tokenizer
from loratune.reporting.result import load_result
from loratune.study.ledger import LedgerError, read_ledger, write_entry
from loratune.study.record import Study
from loratune.tuning.configuration import read_options
from loratune.tuning.experience import gather, task_of_study
from loratune.tuning.options import PriorOptions, TuneOptions

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

    def study() -> None:
        loratune.report(run)
        task_of_study(run)

    def entries() -> None:
        read_ledger(ledger)
        gather(PriorOptions(model="m", data=str(options["data"]), from_study=str(run)))

    def toml() -> None:
        TuneOptions(
            **{"model": "m", "data": "d"} | read_options(run / "loratune.toml")
        )  # the command line asks for them

    weights = partial(load_model, model, dtype="float32", device="cpu")
    return {
        run / "study.db": study,
        next((run / "trials").glob("*.npz")): lambda: Study.load(run, reading=True),
        run / "loratune.toml": toml,
        run / "result.json": lambda: load_result(run),
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
    random, found, troubles = Random(arguments.seed), Counter[str](), Counter[str]()
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        reading = readers(Path(name))
        for read in reading.values():
            read()  # all of it is sound
        for number in range(arguments.count):
            file = random.choice(list(reading))
            sound = file.with_name(f"{file.name}.sound")
            shutil.copyfile(file, sound)
            file.write_bytes(mutate(sound.read_bytes(), random))
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
    for trouble, times in troubles.most_common():
        print(times, trouble)
    kinds = {kind: found[kind] for kind in ("read", "sentences", "tracebacks", "hangs")}
    keep("changed files", count=arguments.count, **kinds)


if __name__ == "__main__":
    main()
