"""Sizes that repeat: never smaller, hardly larger, few."""

from loratune.maths.sizes import few_sizes


def test_few_and_hardly_larger() -> None:
    for count in range(1, 5000):
        found = few_sizes(count, multiple=4, parts=16)
        assert found >= count
        assert found % 4 == 0
        assert found <= max(count + 3, count * (1 + 1 / 16))
        assert few_sizes(found, multiple=4, parts=16) == found
    assert len({few_sizes(count, multiple=64) for count in range(8000, 16000)}) <= 18
