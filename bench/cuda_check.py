"""Does the engine run correctly on this CUDA device? The exactness rule in three number formats, at a real size.

A model of SmolLM2-135M's shape with random weights; imports neither optuna nor datasets. Prints the deviation
of every trial of a mixed pack from plain PEFT beside PEFT's own noise, and a measured step of packs.
"""

import torch

from loratune.costs.measuring import measure_step
from loratune.engine.pack import PackEngine
from loratune.engine.selfcheck import random_table, selfcheck
from loratune.values import HyperParameters, Trial
from shapes import random_base


def main() -> None:
    """Print everything."""
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        base = random_base("smollm2-135m", dtype, "cuda")
        check = selfcheck(base, steps=10)
        print(dtype, "holds" if check.holds else "DOES NOT HOLD", flush=True)
        for each in check.trials:
            print("  ", each.trial.hyper_parameters.r, each.pack, each.noise, each.holds, flush=True)
    table = random_table(49152, rows=2000, longest=60)
    engine = PackEngine(
        base=base,
        train=table,
        validation=table.take(range(256)),
        study_seed=0,
        cost=lambda trial: 1.0,
        max_tokens_per_micro_batch=16384,
    )
    recipe = HyperParameters(r=16, lora_alpha=32, learning_rate=2e-4, batch_size=4, epochs=2.0)
    for slots in (8, 32):
        trials = [Trial(hyper_parameters=recipe, seed=seed) for seed in range(slots)]
        print(slots, measure_step(engine, trials, seconds=5.0), flush=True)


if __name__ == "__main__":
    main()
