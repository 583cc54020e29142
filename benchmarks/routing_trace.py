"""One episode of the search world through routed adapters, position by position: the trace in docs/routed-lora.md.

    python benchmarks/routing_trace.py

The adapters are random and large, so that the log-prob of a token tells which one it ran through. Shown per position:
the token, who wrote it, its role, the adapter that the position runs through (which writes the next token), and the
log-prob that the sampler recorded beside the trainer's. The last line is a JSON object.
"""

import json
import sys

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from unbraid.chat.types import Mode
from unbraid.lab.search import search_recipe
from unbraid.learn.batch import collate
from unbraid.learn.objective import score_tokens
from unbraid.policy import load_policy
from unbraid.prepare import load_tasks, make_environment, roll_of
from unbraid.tokens import NONE, Role, Router


def main() -> int:
    """Draw one episode and print it."""
    recipe = search_recipe(overrides=["model.adapter={rank: 8, alpha: 16, routing: {context: null}}"])
    torch.manual_seed(0)
    policy = load_policy(recipe.model, recipe.chat)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)
    acts_in = make_environment(recipe)
    tests = load_tasks(recipe, policy, acts_in).test[:8]
    found = roll_of(recipe, policy, acts_in)(tests, [Mode.AUTO] * 4, temperature=1.0, seed=1)
    # The shortest that searches, is answered, and answers.
    shown = min(
        (t for t in found if len(t.responses) == 2 and t.episode and t.episode.results), key=lambda t: len(t.ids)
    )
    router = policy.router
    assert isinstance(router, Router)
    batch = collate([shown], [0.0], policy.format.modes.position, router=router)
    with torch.no_grad():
        scores = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
    trainer = np.append(0.0, scores.logprobs[0].numpy())
    routes = policy.routes(shown.ids, shown.roles)
    assert routes is not None
    table = Table("position", "token", "role", "runs through", "log p, sampler", "log p, trainer")
    for at, (token, role, route) in enumerate(zip(shown.ids, shown.roles, routes, strict=True)):
        drawn = bool(shown.sampled[at])
        table.add_row(
            str(at),
            policy.tokenizer.decode([int(token)]),
            Role(int(role)).name,
            "–" if route == NONE else router.adapters[route],
            f"{shown.logprobs[at]:.4f}" if drawn else "",
            f"{trainer[at]:.4f}" if drawn else "",
        )
    Console(width=110).print(table)
    gap = float(np.abs(trainer - shown.logprobs)[shown.sampled].max())
    print(json.dumps({"tokens": len(shown.ids), "sampled": int(shown.sampled.sum()), "max_abs_dlogp": gap}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
