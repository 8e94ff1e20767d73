"""Which processes and machines have the engines of a run, by `--devices`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

from transformers import PreTrainedTokenizerBase

from loratune.data.prepare import PreparedData
from loratune.errors import InputError
from loratune.model.device import WORKERS, pick_devices
from loratune.runners.engines import Host, LocalEngines, in_process
from loratune.runners.processes import in_processes
from loratune.runners.shared import with_workers
from loratune.runners.spec import EngineSpec

_SCRATCH = ".workers-"


def scratch_in(directory: Path) -> Path:
    """A folder for the files of this process's workers, on the file system of the run; not made yet."""
    return directory / f"{_SCRATCH}{os.getpid()}-{token_hex(4)}.tmp"


def remove_leftovers(scratch: Path) -> None:
    """Others in the same folder belong to killed runs: a directory has one run."""
    for other in scratch.parent.glob(f"{_SCRATCH}*.tmp"):
        if other != scratch:
            shutil.rmtree(other, ignore_errors=True)


def host_of(
    devices: Sequence[str], scratch: Path, cluster: str | None = None, *, sharded: bool = False
) -> Host:
    """Where the engines are: in this process, one for each device, or this one and workers elsewhere.

    `scratch`: as `scratch_in` gives it; `cluster`: the address of Ray's. `sharded`: with the base model spread over the
    devices. Raises `InputError` for a device that is not here, or for one to be spread over.
    """
    if cluster is not None:
        from loratune.runners.ray import on_cluster  # imports ray

        return on_cluster(cluster, scratch)
    places = pick_devices(devices)
    if places == WORKERS:
        return with_workers(scratch.parent)
    if len(places) > 1:
        return in_processes(places, scratch, sharded=sharded)
    if sharded:
        raise InputError(
            f"--shard-base needs several devices, --devices {','.join(devices)} has {len(places)}; leave it out, or "
            "give --dtype nf4 where the base model is too large for one."
        )
    return _on(places[0]) if places else in_process


def _on(device: str) -> Host:
    @contextmanager
    def host(
        spec: EngineSpec, data: PreparedData, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[LocalEngines]:
        with in_process(replace(spec, device=device), data, tokenizer) as engines:
            yield engines

    return host
