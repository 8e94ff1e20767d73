"""Sizes that repeat: never smaller, hardly larger, few."""

from loratune.maths.sizes import few_sizes, line_tokens


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
