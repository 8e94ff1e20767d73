"""The table runner's snapping rules, and the replay's figures."""

import csv
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from loratune.errors import DataError
from loratune.values import HyperParameters, Trial
from planted import Planted
from simulated import COLUMNS, TableRunner, read_table

ROWS = """\
a,4,8,1e-4,8,0,1,0.5,0.90,0.5
a,4,8,1e-4,8,0,1,1.0,0.80,0.5
a,4,8,1e-3,8,0,1,1.0,0.50,0.6
a,4,8,1e-3,8,0,1,1.0,0.52,0.7
a,4,8,1e-3,32,0,1,1.0,0.60,
a,4,16,1e-3,32,0,1,1.0,0.61,
a,8,16,1e-4,8,0,1,1.0,0.70,0.5
a,8,16,1e-2,8,0,1,1.0,0.71,0.5
a,8,16,1e-2,8,1,1,1.0,0.73,0.5
b,4,8,1e-4,8,0,1,1.0,1.10,0.5
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv"
    path.write_text(",".join(COLUMNS) + "\n" + ROWS)
    return path


@pytest.fixture
def runner(table: Path) -> TableRunner:
    return TableRunner.open(table, "a")


def setting(r: int = 4, rate: float = 1e-3, batch: int = 8, alpha: float = 8) -> HyperParameters:
    return HyperParameters(r=r, lora_alpha=alpha, learning_rate=rate, batch_size=batch)


@pytest.mark.parametrize(
    ("asked", "rate", "batch", "alpha", "nll"),
    [
        (setting(), 1e-3, 8, 8, 0.51),  # equal keys are pooled
        (setting(rate=2e-4), 1e-4, 8, 8, 0.80),
        (setting(rate=5e-4), 1e-3, 8, 8, 0.51),  # nearer in log space
        (setting(rate=1e-6), 1e-4, 8, 8, 0.80),
        (setting(batch=20), 1e-3, 32, 8, 0.60),
        (setting(batch=64, alpha=15), 1e-3, 32, 16, 0.61),
        (setting(rate=1e-4, batch=32), 1e-4, 8, 8, 0.80),  # the learning rate goes first
        (setting(r=8, rate=2e-3), 1e-2, 8, 16, 0.71),  # a hole below the highest
    ],
)
def test_snapping(
    runner: TableRunner, asked: HyperParameters, rate: float, batch: int, alpha: float, nll: float
) -> None:
    (result,) = runner.run([Trial(hyper_parameters=asked)], runner.context())
    got = result.trial.hyper_parameters
    assert (got.learning_rate, got.batch_size, got.lora_alpha) == (rate, batch, alpha)
    assert result.nll == pytest.approx(nll)
    assert result.asked.hyper_parameters == asked


def test_above_the_ranks_highest_learning_rate_it_diverges(runner: TableRunner) -> None:
    high = setting(rate=1e-2)
    (result,) = runner.run([Trial(hyper_parameters=high)], runner.context())
    assert not result.finished
    assert runner.snap(setting(r=8, rate=1e-2)) is not None


def test_ranks_never_snap(runner: TableRunner) -> None:
    with pytest.raises(DataError, match="ranks never snap"):
        runner.run([Trial(hyper_parameters=setting(r=5))], runner.context())


def test_fractions_and_seeds(runner: TableRunner) -> None:
    context = runner.context()
    early, late = runner.run(
        [Trial(hyper_parameters=setting(rate=1e-4), fraction=f) for f in (0.3, 0.9)], context
    )
    assert (early.nll, early.trial.fraction, early.cost) == (0.90, 0.5, pytest.approx(0.5))
    assert (late.nll, late.trial.fraction) == (0.80, 1.0)
    seeds = runner.run([Trial(hyper_parameters=setting(r=8, rate=1e-2), seed=s) for s in (0, 1, 2)], context)
    assert [result.trial.seed for result in seeds] == [0, 1, 0]


def test_a_cell_is_paid_for_once(runner: TableRunner) -> None:
    context = runner.context()
    first, second = runner.run([Trial(hyper_parameters=setting(alpha=a)) for a in (8.0, 12.0)], context)
    assert (first.cost, second.cost) == (pytest.approx(1.0), 0.0)
    assert first.trial.key == second.trial.key


def test_context_of_a_table(table: Path) -> None:
    context = TableRunner.open(table, "a").context(budget=7, margin=0.01, seed=3)
    assert (context.wishes.ranks, context.wishes.batch_sizes, context.limits.seeds) == ((4, 8), (8, 32), 2)
    assert (context.wishes.budget, context.wishes.margin, context.wishes.seed) == (7, 0.01, 3)
    single = TableRunner.open(table, "b").context()
    assert single.limits.seeds == 1
    assert single.limits.seed_sd is not None
    assert single.wishes.lora_alpha == 8


def test_per_example_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "small.csv"
    path.write_text(",".join(COLUMNS) + "\n" + ROWS)
    values = np.array([0.4, 0.62], dtype=np.float16)
    np.savez(
        tmp_path / "small_per_example_nll.npz", **{"rank=4,learning_rate=0.001,batch_size=8,seed=0": values}
    )
    runner = TableRunner.open(path, "a")
    context = runner.context()
    with_rows, without = runner.run([Trial(hyper_parameters=setting(batch=b)) for b in (8, 32)], context)
    assert with_rows.example_nll == pytest.approx(values.astype(np.float64))
    assert without.example_nll is None
    assert context.data.validation_weights == pytest.approx([1.0, 1.0])


def test_sums_over_tokens_are_brought_to_the_tables_unit(tmp_path: Path) -> None:
    """Rows of 20 tokens on the average, whose mean NLL is the table's 0.51 nats per token."""
    path = tmp_path / "small.csv"
    path.write_text(",".join(COLUMNS) + "\n" + ROWS)
    sums = np.array([8.0, 12.4])
    np.savez(
        tmp_path / "small_per_example_nll.npz", **{"rank=4,learning_rate=0.001,batch_size=8,seed=0": sums}
    )
    runner = TableRunner.open(path, "a")
    (found,) = runner.run([Trial(hyper_parameters=setting(batch=8))], runner.context())
    assert found.example_nll == pytest.approx([0.4, 0.62])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task,rank\na,4\n", "lacks the columns lora_alpha"),
        (",".join(COLUMNS) + "\na,four,8,1e-4,8,0,1,1,0.5,\n", "line 2"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_table(path)


def test_a_missing_table_or_task_is_named(tmp_path: Path, table: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="choose one of a, b"):
        TableRunner.open(table, "c")


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "replay.py"
    spec = spec_from_file_location("replay", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["replay"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("strategy", ["evidence", "guide", "grid", "random", "tpe"])
def test_replay_prints_the_fixed_keys(
    replay: ModuleType, strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = Planted()
    path = truth.write(tmp_path / "planted.csv")
    arguments = ["--table", str(path), "--strategy", strategy, "--budget", "12"]
    assert replay.main([*arguments, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert set(answer) == {"task", "chosen", "regret", "cost_share", "rank_inferior", "evidence"}
    assert set(answer["chosen"]) == {"rank", "learning_rate", "batch_size", "lora_alpha"}
    assert answer["rank_inferior"] == (answer["chosen"]["rank"] < truth.smallest_adequate(0.005))
    assert 0 <= answer["regret"] < 1
    runs = len(TableRunner.open(path, "planted").full)
    assert 0 < answer["cost_share"] <= 12 / runs + 1e-9
    assert replay.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "always the largest rank" in printed
    assert "always r = 16" in printed


def test_replay_explains_a_wrong_name(
    replay: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Planted(seeds=1).write(tmp_path / "planted.csv")
    assert replay.main(["--table", str(path), "--strategy", "annealing"]) == 2
    assert "must be one of" in capsys.readouterr().err


def test_benchmark_writes_a_line_for_each_strategy_and_prior(replay: ModuleType, tmp_path: Path) -> None:
    table, out = Planted(seeds=1).write(tmp_path / "planted.csv"), tmp_path / "scores.csv"
    arguments = ["--table", str(table), "--benchmark", str(out), "--budgets", "5", "--seeds", "1"]
    assert replay.main(arguments) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["prior"] for row in rows if row["strategy"] == "evidence"} == set(replay.PRIORS)
    assert {"evidence", "guide", "grid", "random", "tpe", "always r = 16"} <= {
        row["strategy"] for row in rows
    }
    assert all(float(row["cost_mean"]) <= 5 for row in rows if row["strategy"] in ("evidence", "tpe", "grid"))
