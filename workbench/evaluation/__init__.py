"""Evaluation of a run's policies, or of any model, on sets of problems; see `evaluate`."""

from workbench.evaluation.evaluate import Evaluation, evaluate
from workbench.evaluation.subjects import POLICIES, Subject, open_subjects
from workbench.tasks.sets import NAMED, EvaluationSet, load_set

__all__ = [
    "Evaluation",
    "EvaluationSet",
    "NAMED",
    "POLICIES",
    "Subject",
    "evaluate",
    "load_set",
    "open_subjects",
]
