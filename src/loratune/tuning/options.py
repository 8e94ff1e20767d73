"""The options of every command, each documented once, here; the command line is generated from them.

`tune(**options)` and `loratune tune --…` build the same frozen dataclass, and `loratune.toml` repeats it.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from math import inf, log
from pathlib import Path
from typing import Any, Literal

from loratune.costs.budget import Budget
from loratune.costs.layers_again import layers_recomputed
from loratune.data.sources import DataOptions
from loratune.errors import HyperParameterError, InputError, nearest
from loratune.files.paths import user_path
from loratune.maths.sizes import CAPACITY
from loratune.metrics.names import (
    BUILT_IN_NAMES,
    PREFERENCE_NAMES,
    is_of_pairs,
    usual_metric,
    usual_seed_sd,
    why_not_of_pairs,
)
from loratune.search.names import STRATEGY_NAMES
from loratune.study.ledgers import team_of
from loratune.trackers import TRACKER_NAMES
from loratune.tuning.option_types import (
    check_devices,
    check_metric,
    check_proxy,
    check_sharding,
    check_types,
    check_variants,
)
from loratune.values import ALL_LINEAR, NLL_MARGIN, HyperParameters, default_recipe
from loratune.values.hyperparameters import VARIANTS
from loratune.values.tasks import CAUSAL, PREFERENCE, PREFERENCE_RATE, TASKS, Task

_RECIPE = default_recipe()


def option(default: Any, text: str, panel: str = "Search") -> Any:
    """A dataclass field with its help text and the panel of `--help` in which it stands."""
    return field(default=default, metadata={"help": text, "panel": panel})


RUNS = "runs/loratune"
"""Where `tune` writes by default."""
DATA, MODEL, TRAINING = "Data", "Model and device", "Hyper-parameters"


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """A base model and a dataset."""

    model: str = option(MISSING, "Base model: a folder, a .gguf file, or a hub name.", MODEL)
    data: str = option(
        MISSING,
        "Training data: .jsonl, .json, .csv, .tsv (.gz too), .parquet, a folder, or a hub name.",
        DATA,
    )
    validation: str | None = option(None, "Validation data; default: split off --data.", DATA)
    test: str | None = option(None, "Test data, used once at the end; default: split off --data.", DATA)
    prompt_column: str | None = option(None, "Column that holds the prompt.", DATA)
    completion_column: str | None = option(None, "Column that holds the completion or label.", DATA)
    template: str | None = option(
        None,
        "Prompt template with {column} fields, {column?} where it may be empty, e.g. 'Message: {text}\\nIntent:'.",
        DATA,
    )
    max_length: int | None = option(None, "Longest row in tokens; default: what data and model need.", DATA)
    train_rows: int | None = option(None, "Use at most this many training rows (seeded choice).", DATA)
    validation_rows: int | None = option(None, "Use at most this many validation rows.", DATA)
    test_rows: int | None = option(None, "Use at most this many test rows.", DATA)
    seed: int = option(0, "Seed of splits, trials and decisions.", DATA)
    task: str = option(
        CAUSAL.name,
        "causal: completions are learnt; classification: labels or numbers by a trained head, encoders too; "
        "preference: pairs of prompt, chosen and rejected.",
        DATA,
    )
    objective: str | None = option(
        None,
        f"With --task preference: {', '.join(PREFERENCE.objectives)}; default: {PREFERENCE.objective}.",
        DATA,
    )
    dtype: str = option(
        "auto",
        "Base weights: auto (nf4 where they do not fit otherwise), float32, bfloat16 or nf4 (4 bits).",
        MODEL,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", MODEL)
    device_memory: str | None = option(
        None, "Memory to use at most, e.g. 24GiB; default: the device's.", MODEL
    )
    recompute: str = option(
        "auto",
        "Activations recomputed in the backward pass, to save memory: auto (of as few layers as it takes), none, all, "
        "or a number of layers.",
        MODEL,
    )

    def __post_init__(self) -> None:
        check_types(self)
        data_options(self)
        layers_recomputed(self.recompute)
        known = self.kind.objectives
        if self.objective is not None and len(known) == 1:
            raise InputError(
                f"--objective needs --task preference, got {self.objective!r} with --task {self.task}; leave it out or "
                "give --task preference."
            )
        if self.learns not in known:
            raise InputError(
                f"--objective must be one of {', '.join(known)}, got {self.objective!r}; give e.g. "
                f"--objective {self.kind.objective}."
            )
        if self.dtype not in ("auto", "float32", "bfloat16", "nf4"):
            raise InputError(
                f"--dtype must be auto, float32, bfloat16 or nf4, got {self.dtype!r}; leave it out, or give "
                "--dtype bfloat16."
            )

    @property
    def kind(self) -> Task:
        """What the rows teach."""
        return TASKS[self.task]

    @property
    def may_be_dora(self) -> bool:
        """Whether any trial may have magnitudes of its own."""
        return False

    @property
    def learns(self) -> str:
        """Name of the objective."""
        return self.objective or self.kind.objective


def data_options(options: CommonOptions) -> DataOptions:
    """The options that say what the data is. Raises `DataError` for limits out of range."""
    names = {each.name for each in fields(DataOptions)} & {each.name for each in fields(options)}
    return DataOptions(**{name: getattr(options, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class PriorOptions(CommonOptions):
    """What is known from earlier studies."""

    from_study: str | None = option(
        None, "Run directory of an old study whose results this one starts from, e.g. of another base model."
    )
    ledger: tuple[str, ...] = option(
        (),
        "Entries of the ledger to learn from, by their keys (default: all of about this size); a team's ledger in "
        "place of your own by its URL, postgresql://...",
    )
    no_ledger: bool = option(
        False, "Neither learn from the ledger of your finished studies nor write this one into it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        team_of(self.ledger)


@dataclass(frozen=True, kw_only=True)
class RecommendOptions(PriorOptions):
    """`PriorOptions`, and whether to measure a little."""

    probe: bool = option(
        False, "Measure for one or two minutes: gradient noise, a learning-rate test, bits absorbed."
    )


@dataclass(frozen=True, kw_only=True)
class SearchOptions(PriorOptions):
    """What to search, how, and for how much."""

    proxy: str | None = option(
        None,
        "Smaller model of the same family: the search runs on it, and three learning rates around what it found on "
        "--model.",
    )
    budget: str = option(
        "auto",
        "For the search: 30m, 2h, 3x (as long as three final runs) or auto (5x; on a GPU up to a minute in all).",
    )
    strategy: str = option("evidence", f"One of {', '.join(STRATEGY_NAMES)}.")
    metric: str | None = option(
        None,
        f"What is optimised: {', '.join(BUILT_IN_NAMES)}, regex:EXPRESSION, or your own as package.module:function "
        f"(generated:package.module:function to be given generated text); default: {BUILT_IN_NAMES[0]}, of preference "
        f"pairs {PREFERENCE_NAMES[0]}.",
    )
    max_new_tokens: int | None = option(
        None,
        "Generated tokens of a row at most: for metrics of generated text (default: the longest completion), and in "
        "the report's rows (at most 96).",
    )
    margin: float | None = option(
        None,
        f"Tolerated loss for a cheaper choice: nats per token (default {NLL_MARGIN:g}; "
        f"{usual_seed_sd(2):g} where rows have labels, which one seed changes) or points of the metric (1.0).",
    )
    ranks: tuple[int, ...] = option((), "Candidate ranks, e.g. 4,8,16; default: chosen from the data.")
    learning_rates: tuple[float, ...] = option((), "Candidate learning rates, e.g. 1e-4,1e-3.")
    batch_sizes: tuple[int, ...] = option((), "Candidate batch sizes, e.g. 8,16.")
    betas: tuple[float, ...] = option(
        (),
        "Candidate betas of --task preference, e.g. 0.03,0.1,0.3; default: the usual one, a third, three times.",
    )
    target_modules: tuple[str, ...] = option(
        ALL_LINEAR, "Adapted layers, e.g. q_proj,v_proj; default: every linear layer but the head."
    )
    epochs: float | Literal["auto"] = option(
        "auto",
        "Passes over the training rows of one full run; auto: by the number of rows, then fewer and more are tried "
        "at the chosen rank.",
    )
    warmup_ratio: float = option(_RECIPE.warmup_ratio, "Share of the steps with a rising learning rate.")
    variants: tuple[str, ...] = option(
        (), f"Variants of LoRA that every trial is: any of {', '.join(VARIANTS)}; default: plain LoRA."
    )
    regularise: bool = option(False, "Search dropout and weight decay even without over-fitting.")
    tune_targets: bool = option(
        False, "Compare which layers to adapt (all, MLP, attention, queries and values) at equal parameters."
    )
    tune_variants: tuple[str, ...] = option(
        (),
        f"Compare variants of LoRA with what was found, at equal parameters: any of {', '.join(VARIANTS)}.",
    )
    layer_ranks: bool = option(
        False,
        "Try a rank for each layer, from the singular values of the largest adapter (up to 3 more runs).",
    )
    heal: bool = option(
        False, "Truncation curve: also train the cuts near the chosen rank on for 5 % of the steps."
    )
    patience: int = option(3, "Final run: evaluations without improvement before it stops.")
    price_per_hour: float | None = option(
        None, "Price of an hour of this machine, e.g. 2.10; costs are then shown beside times.", "Output"
    )
    pack_size: int | None = option(
        None, "Trials trained at once; default: what memory and device suit.", MODEL
    )
    recalibrate: bool = option(
        False,
        "Measure this device's speed again instead of using an earlier command's measurement.",
        MODEL,
    )
    devices: tuple[str, ...] = option(
        (),
        "Train on devices of this machine, a process each: all, GPUs such as 0,1, or cpu as often as there are to be "
        "processes; or workers: any machine that runs loratune worker on the run directory.",
        MODEL,
    )
    shard_base: bool = option(
        False,
        "With several --devices: spread the base model's linear layers over them, for a base larger than a device.",
        MODEL,
    )
    ray: str | None = option(
        None, "Train on the free GPUs of a Ray cluster, a worker each: auto, or its HOST:PORT.", MODEL
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Budget.parse(self.budget)
        if self.strategy not in STRATEGY_NAMES:
            raise InputError(
                f"--strategy must be one of {', '.join(STRATEGY_NAMES)}, got {self.strategy!r}; leave it out, or give "
                "evidence."
            )
        check_variants(self.variants, self.tune_variants, self.strategy)
        check_proxy(
            self.proxy, self.model, budget=self.budget, layer_ranks=self.layer_ranks, devices=self.devices
        )
        self._check_task()
        check_metric(self.optimised)
        if self.tune_targets and self.strategy != "evidence":
            raise InputError(
                f"--tune-targets is a stage of --strategy evidence, got {self.strategy!r}; leave one of them out."
            )
        if self.margin is not None and not self.margin > 0:
            raise InputError(
                f"--margin must be above 0, got {self.margin}; leave it out for the metric's own, or give e.g. 0.01."
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(
                f"--max-new-tokens must be at least 1, got {self.max_new_tokens}; leave it out, or give e.g. 256."
            )
        if self.patience < 1:
            raise InputError(f"--patience must be at least 1, got {self.patience}; try --patience 3.")
        if self.price_per_hour is not None and not 0 < self.price_per_hour < inf:
            raise InputError(
                f"--price-per-hour must be above 0, got {self.price_per_hour}; give e.g. 2.10, or leave it out."
            )
        check_devices(self.devices, cluster=self.ray)
        check_sharding(self.devices, self.shard_base)
        if self.pack_size is not None and not 1 <= self.pack_size <= CAPACITY:
            raise InputError(
                f"--pack-size must be 1 to {CAPACITY}, got {self.pack_size}; leave it out, or give e.g. 16."
            )
        for name, field_name, works in (
            ("ranks", "r", "4,8,16"),
            ("learning_rates", "learning_rate", "1e-4,1e-3"),
            ("batch_sizes", "batch_size", "8,16"),
            ("betas", "beta", "0.03,0.1"),
        ):
            for value in getattr(self, name):
                try:
                    self.hyper_parameters(**{field_name: value})
                except HyperParameterError as error:
                    rule, flag = str(error).split(";")[0], f"--{name.replace('_', '-')}"
                    raise HyperParameterError(f"{rule}; give e.g. {flag} {works}.") from None
        self.hyper_parameters()

    def _check_task(self) -> None:
        """Raise `InputError` for what does not go with the task: pairs are judged by metrics of their own."""
        if self.betas and not self.kind.betas:
            raise InputError("--betas needs preference pairs; give --task preference, or leave it out.")
        if not self.kind.has_pairs and is_of_pairs(self.optimised):
            raise InputError(
                f"--metric {self.metric} needs preference pairs; give --task preference, or leave it out."
            )
        if self.kind.has_pairs and not is_of_pairs(self.optimised):
            raise InputError(
                f"--metric must be one of {', '.join(PREFERENCE_NAMES)} with --task {self.task}, got "
                f"{self.metric!r}{why_not_of_pairs(self.optimised)}; leave it out, or give --metric "
                f"{PREFERENCE_NAMES[0]}."
            )
        if self.kind.betas and self.strategy != "evidence":
            raise InputError(
                f"--task {self.task} is searched by --strategy evidence, got {self.strategy!r}; leave --strategy out."
            )
        wanted = [name for name in ("layer_ranks", "heal") if getattr(self, name)]
        if wanted and not self.kind.is_cut:
            raise InputError(
                f"--{wanted[0].replace('_', '-')} rests on a truncation curve, which --task {self.task} does not "
                "measure; leave it out."
            )

    @property
    def may_be_dora(self) -> bool:
        return "dora" in (*self.variants, *self.tune_variants)

    @property
    def variant(self) -> dict[str, Any]:
        """The fields of `HyperParameters`, with their values, in which all trials differ from plain LoRA."""
        return {name: value for each in self.variants for name, value in VARIANTS[each].items()}

    @property
    def optimised(self) -> str:
        """Name of the metric that decides."""
        return self.metric or usual_metric(self.kind.has_pairs)

    @property
    def beta(self) -> float | None:
        """Beta that all else is compared at: the usual one, or the nearest of those given; None without preferences."""
        usual = self.kind.betas.get(self.learns)
        if usual is None or not self.betas:
            return usual
        return min(self.betas, key=lambda beta: abs(log(beta / usual)) if beta > 0 else inf)

    def hyper_parameters(self, **values: Any) -> HyperParameters:
        """The default recipe at these epochs (one where the rows decide) and targets, with changes."""
        recipe = default_recipe(1.0 if self.epochs == "auto" else self.epochs, self.warmup_ratio)
        if self.beta is not None and self.beta > 0:
            recipe = replace(recipe, learning_rate=PREFERENCE_RATE, beta=self.beta)
        return replace(recipe, **({"target_modules": self.target_modules} | values))


@dataclass(frozen=True, kw_only=True)
class TuneOptions(SearchOptions):
    """`SearchOptions` and where the study lives."""

    out: str = option(
        RUNS, "Run directory; it receives adapter/, result.json, report.html, study.db.", "Output"
    )
    storage: str | None = option(
        None, "Optuna storage URL; default: study.db in the run directory.", "Output"
    )
    resume: bool = option(
        False, "Continue the study in --out; finished trials are not trained again.", "Output"
    )

    report_to: tuple[str, ...] = option(
        (), f"Experiment trackers that record every trial: any of {', '.join(TRACKER_NAMES)}.", "Output"
    )
    hash_weights: bool = option(
        False,
        "Compare every byte of the weights on --resume (about a second for each GB), not a sample of each tensor.",
        MODEL,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.report_to if name not in TRACKER_NAMES]:
            raise InputError(
                f"--report-to must be among {', '.join(TRACKER_NAMES)}, got {nearest(unknown, TRACKER_NAMES)}; "
                "give for example --report-to tensorboard."
            )
        if self.proxy is not None and self.storage is not None:
            raise InputError(
                "--storage holds one study, and --proxy makes two; leave one of them out (each has its study.db then)."
            )

    @property
    def directory(self) -> Path:
        return user_path(self.out)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(CommonOptions):
    """One adapter with given hyper-parameters."""

    rank: int = option(_RECIPE.r, "LoRA rank.", TRAINING)
    lora_alpha: float | None = option(None, "LoRA alpha; default 2 x rank.", TRAINING)
    lora_dropout: float = option(0.0, "Dropout on the adapter's input.", TRAINING)
    target_modules: tuple[str, ...] = option(
        ALL_LINEAR, "Adapted layers; default: all linear ones.", TRAINING
    )
    learning_rate: float = option(_RECIPE.learning_rate, "Peak learning rate.", TRAINING)
    batch_size: int = option(_RECIPE.batch_size, "Rows per step.", TRAINING)
    weight_decay: float = option(0.0, "AdamW's decay.", TRAINING)
    epochs: float = option(_RECIPE.epochs, "Passes over the training rows.", TRAINING)
    beta: float | None = option(None, "Of --task preference; default: 0.1, of simpo 2.", TRAINING)
    warmup_ratio: float = option(
        _RECIPE.warmup_ratio, "Share of the steps with a rising learning rate.", TRAINING
    )
    use_dora: bool = option(
        False, "DoRA: train a magnitude for each output of an adapted layer; without dropout.", TRAINING
    )
    use_rslora: bool = option(
        False, "rsLoRA: scale the adapter by alpha / sqrt(rank) instead of alpha / rank.", TRAINING
    )
    loraplus_lr_ratio: float = option(
        1.0, "LoRA+: learning rate of B as a multiple of that of A, e.g. 16; 1: the same.", TRAINING
    )
    patience: int = option(3, "Evaluations without improvement before it stops.", TRAINING)
    out: str = option("runs/train", "Run directory; it receives adapter/ and result.json.", "Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience < 1:
            raise InputError(f"--patience must be at least 1, got {self.patience}; try --patience 3.")
        if self.beta is not None and not self.kind.betas:
            raise InputError(
                f"--beta needs --task preference, got {self.beta:g} with --task {self.task}; leave it out."
            )
        self.hyper_parameters()

    @property
    def may_be_dora(self) -> bool:
        return self.use_dora

    def hyper_parameters(self) -> HyperParameters:
        """The values as one object. Raises `HyperParameterError` naming the option."""
        return HyperParameters(
            r=self.rank,
            lora_alpha=2.0 * self.rank if self.lora_alpha is None else self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            warmup_ratio=self.warmup_ratio,
            beta=self.kind.betas.get(self.learns) if self.beta is None else self.beta,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            loraplus_lr_ratio=self.loraplus_lr_ratio,
        )


def keyword_options(options: dict[str, Any]) -> dict[str, Any]:
    """Lists as tuples, paths as text and a metric by its name, so that callers may write ranks=[4, 8], data=Path(…),
    devices=[0, 1] and metric=their_function.
    """
    plain = {
        name: tuple(value)
        if isinstance(value, list | range)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in options.items()
    }
    if isinstance(devices := plain.get("devices"), tuple):
        plain["devices"] = tuple(str(each) if isinstance(each, int) else each for each in devices)
    if not isinstance(plain.get("metric"), str | None):
        from loratune.metrics import as_metric, register

        plain["metric"] = register(as_metric(plain["metric"])).name
    return plain
