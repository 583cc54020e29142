"""Runs: from a recipe to a folder with a trained policy, its scores and its pages."""

from unbraid.run.folder import policy_of, read_scores, recipe_of, replace_folder, take_weights, write_scores
from unbraid.run.pages import colophon, report_runs, run_view, transcripts_of, write_run_episodes
from unbraid.run.training import Progress, evaluate_run, silent, train, warm_up

__all__ = [
    "Progress",
    "colophon",
    "evaluate_run",
    "policy_of",
    "read_scores",
    "recipe_of",
    "replace_folder",
    "report_runs",
    "run_view",
    "silent",
    "take_weights",
    "train",
    "transcripts_of",
    "warm_up",
    "write_run_episodes",
    "write_scores",
]
