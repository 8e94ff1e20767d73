"""The recommendation as other libraries' own objects."""

from importlib.util import find_spec

import pytest
import torch
from transformers import get_scheduler

from loratune.engine.slot import schedule, warmup_steps
from loratune.errors import HyperParameterError, InputError
from loratune.reporting.result import RecommendedHyperParameters

CHOSEN = RecommendedHyperParameters(
    r=8, lora_alpha=12, learning_rate=3e-4, batch_size=12, weight_decay=0.01, epochs=2.0, warmup_ratio=0.05,
    max_length=96,
)  # fmt: skip


def test_training_arguments_repeat_the_schedule() -> None:
    arguments = CHOSEN.training_arguments("there", micro_batch=4, report_to="none")
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 12
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (arguments.num_train_epochs, arguments.weight_decay, arguments.max_grad_norm) == (2.0, 0.01, 1.0)
    total = 168
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    theirs = get_scheduler(
        arguments.lr_scheduler_type, optimiser, arguments.get_warmup_steps(total), num_training_steps=total
    )
    for step in range(total):
        ours = 3e-4 * schedule(step, warmup=warmup_steps(CHOSEN, total), total=total)
        assert theirs.get_last_lr()[0] == pytest.approx(ours)
        optimiser.step()
        theirs.step()


def test_others_go_before_what_is_recommended() -> None:
    assert CHOSEN.training_arguments(report_to="none", learning_rate=1e-5, seed=3).learning_rate == 1e-5


def test_a_micro_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(HyperParameterError, match="must divide the batch size of 12, got 5"):
        CHOSEN.training_arguments(micro_batch=5)


@pytest.mark.skipif(find_spec("trl") is not None, reason="TRL is installed; make check-exports tries it")
def test_without_trl_one_sentence_says_so() -> None:
    with pytest.raises(InputError, match="needs the package trl"):
        CHOSEN.sft_config()
