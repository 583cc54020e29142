"""One hierarchy of errors. Each also subclasses the standard error, so both styles of `except` work.

Every message is one line: what was wrong, where (file, row, field), and what to do about it.
The command line prints the message and nothing else; a traceback means a bug in unbraid.
"""


class UnbraidError(Exception):
    """Anything that unbraid reports to its user."""


class RecipeError(UnbraidError, ValueError):
    """A recipe has an unknown key, a value out of range, or parts that do not fit together."""


class DataError(UnbraidError, ValueError):
    """A file cannot be read as tasks, or holds no usable row."""


class ChatError(UnbraidError, ValueError):
    """A chat template, a mode prefix or a delimiter does not do what training needs of it."""


class ModelError(UnbraidError, ValueError):
    """A model or an adapter cannot be loaded or used as asked."""


class RewardError(UnbraidError, ValueError):
    """A reward function raised, or returned something that is not a reward."""


class EnvError(UnbraidError, ValueError):
    """An environment, or one of its tools, cannot be used as it is written."""


class ToolError(UnbraidError, RuntimeError):
    """A tool refuses a call; the message is for the model, which is shown it as it is."""


class HungToolsError(UnbraidError, RuntimeError):
    """So many tool calls never came back that no more are tried."""


class ServerError(UnbraidError, RuntimeError):
    """A model server cannot be started or reached, refuses a request, or draws from another policy than the trainer."""


class CheckpointError(UnbraidError, RuntimeError):
    """A checkpoint is absent, broken, or belongs to another run."""


class RanksError(UnbraidError, RuntimeError):
    """Processes that train together do not find each other, differ, or have lost one of them."""


class CollapseError(UnbraidError, RuntimeError):
    """Training was stopped because one mode had vanished (only where the recipe asks for it)."""


class MissingExtraError(UnbraidError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""
