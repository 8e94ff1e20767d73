"""Plain PEFT on the same rows: a loop, transformers' Trainer, a compiled loop, and several processes at once.

The other side of bench/throughput.py. Every function returns tokens per second of forward, backward and step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import torch
import torch._dynamo
from peft import get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from loratune.data.table import TokenTable
from loratune.engine.recompute import decoder_layers
from loratune.lora.layout import find_targets
from loratune.lora.peft_io import lora_config
from loratune.model.base import BaseModel
from loratune.values import HyperParameters
from rows import rows_of
from shapes import random_base

Batch = dict[str, torch.Tensor]
_START_SECONDS = 120.0
"""In which all concurrent processes must have started."""


def padded(table: TokenTable, rows: range, device: torch.device) -> Batch:
    """Rows as transformers wants them: padded, with labels and an attention mask."""
    pairs = [table.row(i % len(table)) for i in rows]
    width = max(len(tokens) for tokens, _ in pairs)
    tokens = torch.zeros(len(pairs), width, dtype=torch.int64)
    labels = torch.full_like(tokens, -100)
    mask = torch.zeros_like(tokens)
    for i, (row, supervised) in enumerate(pairs):
        line = torch.from_numpy(row.astype("int64"))
        tokens[i, : len(row)], mask[i, : len(row)] = line, 1
        labels[i, : len(row)] = torch.where(torch.from_numpy(supervised.copy()), line, -100)
    batch = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
    return {name: value.to(device) for name, value in batch.items()}


def adapted(base: BaseModel, recipe: HyperParameters) -> Any:
    """PEFT's model; undo with `.unload()`."""
    targets = find_targets(base.profile.targets, recipe.target_modules)
    return get_peft_model(base.model, lora_config(recipe, base.model, targets)).train()


def loop_rate(
    base: BaseModel, table: TokenTable, recipe: HyperParameters, seconds: float, *, compiled: bool = False,
    started: Callable[[], None] = lambda: None,
) -> float:  # fmt: skip
    """The plain training loop everybody writes: loss, backward, clip, AdamW (fused), zero.

    Compiled layer by layer: the whole of a deep model takes torch.compile longer than these measurements.
    """
    wrapped = adapted(base, recipe)
    layers = decoder_layers(base.model) if compiled else []
    for layer in layers:
        layer.compile()
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, fused=True)
    lengths = table.lengths

    def steps() -> Iterator[int]:
        first = 0
        while True:
            rows = range(first, first + recipe.batch_size)
            wrapped(**padded(table, rows, base.device), use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            first = rows.stop
            yield int(sum(lengths[i % len(table)] for i in rows))

    training = steps()
    for _ in range(3):
        next(training)
    _wait(base.device)
    started()
    rate = _rate(training, seconds, base.device)
    for layer in layers:
        layer._compiled_call_impl = None
    if compiled:
        torch._dynamo.reset()
    wrapped.unload()
    return rate


def trainer_rate(base: BaseModel, table: TokenTable, recipe: HyperParameters, seconds: float) -> float:
    """transformers' Trainer; its steps after the third are timed."""
    wrapped = adapted(base, recipe)
    clock = _Clock(seconds, base.device)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=wrapped,
            args=TrainingArguments(
                output_dir=folder, per_device_train_batch_size=recipe.batch_size, max_steps=10**6,
                learning_rate=recipe.learning_rate, optim="adamw_torch_fused", report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, use_cpu=base.device.type == "cpu",
            ),
            train_dataset=list(range(len(table))),
            data_collator=lambda rows: padded(table, range(rows[0], rows[0] + len(rows)), torch.device("cpu")),
            callbacks=[clock],
        ).train()  # fmt: skip
    wrapped.unload()
    return clock.steps * recipe.batch_size * float(table.lengths.mean()) / clock.elapsed


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Times the Trainer's steps after the third, for a number of seconds."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self.seconds, self.device = seconds, device
        self.steps, self.elapsed, self._seen, self._started = 0, 0.0, 0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._seen += 1
        if self._seen == 3:
            _wait(self.device)
            self._started = perf_counter()
        elif self._seen > 3 and perf_counter() - self._started > self.seconds:
            _wait(self.device)
            self.steps, self.elapsed = self._seen - 3, perf_counter() - self._started
            control.should_training_stop = True


def concurrent_rate(shape: str, batch: int, length: str, processes: int, seconds: float) -> float:
    """Tokens per second of `processes` PEFT loops together on one device; 0 where they do not fit or start."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--shape", shape, "--batch", str(batch), "--length", length]
        command += ["--seconds", str(seconds), "--folder", folder]
        workers = [
            subprocess.Popen(
                [*command, "--number", str(i)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            for i in range(processes)
        ]
        begun = perf_counter()
        while len(list(Path(folder).glob("ready-*"))) < processes:
            late = perf_counter() - begun > _START_SECONDS
            if late or any(worker.poll() not in (None, 0) for worker in workers):
                for worker in workers:
                    worker.kill()
                break
            sleep(0.05)
        (Path(folder) / "go").touch()
        outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        return 0.0
    return float(sum(json.loads(output.splitlines()[-1]) for output in outputs))


def _worker(shape: str, batch: int, length: str, seconds: float, folder: Path, number: int) -> None:
    """One of the processes: warm up, wait for the others, train, print the rate."""
    base = random_base(shape, torch.bfloat16, "cuda" if torch.cuda.is_available() else "cpu")

    def started() -> None:
        (folder / f"ready-{number}").touch()
        while not (folder / "go").exists():
            sleep(0.01)

    recipe = HyperParameters(r=16, lora_alpha=32, learning_rate=2e-4, batch_size=batch, epochs=1.0)
    print(
        json.dumps(
            loop_rate(base, rows_of(length, base.profile.vocabulary), recipe, seconds, started=started)
        )
    )


def _rate(steps: Iterator[int], seconds: float, device: torch.device) -> float:
    tokens, begun = 0, perf_counter()
    while perf_counter() - begun < seconds:
        tokens += next(steps)
    _wait(device)
    return tokens / (perf_counter() - begun)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """A worker of `concurrent_rate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    _worker(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
