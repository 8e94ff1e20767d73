"""The trackers that a run reports to, from its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from loratune.study.secrets import without_secrets
from loratune.trackers.subscriber import Tracking, flat
from loratune.trackers.tracker import Tracker
from loratune.tuning.options import TuneOptions
from loratune.values.events import Bus

_KEPT_BACK = frozenset({"storage", "resume", "out", "report_to", "no_ledger", "hash_weights", "recalibrate"})
"""Options that say nothing of the run, or too much: a storage may have a password."""


@contextmanager
def tracking(options: TuneOptions, trackers: Mapping[str, Tracker], bus: Bus) -> Iterator[None]:
    """Each tracker receives the events of the bus, all of them by the end, or says why not."""

    def hide(text: str) -> str:
        return without_secrets(text, options.storage)

    told = {name: value for name, value in asdict(options).items() if name not in _KEPT_BACK}
    config = {name: hide(value) if isinstance(value, str) else value for name, value in flat(told).items()}
    with ExitStack() as stack:
        for name, tracker in trackers.items():
            bus.subscribe(stack.enter_context(Tracking(name, tracker, config, bus, hide=hide)))
        yield
