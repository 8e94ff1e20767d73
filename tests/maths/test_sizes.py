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


def test_steps_of_one_pack_meet_few_sizes() -> None:
    """Counts that differ by a few per cent: room is given once they are seen to differ."""
    rounded = partial(line_tokens, multiple=128, recorded=65536)
    counts = [9216, 9100, 9400, 10300, 9650, 9216, 9300]
    assert {rounded(count) for count in counts} == {9216, 10240, 11264}
    sizes = MetSizes(rounded, filler, most=65536)
    assert [sizes.of(count) for count in counts] == [9216, 9216, 10240, 11264, 9728 + 512, 10240, 10240]
    assert sizes.of(7000) == rounded(7000), "a size that is much larger is not taken"


def test_equal_steps_are_not_filled_up() -> None:
    sizes = MetSizes(partial(line_tokens, multiple=128, recorded=65536), filler, most=65536)
    assert [sizes.of(count) for count in (16384, 2048, 512, 16384)] == [16384, 2048, 512, 16384]


def test_met_sizes_are_filled_up_by_a_bounded_share() -> None:
    sizes = MetSizes(partial(line_tokens, multiple=128, recorded=65536), filler, most=65536)
    for count in [20000, 19000, 16384, 12000, 11999, 700, 30000, 65536, 64000, 620, 18000, 18100, 65000]:
        found = sizes.of(count)
        roomy = line_tokens(int((1 + filler(count) / 2) * count) + 1, multiple=128, recorded=65536)
        assert count <= found <= max((1 + filler(count)) * count, roomy)
