"""Labels for the warm-up: short where the model is right without thinking, long where it has to think."""

from unbraid.data.task_rows import read_task_lines, write_task_lines
from unbraid.label.endpoint import EndpointConfig, EndpointTries
from unbraid.label.from_recipe import label_recipe, training_tasks
from unbraid.label.label import Labelled, SourceBooks, label
from unbraid.label.local import LocalTries
from unbraid.label.rule import Label, LabelConfig, decide
from unbraid.label.task_lines import labelled
from unbraid.label.tries import Try, TryLog, TrySampler, Want, read_tries

__all__ = [
    "EndpointConfig",
    "EndpointTries",
    "Label",
    "LabelConfig",
    "Labelled",
    "LocalTries",
    "SourceBooks",
    "Try",
    "TryLog",
    "TrySampler",
    "Want",
    "decide",
    "label",
    "label_recipe",
    "labelled",
    "read_task_lines",
    "read_tries",
    "training_tasks",
    "write_task_lines",
]
