"""What measured peaks, and running out of memory, make of the memory model."""

import numpy as np
import pytest

from llama_8b import on_cuda, trial
from loratune.costs.correction import UNCORRECTED, Correction, Peak, corrected, fit_correction
from loratune.values.plain import from_plain, to_plain


def test_a_correction_is_found_again_and_applied() -> None:
    """A device that takes 1.3 times the short-lived bytes and 100 MiB less for libraries, measured twice."""
    packs = [[trial(8, 4)], [trial(8, 16)]]
    estimates = [on_cuda(pack) for pack in packs]
    truth = [e.total + round(0.3 * e.transient) - 100 * 2**20 for e in estimates]
    found = fit_correction([e.peak(measured) for e, measured in zip(estimates, truth, strict=True)])
    assert found.scale == pytest.approx(1.3, rel=1e-6)
    assert found.fixed == pytest.approx(-100 * 2**20, rel=1e-3)
    later = on_cuda([trial(64, 32)], correction=found)
    plain = on_cuda([trial(64, 32)])
    assert later.total == pytest.approx(plain.total + 0.3 * plain.transient - 100 * 2**20, rel=1e-6)
    assert later.steady == plain.steady
    assert from_plain(Correction, to_plain(found)) == found


def peak(transient: int, measured: int) -> Peak:
    return Peak(steady=1000, runtime=500, transient=transient, measured=measured)


def test_peaks_of_about_one_size_are_all_covered() -> None:
    """The largest may be measured where less was in flight."""
    peaks = [
        Peak(steady=10**10, runtime=10**9, transient=7_360_000_000, measured=18_600_000_000),
        Peak(steady=10**10, runtime=10**9, transient=7_100_000_000, measured=25_700_000_000),
    ]
    found = fit_correction(peaks)
    for peak in peaks:
        assert (
            peak.steady + peak.runtime + found.scale * peak.transient + found.fixed
            >= 0.999999 * peak.measured
        )


def test_a_correction_never_falls_below_what_was_measured() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        peaks = [peak(t, 1500 + round(t * random.uniform(0.3, 3))) for t in (1000, 2500, 5000)]
        found = fit_correction(peaks)
        assert 0.5 <= found.scale <= 2.0
        for each in peaks:
            assert (
                each.steady + each.runtime + found.fixed + found.scale * each.transient >= each.measured - 1
            )


def test_corrections_from_little() -> None:
    assert fit_correction([]) == UNCORRECTED
    assert fit_correction([peak(1000, 2300)]) == Correction(fixed=-200)
    assert fit_correction([peak(1000, 1600)]) == Correction(
        fixed=-500
    )  # the process cannot take less than nothing
    assert fit_correction([peak(1000, 3000)]) == Correction(scale=1.5)
    assert fit_correction([peak(1000, 5000)]) == Correction(scale=2.0, fixed=1500)


def test_after_running_out_of_memory_the_same_pack_is_predicted_above_what_it_needed() -> None:
    before = Correction(scale=1.2, fixed=100)
    failed = peak(1000, 0)
    after = corrected(before, 3000, failed)
    assert after.fixed == before.fixed
    assert 1500 + after.fixed + after.scale * 1000 == pytest.approx(1.01 * 3000)
    assert corrected(before, 2000, failed) == before  # predicted above that already: something else is wrong
    beyond = corrected(before, 50_000, failed)  # more than any allocator wastes
    assert beyond.scale == before.scale
    assert 1500 + beyond.fixed + beyond.scale * 1000 == pytest.approx(1.01 * 50_000, abs=1)
