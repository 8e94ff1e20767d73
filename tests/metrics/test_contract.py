"""Every built-in metric, and others' metrics, keep the contract that extensions are tested by."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

import own_metrics
from loratune.metrics import BUILT_IN, Metric, MetricInfo, Needs, Outputs
from loratune.metrics.base import Floats
from loratune.testing.metrics import MetricContract

PAGE = Path(__file__).parent.parent.parent / "docs" / "extending.md"


class TestNll(MetricContract):
    metric = BUILT_IN["nll"]


class TestPerplexity(MetricContract):
    metric = BUILT_IN["perplexity"]


class TestExactMatch(MetricContract):
    metric = BUILT_IN["exact_match"]


class TestAccuracy(MetricContract):
    metric = BUILT_IN["accuracy"]


class TestMacroF1(MetricContract):
    metric = BUILT_IN["f1"]


class TestCorrelation(MetricContract):
    metric = BUILT_IN["correlation"]


class TestPreferenceAccuracy(MetricContract):
    metric = BUILT_IN["preference_accuracy"]


class TestPreferenceMargin(MetricContract):
    metric = BUILT_IN["preference_margin"]


class TestPlainFunction(MetricContract):
    metric = own_metrics.overlap


class TestSmallerIsBetter(MetricContract):
    metric = own_metrics.wrong_characters


class TestSmallerIsBetterInPoints(MetricContract):
    metric = own_metrics.error_rate


class SquareError(Metric):
    """A whole metric of somebody else's: the length of a text as a number, squared error."""

    info = MetricInfo(
        name="square_error", title="square error", unit="cm²", larger_is_better=False, margin=2.0
    )
    needs = Needs.TEXT

    def scores(self, outputs: Outputs) -> Floats | None:
        if outputs.texts is None or outputs.references is None:
            return None
        pairs = zip(outputs.texts, outputs.references, strict=True)
        return np.array([float(len(text) - len(true)) ** 2 for text, true in pairs])


class TestSubclass(MetricContract):
    metric = SquareError()
    references = ("x", "xx", "xxxx")


def contracts(base: type[MetricContract]) -> list[type[MetricContract]]:
    """All classes derived from it."""
    return [found for each in base.__subclasses__() for found in (each, *contracts(each))]


def test_every_built_in_metric_is_here() -> None:
    import_module("metrics.test_generated")  # has those of generated text
    tested = {
        each.metric.name
        for each in contracts(MetricContract)
        if isinstance(getattr(each, "metric", None), Metric)
    }
    assert tested >= set(BUILT_IN)


def ran(folder: Path, *, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_example_of_the_page_keeps_the_contract(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n# (\w*my_metrics\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert [name for name, _ in blocks] == ["my_metrics.py", "test_my_metrics.py"]
    (tmp_path / "my_metrics.py").write_text(blocks[0][1])
    done = ran(tmp_path, source=blocks[1][1])
    assert done.returncode == 0, done.stdout
    tests = [name for name in dir(MetricContract) if name.startswith("test_")]
    assert re.search(rf"\b{2 * len(tests)} passed", done.stdout), done.stdout


def test_the_contract_finds_what_is_wrong(tmp_path: Path) -> None:
    """One that points the wrong way, one that looks at other rows, one that is random."""
    source = (
        "import random\n"
        "from loratune.metrics import metric\n"
        "from loratune.testing.metrics import MetricContract\n"
        "def right(p, r): return [float(a == b) for a, b in zip(p, r)]\n"
        "@metric(larger_is_better=False)\n"
        "def backwards(p, r): return right(p, r)\n"
        "def relative(p, r): return [s / max(sum(right(p, r)), 1) for s in right(p, r)]\n"
        "def drawn(p, r): return [random.random() for _ in p]\n"
        "class TestBackwards(MetricContract): metric = backwards\n"
        "class TestRelative(MetricContract): metric = relative\n"
        "class TestDrawn(MetricContract): metric = drawn\n"
    )
    failed = re.findall(r"FAILED test_it.py::(\w+)::(\w+)", ran(tmp_path, source=source).stdout)
    assert ("TestBackwards", "test_perfect_predictions_are_the_best") in failed
    assert ("TestRelative", "test_a_row_scores_the_same_whatever_rows_are_beside_it") in failed
    assert ("TestDrawn", "test_the_same_outputs_score_the_same") in failed
