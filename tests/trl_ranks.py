"""Two GRPO runs of two steps, as one of several processes or alone: `test_trl_ranks.py` starts it.

trl_ranks.py OUT      coefficients of every step, and the weights afterwards, of a whole model and of a routed one
"""

import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from trl_worlds import CHAT, chat_format, chat_model, chat_tokenizer, grpo_config, lengths, prompts

from unbraid.chat.types import Answer, Call, Mode
from unbraid.learn.constraint import Adaptive, ConstraintConfig
from unbraid.policy import AdapterConfig
from unbraid.trl import ConstrainedGRPOTrainer, route_model

CONSTRAINTS = [
    ConstraintConfig(
        name="modes",
        group_by="mode",
        target=5.5,
        coefficient=Adaptive(start=0.1, learning_rate=0.1, max=9),
        gate="none",
    ),
    ConstraintConfig(
        name="rate", measure="choice_rate", coefficient=Adaptive(start=0.3, rule="adam", learning_rate=0.1), gate="none"
    ),
]


def answers(asked: list[Any], trainer: Any) -> dict[str, Any]:
    """What the first, the second, … sample of a prompt says depends on both alone, not on who draws it."""
    format, seen, prompt_ids, completion_ids = chat_format(), {}, [], []
    for messages in asked:
        text = messages[0]["content"]
        number = seen[text] = seen.get(text, -1) + 1
        lot = zlib.crc32(f"{text}{number}".encode())
        thinks = lot % 3 == 0
        answer = Answer(
            Mode.THINK if thinks else Mode.NO_THINK, "Paris " * (lot % 5 + 1) if thinks else "",
            (Call("add", {"a": lot % 7}),) if lot % 2 else (), "Sunny",
        )  # fmt: skip
        prompt_ids.append(format.prompt_ids(messages))
        completion_ids.append(format.response_ids(answer))
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def run(model: Any, folder: Path) -> dict[str, Any]:
    """Four samples a step, shared out."""
    trainer = ConstrainedGRPOTrainer(
        model=model, reward_funcs=lengths, train_dataset=prompts(), processing_class=chat_tokenizer(),
        args=grpo_config(
            folder, per_device_train_batch_size=4 // PartialState(cpu=True).num_processes, shuffle_dataset=False,
            learning_rate=5e-2, optim="sgd",
        ),
        constraints=CONSTRAINTS, chat=CHAT, rollout_func=answers,
    )  # fmt: skip
    trainer.train()
    rows = [row for row in trainer.state.log_history if "constraint/rate/all/coefficient" in row]
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    return {
        "logged": [{name: value for name, value in row.items() if name.startswith("constraint/")} for row in rows],
        "weights": {name: value.clone() for name, value in weights.items()},
    }


def main() -> None:
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    routed = route_model(chat_model(), chat_format(), AdapterConfig(rank=4))
    found: dict[str, Any] = {"processes": PartialState(cpu=True).num_processes}
    found |= {"whole": run(chat_model(), out.parent / "whole"), "routed": run(routed, out.parent / "routed")}
    if PartialState(cpu=True).is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main()
