"""Evaluation: scores with intervals, and paired comparisons."""

from unbraid.evaluate.evaluate import EvaluateConfig, Sample, evaluate
from unbraid.evaluate.metrics import Comparison, Labels, Score, acu, compare, score
from unbraid.evaluate.statistics import Estimate, clustered_mean, mcnemar, mean_over_runs, of_means, proportion

__all__ = [
    "Comparison",
    "Estimate",
    "EvaluateConfig",
    "Labels",
    "Sample",
    "Score",
    "acu",
    "clustered_mean",
    "compare",
    "evaluate",
    "mcnemar",
    "mean_over_runs",
    "of_means",
    "proportion",
    "score",
]
