"""The adapter's model card (README.md): what it is, how good, how it was trained, how to use it.

Reads facts only. The front matter is what model hubs read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from loratune.data.template import Template
from loratune.metrics import MetricInfo, info_of
from loratune.reporting.facts import Gain, RunFacts
from loratune.reporting.wording import interval, number, rate
from loratune.values import Classifier, HyperParameters, Problem, PromptFormat, PromptKind, TrainingRecord

_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a model card says."""

    base: str
    """The base model's name, as others find it."""
    hyper_parameters: HyperParameters
    training: TrainingRecord
    scores: Mapping[str, Mapping[str, float]]
    """Metrics on the test rows by model, the adapter first."""
    test_rows: int
    gains: tuple[Gain, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    optimised: MetricInfo | None = None
    """The search's metric."""

    def _info(self, metric: str) -> MetricInfo:
        return info_of(metric, self.optimised)

    @property
    def text(self) -> str:
        """Markdown with YAML front matter."""
        parts = (self._front(), self._what(), self._use(), self._results(), self._training())
        return "\n\n".join(parts) + "\n"

    @property
    def _is_hub_name(self) -> bool:
        return self.base.count("/") == 1 and not Path(self.base).exists() and "." not in self.base[:1]

    def _front(self) -> str:
        base = [f"base_model: {self.base}"] if self._is_hub_name else []
        tags = ["tags:", "- lora", "- loratune"]
        kind = "text-generation" if self.training.classifier is None else "text-classification"
        return "\n".join(["---", *base, "library_name: peft", f"pipeline_tag: {kind}", *tags, "---"])

    def _what(self) -> str:
        return (
            f"# LoRA adapter of {_code(self.base)}\n\n"
            f"Trained on {_code(_shown(self.training.data))} (rows {_code(self.training.data_fingerprint)}) with "
            f"hyper-parameters that loratune found. The folder holds PEFT's adapter and the tokenizer."
        )

    def _use(self) -> str:
        given = self.training.prompt
        introduction = {
            PromptKind.VERBATIM: "The prompt is the row's own, verbatim.",
            PromptKind.CHAT: "Conversations are written by the tokenizer's chat template.",
            PromptKind.TURNS: "Conversations are lines of `User: …` and `Assistant: …`.",
            PromptKind.TEXT: "The model was trained on plain text, which it continues.",
        }.get(given.kind, f"Every prompt was written by this template:\n\n{_fenced(given.template, 'text')}")
        introduction += (
            "\n\n" if introduction.endswith("```") else " "
        )  # a closing fence stands alone in its line
        if (classifier := self.training.classifier) is not None:
            code = classifying_code(self.base, given, classifier)
            return f"## Use\n\n{introduction}The head is part of the adapter.\n\n{_fenced(code, 'python')}"
        end = f"A completion ends with {_code(self.training.end_of_turn)}."
        return f"## Use\n\n{introduction}{end}\n\n{_fenced(generating_code(self.base, given), 'python')}"

    def _results(self) -> str:
        names = list(dict.fromkeys(name for values in self.scores.values() for name in values))
        rows = [
            (model, *(self._info(name).text(values.get(name)) for name in names))
            for model, values in self.scores.items()
        ]
        titles = ("on the test rows", *(self._info(name).title for name in names))
        lines = [f"## Results\n\n{_table(titles, rows)}"]
        lines += [
            f"- {_difference(gain)}"
            for gain in self.gains
            if gain.split == "test" and gain.interval is not None
        ]
        note = (
            f"{self.test_rows} rows, evaluated once. Intervals are 95 %, paired over these rows; of one seed."
        )
        return "\n".join([*lines[:1], "", *lines[1:], *([""] if lines[1:] else []), note])

    def _training(self) -> str:
        chosen, record = self.hyper_parameters, self.training
        values = {
            "rank": chosen.r,
            "alpha": number(chosen.lora_alpha),
            **({"variant": chosen.variant} if chosen.variant else {}),
            "dropout": number(chosen.lora_dropout),
            "target modules": ", ".join(chosen.target_modules),
            "learning rate": f"{rate(chosen.learning_rate)}, linear, warm-up {chosen.warmup_ratio:.0%}",
            "rows per step": chosen.batch_size,
            "epochs": number(chosen.epochs),
            "weight decay": number(chosen.weight_decay),
            "optimiser": "AdamW (0.9, 0.999, 1e-8), gradients clipped to norm 1",
            "rows": f"{record.rows}, at most {record.max_length} tokens",
            "early stopping": f"best of {record.evaluations} evaluations, patience {record.patience}",
            "base weights": record.weights,
            "seed": record.seed,
            **({"ranks of layers": "see rank_pattern in adapter_config.json"} if chosen.rank_pattern else {}),
        }
        made = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        table = _table(("hyper-parameter", "value"), [(name, str(value)) for name, value in values.items()])
        return "\n\n".join(["## Training", table, *([f"Made with {made}."] if made else [])])


def card_of(facts: RunFacts, base: str) -> str:
    """The card of a search's final adapter; empty where its training was not recorded."""
    if facts.training is None:
        return ""
    scores = {
        "this adapter": facts.recommended.test,
        "base model": facts.base_model.test,
        "default recipe": facts.default_recipe.test,
    }
    return Card(
        base=base,
        hyper_parameters=facts.decision.hyper_parameters,
        training=facts.training,
        scores={name: values for name, values in scores.items() if values},
        test_rows=facts.profile.test_rows,
        gains=facts.gains,
        versions=facts.versions,
        optimised=facts.optimised,
    ).text


def classifying_code(base: str, given: PromptFormat, classifier: Classifier) -> str:
    """Lines of Python that answer one text, run beside the adapter's folder."""
    names = {} if classifier.problem is Problem.NUMBER else dict(enumerate(classifier.labels))
    answer = {
        Problem.ONE: "print(labels[int(logits[0].argmax())])",
        Problem.SEVERAL: "print([label for number, label in labels.items() if logits[0, number] > 0])",
        Problem.NUMBER: "print(float(logits[0, 0]))",
    }
    return "\n".join(
        [
            "import torch",
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            'adapter = "adapter"  # this folder, or its name on a hub',
            "tokenizer = AutoTokenizer.from_pretrained(adapter)",
            "base = AutoModelForSequenceClassification.from_pretrained(",
            f"    {base!r}, num_labels={classifier.outputs}, pad_token_id=tokenizer.pad_token_id",
            ")",
            "model = PeftModel.from_pretrained(base, adapter).eval()  # its head comes from the adapter",
            *([f"labels = {names!r}"] if names else []),
            *_prompt_code(given),
            "with torch.no_grad():",
            '    logits = model(**tokenizer(prompt, return_tensors="pt")).logits',
            answer[classifier.problem],
        ]
    )


def generating_code(base: str, given: PromptFormat) -> str:
    """Lines of Python that complete one prompt, run beside the adapter's folder."""
    if base.lower().endswith(".gguf"):
        path = Path(base)
        imports = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
        ]
        load = [
            f"base = AutoModelForCausalLM.from_pretrained({str(path.parent)!r}, gguf_file={path.name!r})",
            "model = PeftModel.from_pretrained(base, adapter)",
        ]
    else:
        imports = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
        load = ["model = AutoPeftModelForCausalLM.from_pretrained(adapter)"]
    special = ", add_special_tokens=False" if given.kind is PromptKind.CHAT else ""
    lines = [
        *imports,
        "",
        'adapter = "adapter"  # this folder, or its name on a hub',
        *load,
        "tokenizer = AutoTokenizer.from_pretrained(adapter)",
        *_prompt_code(given),
        f'tokens = tokenizer(prompt, return_tensors="pt"{special})',
        "output = model.generate(",
        "    input_ids=tokens.input_ids,",
        "    attention_mask=tokens.attention_mask,",
        f"    max_new_tokens={_NEW_TOKENS},",
        "    do_sample=False,",
        "    eos_token_id=tokenizer.eos_token_id,",
        "    pad_token_id=tokenizer.pad_token_id,",
        ")",
        "print(tokenizer.decode(output[0, tokens.input_ids.shape[1] :], skip_special_tokens=True))",
    ]
    return "\n".join(lines)


def _prompt_code(given: PromptFormat) -> list[str]:
    if given.template:
        whole = Template.parse(given.template)
        shown = Template(tuple(part for part in whole.parts if part[1] not in whole.optional))
        strip = '.rstrip(" ")' if given.kind is PromptKind.LABEL else ""
        return [f"prompt = {shown.text!r}.format_map({dict.fromkeys(shown.columns, '…')!r}){strip}"]
    if given.kind is PromptKind.CHAT:
        return [
            'messages = [{"role": "user", "content": "…"}]',
            "prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
        ]
    return ['prompt = "User: …\\nAssistant:"' if given.kind is PromptKind.TURNS else 'prompt = "…"']


def _difference(gain: Gain) -> str:
    info = gain.info
    return f"{info.title}: {number(gain.value)} {info.unit} better than the {gain.over} {interval(gain.interval)}"


def _shown(data: str) -> str:
    """A path on the user's machine does not belong into a public card."""
    return Path(data).name if Path(data).exists() or data.startswith((".", "/", "~")) else data


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(list(run)) for mark, run in groupby(text) if mark == "`"), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(titles)
    lines = [titles, ["---"] * len(titles), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
