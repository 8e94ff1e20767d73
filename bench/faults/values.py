"""Options with values drawn at random: refused in a sentence, or repeated by the file that is written of them.

python bench/faults/values.py --count 1000
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import fields
from math import inf, nan
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from place import Hang, keep, limited

from loratune.errors import LoratuneError
from loratune.tuning.configuration import read_options, to_toml
from loratune.tuning.options import TrainOptions, TuneOptions, keyword_options

_VALUES: tuple[Any, ...] = (
    *(
        0,
        1,
        2,
        -1,
        3,
        16,
        2**31,
        2**63,
        10**400,
        0.0,
        1.0,
        0.5,
        -0.1,
        1e-300,
        1e300,
        inf,
        -inf,
        True,
        False,
        None,
    ),
    *(
        "",
        " ",
        "a",
        "auto",
        "cpu",
        "30m",
        "3x",
        "1e999x",
        "24GiB",
        "-1GiB",
        "nll",
        "grid",
        "evidence",
        "~nobody/x",
    ),
    *(
        "🐈",
        "\x00",
        "\x7f",
        "\x1b[31m",
        "\udcff",
        "a" * 5000,
        "{text}",
        "{",
        "{0}",
        "%s",
        "sqlite:///x",
        "://",
    ),
    *([], [2, 8], [0], [1e-3, nan], [inf], ["q_proj"], [""], ["a", 1], [[1]], {}, {"a": 1}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="Sets of options.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random, found = Random(arguments.seed), Counter[str]()
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        file = Path(name) / "loratune.toml"
        for _ in range(arguments.count):
            kind = random.choice((TuneOptions, TrainOptions))
            names = [each.name for each in fields(kind)]
            values = {"model": "m", "data": "d"} | {
                each: random.choice(_VALUES) for each in random.sample(names, random.randint(1, 3))
            }
            try:
                with limited():
                    options = kind(**keyword_options(values))
                    if isinstance(options, TuneOptions):
                        file.write_text(to_toml(options), encoding="utf-8")
                        again = TuneOptions(**read_options(file))
                        found["accepted" if again == options or options.storage else "not repeated"] += 1
                    else:
                        found["accepted"] += 1
            except LoratuneError:
                found["sentences"] += 1
            except Hang:
                found["hangs"] += 1
                print("hang", values)
            except BaseException as error:
                found["tracebacks"] += 1
                print(
                    f"{type(error).__name__}: {str(error)[:100]}",
                    {k: repr(v)[:40] for k, v in values.items()},
                )
    kinds = {kind: found[kind] for kind in ("accepted", "not repeated", "sentences", "tracebacks", "hangs")}
    keep("option values", count=arguments.count, **kinds)


if __name__ == "__main__":
    main()
