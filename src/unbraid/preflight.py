"""Before the first step: what trainer and vLLM servers take of this machine's memory, and whether that fits."""

import os
from collections.abc import Sequence

import torch
from rich.console import Console

from unbraid.policy import Policy
from unbraid.policy.memory import (
    TrainingMemory,
    batch_shape,
    episode_shape,
    model_shape,
    smaller,
    training_memory,
)
from unbraid.prepare import longest_context
from unbraid.recipe import Recipe
from unbraid.rollout.start_fleet import longest_context_of, needs_plugin, refuse, refuse_policy
from unbraid.tasks.task import Task
from unbraid.vllm.budget import Budget, Servers, Trainer, budget, devices_here
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
    sampler, kl = recipe.sampler, recipe.learn.needs_reference
    shape = model_shape(policy.model, recipe.model, recipe.learn.fast)
    device = "cuda" if policy.device.type == "cuda" else "cpu"
    if recipe.environment:
        batch = episode_shape(recipe.learn.micro_batch, recipe.environment.tokens)
    else:
        lengths = [len(policy.format.prompt_ids(task.messages, task.tools)) for task in tasks]
        batch = batch_shape(recipe.learn.micro_batch, recipe.rollout.max_new_tokens, max(lengths), min(lengths))

    def trainer(memory: TrainingMemory) -> Trainer:
        return Trainer(str(policy.device), memory.always(), memory.learning())

    servers = Servers(
        devices=() if sampler.urls else sampler.devices,
        memory=sampler.memory if device == "cuda" else cpu_gib(sampler.memory),
        sleep=sampler.sleep,
        weights=shape.weights,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        itemsize=shape.itemsize,
        tokens=max_tokens,
    )
    less = [(said, trainer(memory)) for said, memory in smaller(shape, batch, kl=kl, device=device)]
    hidden = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return budget(
        devices_here(torch), trainer(training_memory(shape, batch, kl=kl, device=device)), servers, less, hidden
    )
