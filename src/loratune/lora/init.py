"""PEFT's initial weights, bit for bit, without touching the global random state."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import nn

from loratune.lora.layout import Adapter, AdapterLayout, Target
from loratune.values import HyperParameters


def initial_adapter(
    hyper_parameters: HyperParameters,
    targets: Sequence[Target],
    *,
    seed: int,
    base_dtype: torch.dtype,
    device: torch.device,
) -> Adapter:
    """What `torch.manual_seed(seed); get_peft_model(model, config)` gives, as one flat vector on `device`.

    PEFT draws on the CPU, for each target in `named_modules` order: `nn.Linear(in, r)`'s own
    initialisation, `nn.Linear(r, out)`'s (thrown away, B is zero), then Kaiming uniform with a = √5 on A
    again, r being the module's own where a rank pattern names it. It moves the result to the base's type,
    hence A is rounded to bfloat16 under such a base, and then keeps adapters of half-precision bases in
    float32.
    """
    generator = torch.Generator().manual_seed(seed)
    layout = AdapterLayout.of(hyper_parameters, targets)
    flat = torch.zeros(layout.size)
    for a, b in layout.views(flat).values():
        nn.init.kaiming_uniform_(a, a=sqrt(5), generator=generator)
        nn.init.kaiming_uniform_(torch.empty_like(b), a=sqrt(5), generator=generator)
        nn.init.kaiming_uniform_(a, a=sqrt(5), generator=generator)
        b.zero_()
    rounded = flat.to(base_dtype)
    dtype = torch.float64 if base_dtype == torch.float64 else torch.float32
    return Adapter(hyper_parameters=hyper_parameters, layout=layout, weights=rounded.to(device, dtype))
