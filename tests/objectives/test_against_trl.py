"""Packs of pairs against TRL in float64: by the numbers that its trainers gave once, and by TRL where it is installed.

`bench/preference_reference.py` says how the numbers were made.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import preference_reference as reference

KEPT: dict[str, Any] = json.loads((Path(__file__).parent / "trl_reference.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("names", [("dpo", "dpo-beta"), ("orpo",), ("simpo",)], ids=lambda names: names[0])
def test_packs_are_what_trl_gave(names: tuple[str, ...]) -> None:
    """Losses of every step and all final matrices; both DPO trials in one pack, with betas of their own."""
    _, slots = reference.packed(names)
    for name, slot in zip(names, slots, strict=True):
        known = KEPT["cases"][name]
        np.testing.assert_allclose(slot.losses, known["losses"], rtol=1e-10)
        views = slot.adapter.views()
        assert len(known["weights"]) == 2 * len(views)
        for module, matrices in views.items():
            for letter, mine in zip("AB", matrices, strict=True):
                total, squares = known["weights"][f"{module}.lora_{letter}.default.weight"]
                assert float(mine.sum()) == pytest.approx(total, rel=1e-8, abs=1e-10)
                assert float((mine**2).sum()) == pytest.approx(squares, rel=1e-9)


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("name", list(reference.CASES))
def test_packs_are_what_trl_gives_here(name: str) -> None:
    of_losses, of_weights = reference.differences(name)
    assert of_losses < 1e-10
    assert of_weights < 1e-10
