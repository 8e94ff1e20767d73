"""Sizes that repeat: never smaller, hardly larger, few."""

from functools import partial

from loratune.maths.sizes import MetSizes, few_sizes, filler, line_tokens


def test_few_and_hardly_larger() -> None:
    for count in range(1, 5000):
        found = few_sizes(count, multiple=4, parts=16)
        assert found >= count
        assert found % 4 == 0
        assert found <= max(count + 3, count * (1 + 1 / 16))
        assert few_sizes(found, multiple=4, parts=16) == found
    assert len({few_sizes(count, multiple=64) for count in range(8000, 16000)}) <= 18


def test_lines_that_are_recorded_meet_few_sizes() -> None:
    recorded = {line_tokens(count, multiple=256, recorded=16384) for count in range(8193, 16385)}
    assert len(recorded) == 8
    assert line_tokens(16384, multiple=256, recorded=16384) == 16384
    for count in (1, 300, 9000, 16385, 30000, 60000):
        for largest in (0, 16384, 40000):
            found = line_tokens(count, multiple=256, recorded=largest)
            share = 32 if count > largest else 8 if count <= 16384 else 16
            assert count <= found <= max(256 * -(-count // 256), count * (1 + 1 / share))


def test_steps_of_one_pack_meet_one_size() -> None:
    """Counts that differ by a few per cent: two or three sizes by rounding alone, one with what was met before."""
    rounded = partial(line_tokens, multiple=128, recorded=65536)
    counts = [9216, 9100, 9400, 9216, 9650, 8900]
    assert len({rounded(count) for count in counts}) == 2
    sizes = MetSizes(rounded, filler, most=65536)
    assert {sizes.of(count) for count in counts} == {10240}
    assert sizes.of(7000) == rounded(7438), "a size that is much larger is not taken"
    assert sizes.of(10241) == rounded(10882)
    assert sizes.of(8900) == 10240, "not the larger of two"


def test_met_sizes_are_filled_up_by_a_bounded_share() -> None:
    sizes = MetSizes(partial(line_tokens, multiple=128, recorded=65536), filler, most=65536)
    for count in [20000, 19000, 16384, 12000, 11999, 700, 30000, 65536, 64000, 620, 18000]:
        found = sizes.of(count)
        assert count <= found <= max((1 + filler(count)) * count, rounded_with_room(count))
    assert sizes.of(65536) == 65536, "without room where more is not recorded"


def rounded_with_room(count: int) -> int:
    return line_tokens(int((1 + filler(count) / 2) * count) + 1, multiple=128, recorded=65536)
