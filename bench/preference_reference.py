"""DPO, ORPO and SimPO by TRL's own trainers, beside a pack of this project: same model, pairs and order, float64.

    python bench/preference_reference.py write tests/objectives/trl_reference.json    # where trl is installed
    python bench/preference_reference.py compare

TRL sums some things in float32; here they are left in float64, so that a difference would be one of the mathematics.
`write` stores the losses of every step and a digest of the final adapter, with the versions that made them;
`tests/objectives/test_against_trl.py` holds packs against the file, and against TRL itself where it is installed.
TRL's ORPO adds the likelihood of the prompt to that of the chosen answer and takes its mean over the tokens of a whole
batch: with a prompt of one token and one pair a step both are the paper's formula, so that is what is compared.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine_fixture import VOCABULARY, engine, frozen, trial
from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine
from loratune.engine.slot import MAX_GRADIENT_NORM, Slot
from loratune.model.base import BaseModel
from loratune.objectives.preference import Dpo, Orpo, Preference, Simpo
from loratune.values import Trial
from loratune.values.tasks import GAMMA_OF_BETA

STEPS = 6
END = 0
"""Token that ends an answer."""


@dataclass(frozen=True)
class Case:
    """One comparison."""

    kind: type[Preference]
    trial: Trial
    prompt: tuple[int, int]
    """Tokens of a prompt: fewest, most."""


CASES = {
    "dpo": Case(Dpo, trial(1, batch_size=4, learning_rate=2e-2, beta=0.1, epochs=3.0), (2, 8)),
    "dpo-beta": Case(
        Dpo, trial(2, r=8, batch_size=2, learning_rate=1e-2, beta=0.5, weight_decay=0.1), (2, 8)
    ),
    "orpo": Case(Orpo, trial(3, batch_size=1, learning_rate=1e-2, beta=0.2), (1, 1)),
    "simpo": Case(Simpo, trial(4, batch_size=4, learning_rate=1e-2, beta=2.0, epochs=3.0), (2, 8)),
}


def tiny() -> BaseModel:
    """A random Llama in float64 with an odd vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, eos_token_id=END, bos_token_id=None, pad_token_id=END,
    )  # fmt: skip
    return frozen(LlamaForCausalLM(config))


def pairs(case: Case, count: int = 16) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected); answers begin with different tokens and end with `END`."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(count):
        prompt = random.integers(1, VOCABULARY, random.integers(case.prompt[0], case.prompt[1] + 1)).tolist()
        chosen, rejected = (
            [*random.integers(low, low + 30, random.integers(1, 6)).tolist(), END] for low in (1, 50)
        )
        found.append((prompt, chosen, rejected))
    return found


def table_of(rows: list[tuple[list[int], list[int], list[int]]]) -> TokenTable:
    """The same as a table of pairs."""
    found = TokenTable.from_rows(
        [
            (prompt + answer, [False] * len(prompt) + [True] * len(answer))
            for prompt, *answers in rows
            for answer in answers
        ]
    )
    return TokenTable(tokens=found.tokens, supervised=found.supervised, offsets=found.offsets, group=2)


def packed(names: tuple[str, ...]) -> tuple[PackEngine, list[Slot]]:
    """The cases of one objective and one set of pairs, trained together: the engine, and slots after their steps."""
    first = CASES[names[0]]
    table = table_of(pairs(first))
    base = tiny()
    known = table.referenced(engine(base, table).reference_likelihoods(table))
    subject = engine(base, known, objective=first.kind, max_tokens_per_micro_batch=60)
    slots = subject.slots([CASES[name].trial for name in names])
    with subject.attached() as step:
        for _ in range(STEPS):
            step([slot for slot in slots if not slot.done])
    return subject, slots


def by_trl(name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the steps and the adapter's final matrices, by TRL's trainer on the pairs in the order of the trial."""
    case = CASES[name]
    setting, rows = case.trial.hyper_parameters, pairs(case)
    base = tiny()
    subject = engine(base, table_of(rows), objective=case.kind)
    initial = subject.initial(case.trial)
    batches = subject.batches(case.trial)
    order = [int(row) // 2 for _, batch in zip(range(STEPS), batches, strict=False) for row in batch[::2]]
    model = get_peft_model(
        base.model,
        LoraConfig(
            r=setting.r, lora_alpha=setting.lora_alpha, task_type="CAUSAL_LM",
            target_modules=[target.name for target in initial.layout.targets],
        ),
    )  # fmt: skip
    for module, (a, b) in initial.views().items():
        layer = model.base_model.model.get_submodule(module)
        with torch.no_grad():
            for holder, value in ((layer.lora_A, a), (layer.lora_B, b)):
                holder["default"].weight.data = value.double().clone()
    losses = _train(case, model, [rows[pair] for pair in order], len(batches))
    weights = {
        key.removeprefix("base_model.model."): value.detach()
        for key, value in model.named_parameters()
        if "lora_" in key and ".default." in key  # beside it TRL keeps a copy as its reference
    }
    return losses, weights


def _train(
    case: Case, model: Any, rows: list[tuple[list[int], list[int], list[int]]], total_steps: int
) -> list[float]:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    setting, losses = case.trial.hyper_parameters, []
    beta = case.kind.beta if setting.beta is None else setting.beta
    trainers: dict[type[Preference], tuple[Any, Any, dict[str, Any]]] = {
        Dpo: (DPOTrainer, DPOConfig, {}),
        Orpo: (ORPOTrainer, ORPOConfig, {"disable_dropout": True}),
        Simpo: (
            CPOTrainer,
            CPOConfig,
            {
                "loss_type": "simpo",
                "cpo_alpha": 0.0,
                "simpo_gamma": GAMMA_OF_BETA * beta,
                "disable_dropout": True,
            },
        ),
    }
    trainer_of, config_of, more = trainers[case.kind]

    class Watched(trainer_of):  # type: ignore[misc, valid-type]
        """In the order given, every loss kept."""

        def _get_train_sampler(self, *arguments: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
            found = super().compute_loss(*arguments, **keywords)
            losses.append((found[0] if isinstance(found, tuple) else found).item())
            return found

    names = ("prompt", "chosen", "rejected")
    data = Dataset.from_list([dict(zip(names, map(_text, row), strict=True)) for row in rows])
    warmup = -(-round(setting.warmup_ratio * total_steps * 10**9) // 10**9)
    with TemporaryDirectory() as folder:
        arguments = config_of(
            output_dir=folder, per_device_train_batch_size=setting.batch_size, max_steps=STEPS, beta=beta,
            learning_rate=setting.learning_rate, weight_decay=setting.weight_decay, warmup_steps=warmup,
            lr_scheduler_type="linear", optim="adamw_torch", max_grad_norm=MAX_GRADIENT_NORM, report_to="none",
            use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=64, save_strategy="no",
            logging_steps=1, disable_tqdm=True, **more,
        )  # fmt: skip
        trainer = Watched(model=model, args=arguments, train_dataset=data, processing_class=_tokenizer())
        trainer.create_optimizer()
        trainer.lr_scheduler = _schedule(trainer.optimizer, warmup, total_steps)
        with (
            patch.object(torch.Tensor, "float", _float),
            patch("trl.trainer.utils._ChunkedLogProbFunction", _Plain),
        ):
            trainer.train()
    return losses


class _Plain:
    """In place of TRL's kernel in chunks, which sums in float32: the same numbers from the full logits."""

    @staticmethod
    def apply(
        hidden: torch.Tensor, weight: torch.Tensor, bias: None, labels: torch.Tensor, *_: Any
    ) -> tuple[Any, ...]:
        logits = hidden @ weight.T
        likely = torch.log_softmax(logits, -1)
        told = likely.detach()
        entropy, squares = -(told.exp() * told).sum(-1), torch.logsumexp(2 * told, -1)
        top = logits.argmax(-1) == labels
        return likely[torch.arange(len(labels)), labels], entropy, squares, logits.detach().mean(-1), top


def _float(tensor: torch.Tensor) -> torch.Tensor:
    """In TRL's losses in place of `Tensor.float`, which would round float64 down to float32."""
    return tensor if tensor.dtype is torch.float64 else tensor.to(torch.float32)


def _schedule(optimiser: Any, warmup: int, total: int) -> Any:
    """The trial's, whose end lies beyond the steps that are compared."""
    from transformers import get_linear_schedule_with_warmup

    return get_linear_schedule_with_warmup(optimiser, warmup, total)


def _text(tokens: list[int]) -> str:
    """As the tokenizer below reads it back; TRL appends the end itself where it is not there."""
    return "".join(f"<{token}>" for token in tokens)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token for each `<number>`, and nothing else."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {f"<{token}>": token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<1>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("<[0-9]+>"), "isolated")
    end = f"<{END}>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def kept(name: str) -> dict[str, Any]:
    """What the file holds of one case: losses, and the sum and the squared sum of every final matrix."""
    losses, weights = by_trl(name)
    return {
        "losses": losses,
        "weights": {
            key: [float(value.sum()), float((value**2).sum())] for key, value in sorted(weights.items())
        },
    }


def differences(name: str) -> tuple[float, float]:
    """Largest relative difference of a step's loss, and of a matrix, between a pack and TRL."""
    losses, weights = by_trl(name)
    _, (slot,) = packed((name,))
    of_losses = np.abs(np.array(slot.losses) / np.array(losses) - 1).max()
    worst = 0.0
    for module, matrices in slot.adapter.views().items():
        for letter, mine in zip("AB", matrices, strict=True):
            theirs = weights[f"{module}.lora_{letter}.default.weight"]
            worst = max(worst, float((mine - theirs).norm() / theirs.norm()))
    return float(of_losses), worst


def main() -> None:
    if sys.argv[1:2] == ["write"]:
        versions = {name: version(name) for name in ("trl", "peft", "transformers", "torch")}
        values = {"made_by": "bench/preference_reference.py", "versions": versions}
        values |= {"cases": {name: kept(name) for name in CASES}}
        Path(sys.argv[2]).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        return
    for name in CASES:
        of_losses, of_weights = differences(name)
        print(
            f"{name}: {STEPS} steps, losses within {of_losses:.1e}, matrices within {of_weights:.1e} of TRL's"
        )


if __name__ == "__main__":
    main()
