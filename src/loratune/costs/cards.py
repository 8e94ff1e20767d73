"""Memory of common cards, to name the smallest on which something fits."""

from collections.abc import Callable
from dataclasses import dataclass

from loratune.costs.execution import MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A GPU by its memory."""

    name: str
    bytes: int


CARDS = tuple(
    Card(name=name, bytes=mib * MIB)
    for name, mib in (
        ("RTX 2080 (8 GB)", 8192),
        ("RTX 3060 (12 GB)", 12288),
        ("T4 (16 GB)", 15360),
        ("RTX 4060 Ti (16 GB)", 16380),
        ("L4 or A10G (24 GB)", 23028),
        ("RTX 4090 or 3090 (24 GB)", 24564),
        ("RTX 5090 (32 GB)", 32607),
        ("A100 (40 GB)", 40960),
        ("L40S (48 GB)", 46068),
        ("RTX A6000 (48 GB)", 49140),
        ("H100 (80 GB)", 81559),
        ("A100 (80 GB)", 81920),
        ("H200 (141 GB)", 143771),
        ("B200 (192 GB)", 183359),
    )
)
"""From small to large, MiB; of cards named together the smaller.

They follow the cards' nominal sizes, less what is usually held back there (error correction, firmware). Two were
compared with what `nvidia-smi` prints as `memory.total`, the others were not: take a fit within some hundred MiB for a
tie.
"""


def smallest_card(fits: Callable[[int], bool]) -> Card | None:
    """The first on whose bytes it fits; None where a single card of the list does not do."""
    return next((card for card in CARDS if fits(card.bytes)), None)
