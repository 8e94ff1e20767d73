"""What `--recompute` asks for: of how many layers activations are computed again instead of being kept.

Knows no model and needs no torch.
"""

from loratune.errors import InputError, printable

ALL, AUTO, NONE = "all", "auto", "none"


def layers_recomputed(text: str, layers: int | None = None) -> int | None:
    """What `--recompute` asks for, of a model with `layers` layers (None: not known yet); None: as few as it takes.

    Raises `InputError` for anything else.
    """
    if text in (AUTO, NONE):
        return None if text == AUTO else 0
    if text == ALL:
        return layers
    if not text.isdecimal() or (layers is not None and int(text) > layers):
        most = "a number of layers" if layers is None else f"0 to {layers}, the layers of the model"
        raise InputError(
            f"--recompute must be auto, none, all or {most}, got {printable(text)!r}; leave it out for auto."
        )
    return int(text)
