"""The `Subject` of an analysis from an engine of this process; a study has it from its rows and its specification."""

from loratune.analysis.subject import Subject
from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine


def subject_of(engine: PackEngine, test: TokenTable | None = None) -> Subject:
    """What an engine is about."""
    return Subject(
        train=engine.train,
        validation=engine.validation,
        scoring=engine.scoring,
        profile=engine.base.profile,
        labelled=engine.label_tokens is not None,
        seed=engine.study_seed,
        test=test,
        group=engine.group,
        on_cpu=engine.base.device.type == "cpu",
    )
