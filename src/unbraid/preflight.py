"""Before the first step: what trainer and vLLM servers take of this machine's memory, and whether that fits."""

import os
from collections.abc import Sequence

import torch
from rich.console import Console

from unbraid import ranks
from unbraid.policy import Policy, sharding
from unbraid.policy.batch_shape import BatchShape, batch_shape, episode_shape
from unbraid.policy.memory import (
    ModelShape,
    TrainingMemory,
    model_shape,
    smaller,
    training_memory,
)
from unbraid.policy.sharded_memory import Shards, all_weights, computed_shape, sharded_memory
from unbraid.policy.sharding import computed_in
from unbraid.prepare import longest_context
from unbraid.recipe import Recipe
from unbraid.rollout.start_fleet import longest_context_of, needs_plugin, refuse, refuse_policy
from unbraid.tasks.task import Task
from unbraid.vllm.budget import Budget, DeviceMemory, Servers, Trainer, budget, devices_here
from unbraid.vllm.budget import refuse as refuse_budget
from unbraid.vllm.flags import cpu_gib
from unbraid.vllm.installation import Installation, find_vllm


def preflight(recipe: Recipe, policy: Policy, tasks: Sequence[Task], console: Console) -> None:
    """Refuse a run that cannot sample from its servers, before anything is spent on it; nothing without servers.

    Args:
        console: gets the table of memory.

    Raises:
        ServerError: vLLM is not there, cannot serve the model, or there is too little memory.
    """
    if recipe.sampler.engine == "local":
        return
    find_servers(recipe, policy)
    planned = memory_budget(recipe, policy, tasks, longest_context(recipe))
    console.print(planned.table())
    refuse_budget(planned)


def find_servers(recipe: Recipe, policy: Policy) -> Installation | None:
    """The vLLM that the recipe's servers are started with; None if they run already.

    Raises:
        ServerError: it is not there, or cannot serve the model; servers that should run already do not answer.
    """
    if recipe.sampler.urls:
        refuse_policy(policy)
        longest_context_of(recipe.sampler)
        return None
    installation = find_vllm(recipe.sampler.python, need_plugin=needs_plugin(policy))
    refuse(policy, recipe.model, installation)
    return installation


def memory_budget(recipe: Recipe, policy: Policy, tasks: Sequence[Task], max_tokens: int) -> Budget:
    """Who takes what of every device in every phase; the servers' part is empty where they run elsewhere.

    Args:
        tasks: their prompts decide how large a micro-batch of single responses can get.
        max_tokens: longest context of a server.
    """
    shape = model_shape(policy.model, recipe.model, recipe.learn.fast)
    lengths = [len(policy.format.prompt_ids(task.messages, task.tools)) for task in tasks]
    batch = largest_batch(recipe, max(lengths, default=1), min(lengths, default=1))
    hidden = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    shards = Shards(ranks.world(), computed_in(policy.model.dtype).itemsize) if sharding.asked_for() else None
    return budget_of(recipe, shape, batch, str(policy.device), max_tokens, devices_here(torch), hidden, shards)


def largest_batch(recipe: Recipe, longest_prompt: int, shortest_prompt: int = 1) -> BatchShape:
    """The largest micro-batch that the recipe can ask for; prompts in tokens."""
    if recipe.environment:
        return episode_shape(recipe.learn.micro_batch, recipe.environment.tokens)
    rollout = recipe.rollout
    return batch_shape(
        recipe.learn.micro_batch, rollout.max_new_tokens, longest_prompt, shortest_prompt, rollout.samples
    )


def budget_of(
    recipe: Recipe,
    shape: ModelShape,
    batch: BatchShape,
    place: str,
    max_tokens: int,
    devices: Sequence[DeviceMemory],
    hidden: bool = False,
    shards: Shards | None = None,
) -> Budget:
    """`memory_budget` of shapes, on any devices.

    Args:
        place: where the trainer is (`cpu`, `cuda:0`). hidden: there may be GPUs beside `devices`. shards: weights are
            spread over ranks, of which this is one.
    """
    sampler, kl = recipe.sampler, recipe.learn.needs_reference
    device = "cuda" if place.startswith("cuda") else "cpu"
    rows = min(recipe.rollout.max_batch, recipe.rollout.prompts * recipe.rollout.samples)
    drawing = drawing_bytes(shape, rows, max_tokens) if sampler.engine == "local" else {}
    if shards and drawing:
        drawing = drawing_bytes(computed_shape(shape, shards), rows, max_tokens)
        drawing["weights, whole"] = all_weights(shape) * shards.itemsize

    def trainer(memory: TrainingMemory) -> Trainer:
        return Trainer(place, memory.always(), memory.learning(), sampling=drawing)

    servers = Servers(
        devices=() if sampler.urls or sampler.engine == "local" else sampler.devices,
        memory=sampler.memory if device == "cuda" else cpu_gib(sampler.memory),
        sleep=sampler.sleep,
        weights=shape.weights,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        itemsize=shape.itemsize,
        tokens=max_tokens,
    )
    if shards:
        whole, tried = sharded_memory(shape, batch, shards, kl=kl, device=device), iter(())
    else:
        whole = training_memory(shape, batch, kl=kl, device=device)
        tried = smaller(shape, batch, kl=kl, device=device)
    return budget(devices, trainer(whole), servers, [(said, trainer(memory)) for said, memory in tried], hidden)


def drawing_bytes(shape: ModelShape, rows: int, tokens: int) -> dict[str, int]:
    """What the local sampler takes while it draws `rows` of `tokens` each: keys and values, and one step's logits.

    The cache grows by quarters. Logits are there as they are, as log-probs, probabilities and their product, and twice
    in float64 (`rollout.drawing`).
    """
    keys = 2 * shape.layers * shape.key * shape.itemsize * tokens * rows
    return {"keys and values": keys * 5 // 4, "logits": rows * shape.vocabulary * (shape.itemsize + 3 * 4 + 2 * 8)}
