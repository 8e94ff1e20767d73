"""The recorded workflows of bench/workflow: what they hold, and in which order their trials are trained."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from loratune.costs import measuring
from loratune.values import Stage

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    import workflow

    yield workflow
    for name in ("workflow", "peft_side", "record", "rows", "shapes", "timed"):
        sys.modules.pop(name, None)


def test_the_guides_list_is_the_published_example(workflow: ModuleType) -> None:
    recorded = workflow.Recorded.read(BENCH / "workflow" / "guide.json", 1.0)
    stages = Counter(trial.stage for trial in recorded.trials)
    assert stages == {Stage.RANK: 5, Stage.BATCH: 9, Stage.ALPHA: 3}  # the fourth alpha is the grid's
    assert recorded.rows == 5000
    assert recorded.epochs == 3
    assert [t.hyper_parameters.r for t in recorded.trials[:5]] == [4, 8, 16, 32, 64]
    assert {round(t.fraction * recorded.rows) for t in recorded.trials[:5]} == {1000}
    grid = {(t.hyper_parameters.learning_rate, t.hyper_parameters.batch_size) for t in recorded.trials[5:14]}
    assert len(grid) == 9
    assert [len(wave) for wave in recorded.waves] == [5, 9, 3]


@pytest.mark.parametrize("name", ["guide", "evidence"])
def test_waves_train_every_trial_once_and_after_what_it_waited_for(workflow: ModuleType, name: str) -> None:
    recorded = workflow.Recorded.read(BENCH / "workflow" / f"{name}.json", 0.1)
    assert len({trial.key for trial in recorded.trials}) == len(recorded.trials)
    trained: list[int] = []
    for wave in recorded.waves:
        ended: set[int] = set()
        while waiting := [i for i in recorded.ready(wave, ended) if i not in ended]:
            assert all(recorded.after[i] <= set(trained) for i in waiting)
            ended.add(waiting[0])
            trained.append(waiting[0])
    assert sorted(trained) == list(range(len(recorded.trials)))


def test_a_finished_part_is_not_run_again(
    workflow: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    options = ["--list", "guide", "--shape", "tiny", "--dtype", "float32", "--scale", "0.002"]
    options += ["--state", str(tmp_path / "state.json"), "--results", str(tmp_path / "results.csv")]
    workflow.main([*options, "--parts", "calibration,wave 1"])
    capsys.readouterr()
    workflow.main([*options, "--parts", "calibration,wave 1,wave 2,wave 3,final"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.endswith("(kept)")] == ["calibration", "wave 1"]
    assert "trials: 18" in lines
    with pytest.raises(SystemExit, match="another --state"):
        workflow.main([*options[:2], "--shape", "qwen2-0.5b", *options[4:]])
