"""The trackers by library. Each class is a `Tracker` and imports its library only when a run begins.

TensorBoard writes event files in `tensorboard/` of the run directory, a folder for each trial. Weights & Biases has
a run for each trial, all in one group, and one for the answer; `WANDB_MODE` decides where they go, and without it and
a key they stay offline until `wandb sync`. MLflow has a run for the search and one below it for each trial, in
`MLFLOW_TRACKING_URI`. Trackio has local runs like those of Weights & Biases; `TRACKIO_DIR` moves its database.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from time import time
from typing import Any

from loratune.trackers.tracker import PROJECT, TrackedAnswer, TrackedRun, TrackedTrial, Value

FOLDER = "tensorboard"


class TensorBoard:
    """A `Tracker`."""

    def __init__(self) -> None:
        self._folder = Path()
        self._writer: Any = None

    def begin(self, run: TrackedRun) -> None:
        self._folder = run.folder / FOLDER
        self._writer = _writer(self._folder / "run")
        self._writer.add_text("options", _table(run.config))

    def trial(self, trial: TrackedTrial) -> None:
        folder = self._folder / trial.name
        if folder.exists():
            return  # an earlier part of the run has written it
        writer = _writer(folder)
        for step, values in trial.curve:
            for name, value in values.items():
                writer.add_scalar(name, value, step, walltime=trial.ended or None)
        end = {f"end/{name}": value for name, value in trial.metrics.items()}
        writer.add_hparams(dict(trial.parameters), end, run_name=".")
        writer.close()

    def answer(self, answer: TrackedAnswer) -> None:
        self._writer.add_text("recommended", _table(answer.parameters))
        self._writer.add_text("files", _table(answer.files))
        for name, value in answer.metrics.items():
            self._writer.add_scalar(name, value, 0)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _table(values: Mapping[str, Value]) -> str:
    """Markdown, which TensorBoard shows; text from outside as code."""
    rows = [
        f"| {name} | `{str(value).replace('`', chr(39)).replace('|', '¦')}` |"
        for name, value in values.items()
    ]
    return "\n".join(["| | |", "|---|---|", *rows])


class WeightsAndBiases:
    """A `Tracker`."""

    def __init__(self) -> None:
        self._run: TrackedRun | None = None

    def begin(self, run: TrackedRun) -> None:
        import wandb  # noqa: F401 -- that it can be had is known now, not after the first trial

        self._run = run

    def trial(self, trial: TrackedTrial) -> None:
        run = self._open(trial.name, "trial", trial.parameters)
        for step, values in trial.curve:
            run.log(dict(values), step=step)
        run.summary.update(dict(trial.metrics))
        run.finish(exit_code=0 if trial.finished else 1)

    def answer(self, answer: TrackedAnswer) -> None:
        run = self._open("recommended", "answer", answer.parameters)
        run.summary.update({**answer.metrics, **answer.files})
        run.finish()

    def close(self) -> None:
        """Nothing: each of its runs has ended."""

    def _open(self, name: str, kind: str, parameters: Mapping[str, Value]) -> Any:
        import wandb

        assert self._run is not None
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._run.name,
            job_type=kind,
            name=name,
            config={**self._run.config, **parameters},
            dir=str(self._run.folder),
            mode=os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline"),
            reinit="create_new",
            settings=quiet,
        )


def _has_key() -> bool:
    """Whether it could log in without asking anybody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts)
    except (OSError, NetrcParseError):
        return False


_LONGEST = 500
"""Letters of a parameter that every store takes."""


class Mlflow:
    """A `Tracker`."""

    def __init__(self) -> None:
        self._client: Any = None
        self._experiment = self._run = ""
        self._status = "KILLED"

    def begin(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(PROJECT)
        self._experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self._run = self._client.create_run(self._experiment, run_name=run.name).info.run_id
        self._log(self._run, run.config, ())

    def trial(self, trial: TrackedTrial) -> None:
        began = _milliseconds(trial.began)
        created = self._client.create_run(
            self._experiment, start_time=began, tags={"mlflow.parentRunId": self._run}, run_name=trial.name
        )
        last = trial.curve[-1][0] if trial.curve else 0
        curve = ((name, value, step) for step, values in trial.curve for name, value in values.items())
        metrics = ((f"end/{name}", value, last) for name, value in trial.metrics.items())
        self._log(created.info.run_id, trial.parameters, (*curve, *metrics))
        status = "FINISHED" if trial.finished else "FAILED"
        self._client.set_terminated(created.info.run_id, status, _milliseconds(trial.ended))

    def answer(self, answer: TrackedAnswer) -> None:
        chosen = {f"recommended.{name}": value for name, value in answer.parameters.items()}
        self._log(self._run, chosen, ((name, value, 0) for name, value in answer.metrics.items()))
        for name, place in answer.files.items():
            self._client.set_tag(self._run, f"loratune.{name}", place)
        self._status = "FINISHED"

    def close(self) -> None:
        if self._run:
            self._client.set_terminated(self._run, self._status)

    def _log(
        self, run: str, parameters: Mapping[str, Value], metrics: Iterable[tuple[str, float, int]]
    ) -> None:
        from mlflow.entities import Metric, Param

        now = _milliseconds(0)
        self._client.log_batch(
            run,
            params=[Param(name, str(value)[:_LONGEST]) for name, value in parameters.items()],
            metrics=[Metric(name, value, now, step) for name, value, step in metrics],
        )


def _milliseconds(seconds: float) -> int:
    return int(1000 * (seconds or time()))


class Trackio:
    """A `Tracker`."""

    def __init__(self) -> None:
        self._run: TrackedRun | None = None

    def begin(self, run: TrackedRun) -> None:
        import trackio  # noqa: F401 -- that it can be had is known now, not after the first trial

        self._run = run

    def trial(self, trial: TrackedTrial) -> None:
        end = trial.curve[-1][0] if trial.curve else 0
        metrics = {f"end/{name}": value for name, value in trial.metrics.items()}
        self._log(trial.name, trial.parameters, (*trial.curve, (end, metrics)))

    def answer(self, answer: TrackedAnswer) -> None:
        self._log("recommended", {**answer.parameters, **answer.files}, ((0, answer.metrics),))

    def close(self) -> None:
        """Nothing: each of its runs has ended."""

    def _log(
        self,
        name: str,
        parameters: Mapping[str, Value],
        values: tuple[tuple[int, Mapping[str, float]], ...],
    ) -> None:
        import trackio

        assert self._run is not None
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{self._run.name} {name}",
            group=self._run.name,
            config={**self._run.config, **parameters},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        try:
            for step, each in values:
                trackio.log(dict(each), step=step)
        finally:
            trackio.finish()
