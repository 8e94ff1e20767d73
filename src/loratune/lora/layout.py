"""Where the matrices of an adapter lie in one flat vector, and their initial values: PEFT's, bit for bit.

Each module may have a rank of its own: R below is the module's.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod, sqrt
from os import cpu_count
from typing import NamedTuple, Self

import torch

from loratune.maths.targets import Part, Shape, select_targets
from loratune.values import HyperParameters


class Target(NamedTuple):
    """A module that can be adapted, under its full name in `model.named_modules()`."""

    name: str
    in_features: int
    out_features: int


def find_targets(available: Sequence[Shape], target_modules: Sequence[str]) -> tuple[Target, ...]:
    """The modules that hyper-parameters target, in the order of `available`; see `select_targets`."""
    return tuple(Target(*shape) for shape in select_targets(available, target_modules))


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterLayout:
    """Shapes and offsets of every A [R, in] and B [out, R], in the order of the modules, A before B; then DoRA's
    magnitudes [out]; then the head.
    """

    targets: tuple[Target, ...]
    ranks: tuple[int, ...]
    """Rank of each target."""
    head: tuple[Part, ...] = ()
    """What is trained beside the matrices, under its names in the model (PEFT's `modules_to_save`)."""
    magnitudes: bool = False
    """Whether each module has one for each of its outputs."""

    @classmethod
    def of(
        cls, hyper_parameters: HyperParameters, targets: Sequence[Target], head: Sequence[Part] = ()
    ) -> Self:
        """The layout of an adapter on `targets`, with that head."""
        ranks = hyper_parameters.ranks_of(target.name for target in targets)
        return cls(
            targets=tuple(targets), ranks=ranks, head=tuple(head), magnitudes=hyper_parameters.use_dora
        )

    @property
    def r(self) -> int:
        """The largest rank of a module; every module's where the ranks do not differ."""
        return max(self.ranks)

    @property
    def size(self) -> int:
        """Numbers in the flat vector."""
        return self.head_begins + sum(prod(shape) for _, shape in self.head)

    @property
    def head_begins(self) -> int:
        """Numbers before the head's."""
        magnitudes = sum(target.out_features for target in self.targets) if self.magnitudes else 0
        return self.matrices_size + magnitudes

    @property
    def matrices_size(self) -> int:
        """Numbers of the matrices, which come first."""
        sides = (target.in_features + target.out_features for target in self.targets)
        return sum(rank * side for rank, side in zip(self.ranks, sides, strict=True))

    def views(self, flat: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A [R, in], B [out, R]) by module name, as views of a flat vector [size]."""
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        offset = 0
        for (name, in_features, out_features), rank in zip(self.targets, self.ranks, strict=True):
            middle = offset + rank * in_features
            end = middle + rank * out_features
            found[name] = (
                flat[offset:middle].view(rank, in_features),
                flat[middle:end].view(out_features, rank),
            )
            offset = end
        return found

    def magnitude_views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """[out] DoRA's magnitudes by module name, as views of a flat vector [size]; empty where there are none."""
        if not self.magnitudes:
            return {}
        names, sizes = [t.name for t in self.targets], [t.out_features for t in self.targets]
        return dict(zip(names, torch.split(flat[self.matrices_size : self.head_begins], sizes), strict=True))

    def pieces(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every tensor of a flat vector [size], as views by name: `<module>.lora_A` and so on, and the head's."""
        found: dict[str, torch.Tensor] = {}
        for name, (a, b) in self.views(flat).items():
            found |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        found |= {f"{name}.lora_magnitude_vector": m for name, m in self.magnitude_views(flat).items()}
        return found | self.head_views(flat)

    def head_views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The head's parameters by name, as views of a flat vector [size]."""
        sizes = [prod(shape) for _, shape in self.head]
        pieces = torch.split(flat[self.head_begins :], sizes) if sizes else ()
        return {name: piece.view(shape) for (name, shape), piece in zip(self.head, pieces, strict=True)}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter: what it is called for, where its numbers lie, and the numbers."""

    hyper_parameters: HyperParameters
    layout: AdapterLayout
    weights: torch.Tensor
    """[layout.size] float32 (float64 in tests)."""

    def views(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A, B) by module name."""
        return self.layout.views(self.weights)

    def head(self) -> dict[str, torch.Tensor]:
        """What was trained beside the matrices, by parameter name."""
        return self.layout.head_views(self.weights)


_GAIN = sqrt(2.0 / (1 + sqrt(5) ** 2))
"""Gain of Kaiming's uniform distribution with a = √5."""


class InitialHead(NamedTuple):
    """What is trained beside the matrices, and how it begins."""

    parts: tuple[Part, ...] = ()
    numbers: Callable[[int], torch.Tensor] = lambda seed: torch.empty(0)
    """[their numbers] float32 on the CPU, by a trial's seed."""


NO_HEAD = InitialHead()


def initial_numbers(layout: AdapterLayout, seed: int) -> torch.Tensor:
    """[layout.size] float32 on the CPU, as PEFT draws them there; magnitudes and a head are left zero.

    For each target in `named_modules` order: `nn.Linear(in, r)`'s own initialisation, `nn.Linear(r, out)`'s (both
    thrown away, B is zero), then Kaiming uniform with a = √5 on A, r being the module's own where a rank pattern
    names it.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(layout.size)
    unused = torch.empty(max((a.numel() + b.numel() for a, b in layout.views(flat).values()), default=0))
    for a, b in layout.views(flat).values():
        unused[: a.numel() + b.numel()].uniform_(generator=generator)
        bound = sqrt(3.0) * (_GAIN / sqrt(a.shape[1]))
        a.uniform_(-bound, bound, generator=generator)
    return flat


def initial_adapters(
    wanted: Sequence[tuple[HyperParameters, Sequence[Target], int]],
    *,
    base_dtype: torch.dtype,
    device: torch.device,
    head: InitialHead = NO_HEAD,
) -> list[Adapter]:
    """What `torch.manual_seed(seed); get_peft_model(model, config)` gives, as flat vectors on `device`, for each of
    many (hyper-parameters, targets, seed), with a thread for each core.

    PEFT moves the result to the base's type, hence A is rounded to bfloat16 under such a base, and then keeps
    adapters of half-precision bases in float32.
    Those of one seed and shape, as in a ladder of learning rates, begin with the same numbers: these are drawn once.
    """
    keys = [
        (AdapterLayout.of(hyper_parameters, targets, head.parts), seed)
        for hyper_parameters, targets, seed in wanted
    ]
    distinct = list(dict.fromkeys(keys))
    with ThreadPoolExecutor(cpu_count()) as pool:
        placed = pool.map(lambda key: _placed(_with_head(key[0], key[1], head), base_dtype, device), distinct)
        drawn = dict(zip(distinct, placed, strict=True))
    used: set[tuple[AdapterLayout, int]] = set()
    found = []
    for key, (hyper_parameters, _, _) in zip(keys, wanted, strict=True):
        weights = drawn[key].clone() if key in used else drawn[key]
        used.add(key)
        found.append(Adapter(hyper_parameters=hyper_parameters, layout=key[0], weights=weights))
    return found


def _with_head(layout: AdapterLayout, seed: int, head: InitialHead) -> torch.Tensor:
    numbers = initial_numbers(layout, seed)
    numbers[layout.head_begins :] = head.numbers(seed)
    return numbers


def _placed(numbers: torch.Tensor, base_dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The numbers on the device in the adapter's type, rounded to the base's."""
    rounded = numbers.to(base_dtype).to(device)  # half as many bytes travel
    return rounded.to(torch.float64 if base_dtype == torch.float64 else torch.float32)
