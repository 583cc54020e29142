"""What the run of a recipe takes of a machine: memory, whether that fits, and seconds by what they go into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unbraid.cost.architectures import shape_of
from unbraid.cost.launch import Launch, between_ranks
from unbraid.cost.machines import Machine
from unbraid.cost.work import StepTokens, Work, learning_work, sampling_work
from unbraid.policy.memory import ModelShape
from unbraid.preflight import budget_of, largest_batch
from unbraid.prepare import longest_context
from unbraid.recipe import Recipe
from unbraid.vllm.budget import Budget, DeviceMemory, host_memory

FILL = 0.5
"""Choice: prompts, responses and contexts are so much of their limits on average."""
OBSERVED = 0.25
"""Choice: share of an episode's context that tools wrote."""
HAND_OVER = 3.0
"""Seconds a step: new weights to the servers, and the probe. Choice: docs/vllm.md measured 1.7 s for the probe."""
HOST_RATE = 16e9
"""Bytes a second between host and GPU, when servers wake up. Choice: half of PCIe 4.0 x16."""


ONE = Launch()


@dataclass(frozen=True)
class Assumed:
    """What a recipe does not say. prompt, response: tokens on average, of a task's prompt and of all that one episode
    draws; None goes by `fill`. tasks: of one validation, where the recipe sets no limit.
    """

    fill: float = FILL
    prompt: int | None = None
    response: int | None = None
    tasks: int = 400


@dataclass(frozen=True)
class Cost:
    """memory: of every device, with what does not fit; of several ranks that of the first. step, run: seconds by what
    for. tokens: of one step."""

    memory: Budget
    step: dict[str, float]
    run: dict[str, float]
    tokens: StepTokens
    shape: ModelShape
    machine: Machine
    launch: Launch = ONE

    @property
    def fits(self) -> bool:
        return not self.memory.problems

    @property
    def step_seconds(self) -> float:
        return sum(self.step.values())

    @property
    def run_seconds(self) -> float:
        return sum(self.run.values())


def estimate(recipe: Recipe, machine: Machine, assumed: Assumed | None = None, launch: Launch = ONE) -> Cost:
    """The cost of a recipe on so many of a machine's devices as it names, or on one for each rank.

    Raises:
        ModelError: the model's shape is not known here, or the adapter does not fit.
        RecipeError: the recipe cannot be run on such ranks.
    """
    launch.check(recipe)
    assumed = assumed or Assumed()
    shape = shape_of(recipe.model, recipe.learn.fast)
    tokens = step_tokens(recipe, assumed)
    memory = paper_budget(launch.share(recipe), shape, machine, launch)
    step = step_seconds(recipe, shape, tokens, machine, launch)
    run = run_seconds(recipe, shape, tokens, machine, step, assumed, launch)
    return Cost(memory, step, run, tokens, shape, machine, launch)


def step_tokens(recipe: Recipe, assumed: Assumed) -> StepTokens:
    """Tokens of one step: averages, and the longest that one episode draws."""
    rollout, acts = recipe.rollout, recipe.environment
    turns = acts.turns if acts else 1
    context = acts.tokens if acts else recipe.data.max_prompt_tokens + rollout.max_new_tokens
    longest = min(turns * rollout.max_new_tokens, context)
    if acts:
        filled = assumed.fill * context
        drawn = assumed.response or min(assumed.fill * longest, filled / 2)
        observed = min(OBSERVED * filled, max(0.0, context - drawn))
        prompt = assumed.prompt or min(recipe.data.max_prompt_tokens, max(filled - drawn - observed, 1.0))
    else:
        observed = 0.0
        drawn = assumed.response or assumed.fill * longest
        prompt = assumed.prompt or assumed.fill * recipe.data.max_prompt_tokens
    average = max(1.0, assumed.fill * turns)
    return StepTokens(rollout.prompts, rollout.samples, prompt, drawn, observed, max(longest, drawn), average)


def paper_devices(recipe: Recipe, machine: Machine) -> list[DeviceMemory]:
    """As many GPUs of the machine's kind as the recipe names; nothing but this host's memory for a CPU."""
    if not machine.is_gpu:
        return [host_memory()]
    named = [part for entry in recipe.sampler.devices for part in entry.split(",") if part.strip().isdigit()]
    own = recipe.model.device.partition(":")[2]
    last = max([int(part) for part in [*named, own] if part], default=0)
    return [DeviceMemory(f"cuda:{number}", machine.memory, machine.memory) for number in range(last + 1)]


def paper_budget(recipe: Recipe, shape: ModelShape, machine: Machine, launch: Launch = ONE) -> Budget:
    """Who takes what of which device; of the host nothing is known where the machine is another one."""
    batch = largest_batch(recipe, recipe.data.max_prompt_tokens)
    number = recipe.model.device.partition(":")[2] or "0"
    place = f"cuda:{number}" if machine.is_gpu else "cpu"
    devices = paper_devices(recipe, machine)
    return budget_of(recipe, shape, batch, place, longest_context(recipe), devices, shards=launch.shards)


def step_seconds(
    recipe: Recipe, shape: ModelShape, tokens: StepTokens, machine: Machine, launch: Launch = ONE
) -> dict[str, float]:
    """One step of RL, by stage. Servers draw for all ranks; what each does by itself is its part."""
    passes, own = machine.passes, launch.own(tokens)
    served = recipe.sampler.engine == "vllm"
    # A server holds what the recipe says, a policy that draws for itself what its passes are computed in.
    draws = (shape, tokens) if served else (launch.computed(shape), own)
    found = drawing_seconds(recipe, *draws, machine)
    rows, kl = recipe.learn.micro_batch, recipe.learn.needs_reference
    learned = learning_work(launch.computed(shape), own, rows, kl)
    learned["optimiser"] = learning_work(shape, own, rows, kl)["optimiser"]  # of weights as they are held
    learned["forward and backward"] = learned["forward and backward"].times(recipe.learn.epochs)
    learned["optimiser"] = learned["optimiser"].times(recipe.learn.epochs * recipe.learn.minibatches)
    if launch.sharded:
        learned["optimiser"] = learned["optimiser"].times(1 / launch.ranks)
    found |= {stage: passes.seconds(work) for stage, work in learned.items()}
    if launch.ranks > 1:
        found["between ranks"] = between_ranks(launch, recipe, shape, own, machine)
    if served:
        moved = shape.weights / HOST_RATE if recipe.sampler.sleep and machine.is_gpu else 0.0
        whole = 0.0 if shape.ranks else shape.trained / HOST_RATE
        found["hand-over to servers"] = HAND_OVER + 2 * moved + whole
    return found


def drawing_seconds(recipe: Recipe, shape: ModelShape, tokens: StepTokens, machine: Machine) -> dict[str, float]:
    """Reading prompts and drawing, shared out over the servers that are started (or named)."""
    sampler = recipe.sampler
    served = sampler.engine == "vllm"
    servers = len(sampler.urls or sampler.devices) if served else 1
    own = replace(tokens, prompts=max(1, math.ceil(tokens.prompts / servers)))
    rows = min(own.episodes, max(1, recipe.rollout.max_batch // servers))
    if served and machine.is_gpu:
        rows = min(rows, max(1, int(_room(recipe, shape, machine) // (sequence_bytes(shape) * own.context))))
    drawn = own.episodes * own.drawn
    # Servers take the next response when one ends; the local sampler waits for the last of a batch.
    steps = drawn / rows if served else math.ceil(own.episodes / rows) * own.longest
    work = sampling_work(shape, own, max(steps, own.longest))
    return {
        "reading prompts": machine.passes.seconds(work["prompts"]),
        "drawing": machine.drawing.seconds(work["drawing"]),
    }


def sequence_bytes(shape: ModelShape) -> int:
    """Keys and values of one token."""
    return 2 * shape.layers * shape.key * shape.itemsize


def _room(recipe: Recipe, shape: ModelShape, machine: Machine) -> float:
    """Bytes that one server has for keys and values."""
    parts = max(1, len([part for part in recipe.sampler.devices[0].split(",") if part.strip()]))
    return max(1.0, recipe.sampler.memory * machine.memory * parts - shape.weights)


def run_seconds(
    recipe: Recipe,
    shape: ModelShape,
    tokens: StepTokens,
    machine: Machine,
    step: dict[str, float],
    assumed: Assumed,
    launch: Launch = ONE,
) -> dict[str, float]:
    """The whole run: warm-up, steps, validations, the final evaluation."""
    computed = launch.computed(shape)
    config, steps = recipe.evaluate, recipe.learn.steps
    found = {}
    if recipe.warmup:
        examples = StepTokens(recipe.warmup.batch_examples, 1, tokens.prompt, tokens.drawn / tokens.turns)
        work = sum(learning_work(computed, launch.own(examples), 16).values(), Work())
        found["warm-up"] = recipe.warmup.steps * machine.passes.seconds(work)
    found["steps"] = steps * sum(step.values())
    count = config.limit or assumed.tasks

    def evaluation(draws: Sequence[float]) -> float:
        samples = sum(config.samples if temperature else 1 for temperature in draws) * len(config.modes)
        asked = replace(tokens, prompts=count, samples=samples)
        served = recipe.sampler.engine == "vllm"
        drawing = drawing_seconds(recipe, *((shape, asked) if served else (computed, launch.own(asked))), machine)
        return sum(drawing.values())

    if config.every:
        found["validations"] = math.ceil(steps / config.every) * evaluation([0.0])
    return found | {"final evaluation": evaluation(config.temperatures)}
