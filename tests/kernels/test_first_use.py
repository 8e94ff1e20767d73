"""What is made at first use is counted once, and told once to whoever listens."""

import pytest
import torch

from loratune.kernels import first_use
from loratune.runners.local import tell_first_uses
from loratune.values.events import Event, Prepared, discard


@pytest.fixture(autouse=True)
def from_nothing() -> None:
    first_use.taken()


def test_kernels_and_recordings_are_counted_until_they_are_told() -> None:
    told: list[Event] = []
    tell_first_uses(told.append)
    for kind in ("kernels", "kernels", "recordings"):
        with first_use.first_use(kind):
            pass
    tell_first_uses(discard)
    assert told == []
    tell_first_uses(told.append)
    (event,) = told
    assert isinstance(event, Prepared)
    assert (event.kernels, event.recordings, event.compiled) == (2, 1, 0)
    assert event.kernel_seconds > 0
    tell_first_uses(told.append)
    assert told == [event]


def test_a_recording_that_breaks_off_took_its_seconds_too() -> None:
    with pytest.raises(RuntimeError), first_use.first_use("recordings"):
        raise RuntimeError
    found = first_use.taken()
    assert found is not None
    assert found.recordings == 1


def test_compiled_functions_are_counted() -> None:
    doubled = torch.compile(lambda numbers: numbers * 2, backend="eager", dynamic=True)
    doubled(torch.ones(3))
    doubled(torch.ones(4))
    found = first_use.taken()
    assert found is not None
    assert (found.compiled, found.kernels) == (1, 0)
    assert found.compile_seconds > 0
