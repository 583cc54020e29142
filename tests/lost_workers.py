"""A reward that kills its own process, once: for runs whose workers may be lost."""

import os
import signal
from pathlib import Path

from unbraid.chat.types import Reading
from unbraid.tasks.reward import Reward, RewardConfig, score
from unbraid.tasks.task import Task

RUN = "UNBRAID_TEST_RUN"
"""Environment variable with the folder of the run that is to lose rank 1."""


def deadly(task: Task, reading: Reading) -> Reward:
    """The published reward; the first rank 1 to draw a third step is killed in the middle of it."""
    folder = Path(os.environ.get(RUN, "nowhere"))
    killed = folder / "killed"
    if os.environ.get("RANK") == "1" and (folder / "checkpoints" / "step-000002").exists() and not killed.exists():
        killed.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return score(task, reading, RewardConfig())
