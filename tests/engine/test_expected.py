"""The sizes of the micro-batches to come are those that come."""

import numpy as np

from engine_fixture import engine, labelled_table, tiny_llama, trial
from loratune.engine.expected import ExpectedSizes
from loratune.engine.portions import Cuts, Gathered

FLAT = Cuts(max_tokens=10**6, launch_tokens=1, flat=True)


def test_every_step_to_come_is_known_until_other_slots_go_on() -> None:
    """Of trials of several batch sizes, lengths and seeds, from the second step on; then without one of them."""
    pack = engine(tiny_llama(), labelled_table([[1, 2], [3]], rows=23))
    trials = [trial(seed=0, batch_size=3, epochs=1.5), trial(seed=1, batch_size=4, fraction=0.5, epochs=3.0)]
    slots = [pack.slot(each) for each in trials]
    for slot in slots:
        slot.next_rows()
        slot.record(1.0, 1.0, 1)
    expected = ExpectedSizes(pack.train, FLAT)
    for live in (slots, slots[1:]):
        found = expected.new(live)
        assert found is not None
        assert expected.new(live) is None
        met = []
        ahead = 0
        while (step := Gathered.of(live, ahead=ahead)) is not None:
            rows = pack.train.lengths[step.row], pack.train.supervised_counts[step.row]
            met.append([int(each.sum()) for each in rows])
            ahead += 1
        assert np.column_stack(found).tolist() == met


def test_parts_of_a_step_are_no_larger_than_expected() -> None:
    pack = engine(tiny_llama(), labelled_table([[1, 2], [3]], rows=23))
    slots = [pack.slot(trial(seed=seed, batch_size=5)) for seed in range(3)]
    cuts = Cuts(max_tokens=40, launch_tokens=1, flat=True)
    found = ExpectedSizes(pack.train, cuts).new(slots)
    assert found is not None
    for ahead, tokens in enumerate(found[0]):
        step = Gathered.of(slots, ahead=ahead)
        assert step is not None
        lengths = pack.train.lengths[step.row]
        assert cuts.largest(lengths) <= tokens
        assert tokens <= 40 + pack.train.lengths.max()
