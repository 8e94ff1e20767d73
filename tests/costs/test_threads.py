"""How many threads: answers known beforehand, as the rates are made up."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loratune.app.doctor import doctor
from loratune.costs import threads
from loratune.costs.calibration import Calibration
from loratune.costs.threads import fastest, is_shared, quota, running
from loratune.values.plain import to_plain


@pytest.fixture
def eight() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({8: 100.0, 4: 90.0, 1: 30.0}, 8),
        ({8: 100.0, 4: 109.0, 1: 30.0}, 8),  # too little to be more than chance
        ({8: 100.0, 4: 150.0, 1: 120.0}, 4),
        ({8: 10.0, 4: 20.0, 1: 90.0}, 1),
    ],
)
@pytest.mark.usefixtures("eight")
def test_the_fastest_of_all_half_and_one(rates: dict[int, float], chosen: int) -> None:
    tried: list[int] = []

    def rate() -> float:
        tried.append(torch.get_num_threads())
        return rates[tried[-1]]

    assert fastest(rate) == chosen
    assert tried == [8, 4, 1]
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight")
def test_the_number_is_as_before_also_where_it_breaks_off() -> None:
    def breaks_off() -> float:
        assert torch.get_num_threads() == 8
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fastest(breaks_off)
    with running(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 8
    with running(0):
        assert torch.get_num_threads() == 8


@pytest.mark.parametrize(
    ("load", "cores", "shared"), [(0.1, 8.0, False), (0.6, 8.0, True), (0.1, 2.0, True), (0.0, 16.0, False)]
)
@pytest.mark.usefixtures("eight")
def test_shared_is_where_others_work_or_cores_are_fewer(
    monkeypatch: pytest.MonkeyPatch, load: float, cores: float, shared: bool
) -> None:
    monkeypatch.setattr(threads, "load_per_core", lambda: load)
    monkeypatch.setattr(threads, "cores", lambda: cores)
    assert is_shared() is shared
    torch.set_num_threads(1)
    assert not is_shared(), "one thread gets in nobody's way"


@pytest.mark.parametrize(
    ("text", "expected"), [("200000 100000\n", 2.0), ("max 100000\n", float("inf")), ("", float("inf"))]
)
def test_the_share_of_a_container(tmp_path: Path, text: str, expected: float) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert quota(file) == expected
    assert quota(tmp_path / "absent") == float("inf")


@pytest.mark.usefixtures("eight")
def test_doctor_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 8.0)
    monkeypatch.setattr(threads, "load_per_core", lambda: 0.0)
    assert doctor()["warnings"] == []
    monkeypatch.setattr("loratune.app.doctor.load_per_core", lambda: 3.25)
    monkeypatch.setattr("loratune.app.doctor.cores", lambda: 8.0)
    monkeypatch.setattr(threads, "load_per_core", lambda: 3.25)
    (warning,) = doctor()["warnings"]
    assert "3.2 programs a core" in warning
    monkeypatch.setattr("loratune.app.doctor.cores", lambda: 2.0)
    (warning,) = doctor()["warnings"]
    assert "8 threads where this process may use 2 cores" in warning
    assert "OMP_NUM_THREADS=2" in warning


def test_a_calibration_keeps_them() -> None:
    found = Calibration(pack=10.0, alone=5.0, forward=20.0, slots=2, threads=3)
    assert Calibration.from_dict(to_plain(found)).threads == 3
    earlier = {name: value for name, value in to_plain(found).items() if name != "threads"}
    assert Calibration.from_dict(earlier).threads == 0
