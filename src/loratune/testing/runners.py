"""The contract of a runner: what the driver relies on, wherever trials are trained.

class TestMine(RunnerContract):
    def make_runner(self, folder): return MyRunner(...)
    def trials(self): return [...]
"""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields, is_dataclass
from math import isclose
from pathlib import Path
from typing import Any, ClassVar, cast

from loratune.runners.runner import Runner, TrialDone, TrialJob
from loratune.values import Trial, TrialResult, TrialState


class RunnerContract:
    """Tests of one runner, on trials that it can train in a moment."""

    tolerance: ClassVar[float] = 1e-3
    """Relative difference in NLL that rounding explains between a trial alone and the same beside others."""

    def make_runner(self, folder: Path) -> Runner:
        """A new runner that may keep files in `folder`."""
        raise NotImplementedError

    def trials(self) -> Sequence[Trial]:
        """At least three different ones, cheap, of which none diverges."""
        raise NotImplementedError

    def test_each_trial_comes_to_one_result(self, tmp_path: Path) -> None:
        asked = self.trials()
        results = [done.result for done in _run(self.make_runner(tmp_path), asked)]
        assert sorted(_keys(results)) == sorted(trial.key for trial in asked)
        for result in results:
            assert result.state is TrialState.COMPLETE, result.message
            assert result.metrics["nll"] == result.nll
            assert result.cost >= 0

    def test_a_trial_is_the_same_alone_and_beside_others(self, tmp_path: Path) -> None:
        asked = self.trials()
        beside = {d.result.asked.key: d.result for d in _run(self.make_runner(tmp_path / "beside"), asked)}
        for trial in asked:
            (alone,) = _run(self.make_runner(tmp_path / trial.key), [trial])
            assert isclose(alone.result.nll, beside[trial.key].nll, rel_tol=self.tolerance), trial

    def test_results_are_values_that_travel(self, tmp_path: Path) -> None:
        """Pickled as they are, with no tensor in them; an adapter is a folder that is there."""
        for done in _run(self.make_runner(tmp_path), self.trials()):
            _assert_plain(done)
            back = pickle.loads(pickle.dumps(done))
            assert back.job == done.job
            assert back.result.nll == done.result.nll
            assert done.adapter is None or (done.adapter / "adapter_model.safetensors").is_file()

    def test_more_is_asked_for_while_others_run(self, tmp_path: Path) -> None:
        """Trials asked for later have results too; ended and running trials are reported correctly."""
        first, *later = self.trials()
        left = list(later)
        asked = {first.key}
        yielded: list[str] = []

        def more(done: Sequence[TrialResult], running: Sequence[Trial]) -> Sequence[Trial]:
            ended, live = set(_keys(done)), {trial.key for trial in running}
            assert live, "without a trial that runs it is the driver's turn"
            assert not ended & live
            assert ended | live <= asked
            assert ended <= set(yielded), "every result was handed over before more was asked for"
            further = [left.pop()] if left else []
            asked.update(trial.key for trial in further)
            return further

        jobs = [TrialJob(trial=first)]
        for done in self.make_runner(tmp_path).run(jobs, more):
            assert isinstance(done, TrialDone)
            yielded.append(done.result.asked.key)
        assert sorted(yielded) == sorted(asked)

    def test_it_goes_on_after_it_was_left_in_the_middle(self, tmp_path: Path) -> None:
        runner, asked = self.make_runner(tmp_path), self.trials()
        results = cast(Any, runner.run([TrialJob(trial=trial) for trial in asked]))
        with closing(results):
            first = next(results)
        rest = [trial for trial in asked if trial.key != first.result.asked.key]
        assert sorted(_keys([done.result for done in _run(runner, rest)])) == sorted(t.key for t in rest)

    def test_nothing_to_do_is_nothing(self, tmp_path: Path) -> None:
        runner = self.make_runner(tmp_path)
        assert list(runner.run([])) == []
        assert not runner.late


def _run(runner: Runner, trials: Sequence[Trial]) -> Iterator[TrialDone]:
    for done in runner.run([TrialJob(trial=trial) for trial in trials]):
        assert isinstance(done, TrialDone)
        yield done


def _keys(results: Sequence[TrialResult]) -> list[str]:
    return [result.asked.key for result in results]


def _assert_plain(value: Any) -> None:
    """No tensor, however deep."""
    assert not type(value).__module__.startswith("torch"), type(value)
    if is_dataclass(value):
        for each in fields(value):
            _assert_plain(getattr(value, each.name))
    elif isinstance(value, dict):
        for each in value.values():
            _assert_plain(each)
    elif isinstance(value, list | tuple):
        for each in value:
            _assert_plain(each)
