"""What a strategy is told: the facts of a workbench and the wishes of the options."""

from __future__ import annotations

import numpy as np

from loratune.errors import InputError
from loratune.lora.layout import find_targets
from loratune.metrics import Needs, default_margin, find, metrics
from loratune.tuning.options import SearchOptions
from loratune.tuning.workbench import Workbench
from loratune.values import SearchContext, default_recipe

_LARGEST_BATCH = 1024


def search_context(bench: Workbench, options: SearchOptions) -> SearchContext:
    """Everything but the budget. Raises `InputError` for a metric that the data cannot have."""
    data, profile = bench.data, bench.base.profile
    metric = find(options.metric)
    if metric.needs is Needs.LABELS and not data.labels:
        others = ", ".join(each.name for each in metrics() if each.needs is not Needs.LABELS)
        raise InputError(
            f"--metric {options.metric} needs labelled data (text and label columns), and these rows are "
            f"{data.profile.shape}; choose one of {others}."
        )
    targets = find_targets(profile.targets, options.target_modules)
    labels = data.validation.row_labels if data.labels else None
    return SearchContext(
        rows=len(data.train),
        tokens=int(data.train.lengths.sum()),
        supervised_tokens=int(data.train.supervised_counts.sum()),
        validation_tokens=int(data.validation.lengths.sum()),
        validation_weights=data.validation.supervised_counts.astype(np.float64),
        validation_labels=None if labels is None else labels.astype(np.int64),
        labels=len(data.labels),
        evaluation_passes=metric.passes(bool(data.labels), bench.labelling_passes),
        labelling_passes=bench.labelling_passes,
        hidden_size=profile.hidden_size,
        family=profile.family,
        parameters_per_rank=sum(target.in_features + target.out_features for target in targets),
        largest_rank=min(min(target.in_features, target.out_features) for target in targets),
        largest_batch=_largest_batch(bench),
        targets=profile.targets,
        epochs=options.epochs,
        warmup_ratio=options.warmup_ratio,
        target_modules=options.target_modules,
        ranks=tuple(sorted(set(options.ranks))),
        learning_rates=tuple(sorted(set(options.learning_rates))),
        batch_sizes=tuple(sorted(set(options.batch_sizes))),
        metric=options.metric,
        margin=options.margin or default_margin(options.metric, len(data.labels)),
        seed=options.seed,
        regularise=options.regularise,
        tune_targets=options.tune_targets,
    )


def _largest_batch(bench: Workbench) -> int:
    """Rows per step that fit: any number where one micro-batch does, since batches are cut into those."""
    return _LARGEST_BATCH if bench.limits.fits([default_recipe()]) else 1
