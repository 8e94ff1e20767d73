"""Every export read by the trainer it is for: its own parser, and its own code that turns the rows into tokens.

    make check-exports

`write FOLDER` makes runs of a tiny model with a real tokenizer (labels, conversations, plain text, ranks of single
layers) and exports each to every trainer that takes it; it runs where loratune is installed. `read TRAINER FOLDER`
runs in the trainer's environment and imports nothing of loratune: the rows must be the run's tokens to the last.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DISABLE_VERSION_CHECK"] = "1"  # LLaMA-Factory's pins are older than what it works with
TARGETS = ("peft", "transformers", "trl", "axolotl", "llamafactory", "unsloth", "mlx")
Tokens = tuple[list[int], list[int]]
"""Input and labels of one row, -100 where nothing is learnt."""


def write(folder: Path) -> None:
    """Runs and their exports."""
    folder.mkdir(parents=True, exist_ok=True)
    from loratune.app.export import export
    from loratune.app.train import train
    from loratune.errors import InputError

    model = _model(folder / "model")
    for name, rows in _cases().items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        run = folder / name
        train(model=model, data=data, out=run, rank=4, epochs=1, batch_size=4, device="cpu", dtype="float32")
        if name == "ranks":
            _give_ranks(run)
        for target in TARGETS:
            try:
                export(run, to=target)
            except InputError as refusal:
                print(f"{name}: {refusal}")


def _model(folder: Path) -> Path:
    """A tiny Llama with SmolLM2's tokenizer and chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from loratune.app.demo import smollm2
    from loratune.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(smollm2()))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _cases() -> dict[str, list[dict[str, Any]]]:
    words = [
        "naïve café",
        "two\n\nlines",
        "tab\there",
        "  spaces",
        "price: 3.50€",
        "日本語 text",
        "emoji 🙂",
        "plain",
    ]
    texts = [f"{words[i % len(words)]} no. {i}" for i in range(48)]
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    return {
        "labels": [{"text": text, "label": ("good_one", "bad")[i % 2]} for i, text in enumerate(texts)],
        "prompts": [{"prompt": f"Q: {text}\nA:", "completion": f" {text}!"} for text in texts],
        "chat": [{"messages": [{**asked[0], "content": text}, asked[1]]} for text in texts],
        "turns": [{"messages": [*asked, {**asked[0], "content": text}, asked[1]]} for text in texts],
        "text": [{"text": text} for text in texts],
        "ranks": [{"text": text, "label": ("good_one", "bad")[i % 2]} for i, text in enumerate(texts)],
    }


def _give_ranks(run: Path) -> None:
    """As `tune --layer-ranks` leaves a run."""
    path = run / "result.json"
    values = json.loads(path.read_text())
    values["hyper_parameters"]["rank_pattern"] = {"model.layers.0.self_attn.q_proj": 2}
    path.write_text(json.dumps(values))


def read(target: str, folder: Path) -> None:
    """Parse and tokenise every export to `target`; raises where anything is refused or differs."""
    reader, package = READERS[target]
    for run in sorted(path.parent for path in folder.glob("*/result.json")):
        export = run / "export" / target
        if not export.exists():
            print(f"{target}: {run.name} is refused by loratune")
            continue
        expected = list(_expected(run))
        os.chdir(export)
        found = reader()
        if target == "peft":
            print(f"{package} {version(package)}: {run.name} accepted")
            continue
        pairs = zip(expected, expected if found is None else found, strict=True)
        if different := sum(_learnable(ours) != _learnable(theirs) for ours, theirs in pairs):
            raise SystemExit(f"{target}: {different} of {len(expected)} rows of {run.name} are other tokens")
        rows = "trained" if found is None else f"{len(found)} rows are the run's tokens"
        print(f"{package} {version(package)}: {run.name} accepted, {rows}")


def _learnable(row: Tokens) -> Tokens:
    """A row's first token is not predicted by anything, labelled or not."""
    ids, labels = row
    return ids, [-100, *labels[1:]]


def _expected(run: Path) -> Iterator[Tokens]:
    """The run's training rows, which Unsloth's export has as tokens; `ranks` has the rows of `labels`."""
    source = run.with_name("labels") if run.name == "ranks" else run
    for row in _lines(str(source / "export" / "unsloth" / "data" / "train.jsonl")):
        yield row["input_ids"], row["labels"]


def _trl() -> list[Tokens] | None:
    if not Path("trl.yaml").exists():
        _script()
        return None
    trl, datasets = import_module("trl"), import_module("datasets")
    kinds = (trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig, trl.DatasetMixtureConfig)
    script, arguments, model, _ = trl.TrlParser(kinds).parse_args_and_config(
        ["--config", "trl.yaml"], fail_with_unknown_args=True
    )
    rows = datasets.load_dataset(script.dataset_name)
    trainer = trl.SFTTrainer(
        model=model.model_name_or_path,
        args=arguments,
        train_dataset=rows[script.dataset_train_split],
        eval_dataset=rows[script.dataset_test_split],
        peft_config=trl.get_peft_config(model),
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def _script() -> None:
    """Run it; the saved adapter has the ranks."""
    subprocess.run([sys.executable, "train.py"], check=True, capture_output=True)
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 2}, config
    assert config["alpha_pattern"] == {"model.layers.0.self_attn.q_proj": 4}, config


def _axolotl() -> list[Tokens]:
    values = import_module("yaml").safe_load(Path("axolotl.yaml").read_text())
    parsed = import_module("axolotl.utils.schemas.config").AxolotlInputConfig(**values)
    assert {"lora_r": 4, "warmup_steps": values["warmup_steps"]}.items() <= parsed.model_dump().items()
    strategies = import_module("axolotl.prompt_strategies.input_output")
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(values["base_model"])
    strategy = strategies.load(tokenizer, parsed)
    lines = _lines("data/train.jsonl")
    rows = [row if "input_ids" in row else strategy.tokenize_prompt(row) for row in lines]
    return [(row["input_ids"], row["labels"]) for row in rows]


def _llamafactory() -> list[Tokens]:
    # imported for sound alone, which no row has here; its releases lag behind PyTorch's
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
    values = import_module("yaml").safe_load(Path("llamafactory.yaml").read_text())
    model, data, training, *_ = import_module("llamafactory.hparams").get_train_args(values)
    tokenizer = import_module("llamafactory.model").load_tokenizer(model)
    own = import_module("llamafactory.data")
    template = own.get_template_and_fix_tokenizer(tokenizer["tokenizer"], data)
    found = own.get_dataset(template, model, data, training, stage="sft", **tokenizer)
    return [(row["input_ids"], row["labels"]) for row in found["train_dataset"]]


def _peft() -> None:
    """A configuration alone; `ranks` has its layer's rank and alpha."""
    config = import_module("peft").LoraConfig.from_pretrained(".")
    ranks = "ranks" in Path.cwd().parts
    assert (config.r, config.lora_alpha) == (4, 8), config
    assert bool(config.rank_pattern) is bool(config.alpha_pattern) is ranks, config


def _mlx() -> list[Tokens]:
    yaml, lora = import_module("yaml"), import_module("mlx_lm.lora")
    values = {**lora.CONFIG_DEFAULTS, **yaml.load(Path("mlx.yaml").read_text(), lora.yaml_loader)}
    arguments = SimpleNamespace(**values)
    _, tokenizer = import_module("mlx_lm.utils").load(arguments.model)
    if Path("train.py").exists():
        script: dict[str, Any] = {"__file__": "train.py", "__name__": "script"}
        exec(compile(Path("train.py").read_text(), "train.py", "exec"), script)
        tokenizer.chat_template = script["VERBATIM"]
    rows, _, _ = import_module("mlx_lm.tuner.datasets").load_dataset(arguments, tokenizer)
    schedule = import_module("mlx_lm.tuner.utils").build_schedule(arguments.lr_schedule)
    assert abs(float(schedule(arguments.lr_schedule["warmup"])) - arguments.learning_rate) < 1e-9
    made = [rows.process(rows[i]) for i in range(len(rows))]
    return [(ids, [-100] * given + ids[given:]) for ids, given in made]


def _unsloth() -> list[Tokens]:
    """It needs a GPU to be imported: its script's arguments by TRL, whose trainer it uses."""
    import ast

    tree = ast.parse(Path("train.py").read_text())
    calls = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    ]
    (arguments,) = [{str(each.arg): ast.literal_eval(each.value) for each in call.keywords} for call in calls]
    import_module("trl").SFTConfig(**arguments)
    return [(row["input_ids"], row["labels"]) for row in _lines("data/train.jsonl")]


def _lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


READERS: dict[str, tuple[Callable[[], list[Tokens] | None], str]] = {
    "trl": (_trl, "trl"),
    "unsloth": (_unsloth, "trl"),
    "peft": (_peft, "peft"),
    "axolotl": (_axolotl, "axolotl"),
    "llamafactory": (_llamafactory, "llamafactory"),
    "mlx": (_mlx, "mlx-lm"),
}

if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]).resolve())
    else:
        read(sys.argv[2], Path(sys.argv[3]).resolve())
