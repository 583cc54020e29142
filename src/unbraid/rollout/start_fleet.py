"""Starting the servers of a run, or taking those that run already; checks of what vLLM could not do come first."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unbraid.errors import ServerError
from unbraid.policy import ModelConfig, Policy
from unbraid.policy.policy import resolve_path
from unbraid.policy.two_agents import TwoAgents
from unbraid.rollout.config import SamplerConfig
from unbraid.rollout.fleet import Fleet, Member, at_once
from unbraid.rollout.loop import together
from unbraid.tokens import Router
from unbraid.vllm.client import Client
from unbraid.vllm.flags import LORA_RANKS, Sampled, refused_on_cpu, sampling_flags
from unbraid.vllm.installation import SUPPORTED, Installation, find_vllm, is_supported
from unbraid.vllm.server import Server, ServerSpec, start_server, start_servers, stop_servers


def tell(line: str) -> None:
    """Where the start of servers reports, if nobody says otherwise."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def run_fleet(
    policy: Policy,
    model: ModelConfig,
    config: SamplerConfig,
    folder: Path,
    *,
    max_tokens: int,
    prompts: Sequence[Sequence[int]] = (),
    temperature: float = 1.0,
    announce: Callable[[str], None] = tell,
) -> Iterator[Fleet]:
    """The servers of a run for as long as it takes; those that were started for it end with it.

    Args:
        folder: of the run's logs and of the weights on their way: `server-0.log`, …, `weights/`.
        max_tokens: longest context that the run needs; the model's positions limit it further.
        prompts: the probe chooses among these. temperature: of the probe.

    Raises:
        ServerError: no vLLM that fits is found, it cannot serve the model, or it does not start.
    """
    max_tokens = min(max_tokens, _positions(policy) or max_tokens)
    weights = folder / "weights"
    shutil.rmtree(weights, ignore_errors=True)
    weights.mkdir(parents=True)
    fleet = Fleet([], config, weights, model.dtype, max_tokens, prompts, temperature)
    try:
        if config.urls:
            refuse_policy(policy)
            fleet.members = [Member(url.rstrip("/")) for url in config.urls]
            fleet.shorten(longest_context_of(config))
        else:
            _start(fleet, policy, model, folder, announce)
        yield fleet
    finally:
        fleet.start = None  # whoever still draws from servers that end finds none started again
        if config.urls:
            at_once(fleet.leave)
        stop_servers(member.server for member in fleet.members if member.server)
        shutil.rmtree(weights, ignore_errors=True)


def _start(fleet: Fleet, policy: Policy, model: ModelConfig, folder: Path, announce: Callable[[str], None]) -> None:
    config = fleet.config
    installation = find_vllm(config.python, need_plugin=needs_plugin(policy))
    refuse(policy, model, installation)
    source = _source(policy, model, folder)
    specs: list[ServerSpec] = []
    for number, devices in enumerate(config.devices):
        what = Sampled(
            model=source,
            dtype=model.dtype,
            max_tokens=fleet.max_tokens,
            rank=model.adapter.rank if model.adapter else 0,
            memory=config.memory,
            sleep=config.sleep,
            devices=devices,
            cpu=installation.backend == "cpu",
            seeded=config.seeded,
            routed=len(policy.router.adapters) if policy.router else 0,
        )
        flags, environment = sampling_flags(what, config.flags)
        specs.append(ServerSpec(flags, folder / f"server-{number}.log", environment))
    announce(f"starting {len(specs)} x vLLM {installation.version} ({installation.backend}); logs in {folder}")
    fleet.members = [Member(one.url, one) for one in start_servers(installation, specs, announce=announce)]

    def start(number: int) -> Server:
        spec = specs[number]
        return start_server(installation, spec.arguments, log=spec.log, environment=spec.environment, announce=announce)

    fleet.start = start


def refuse(policy: Policy, model: ModelConfig, installation: Installation) -> None:
    """What vLLM could not do, or would do otherwise than the trainer.

    Raises:
        ServerError: the first such thing, and what to do about it.
    """
    if model.dtype == "float64":
        raise ServerError("vLLM has no float64: set model.dtype to float32 or bfloat16, or sampler to local")
    if model.adapter and model.adapter.rank > LORA_RANKS[-1]:
        raise ServerError(f"model.adapter.rank is {model.adapter.rank}: vLLM takes ranks up to {LORA_RANKS[-1]}")
    refuse_policy(policy)
    config: Any = policy.model.config
    if installation.backend == "cpu" and (problem := refused_on_cpu(config.to_dict())):
        raise ServerError(f"{problem}: set sampler to local")
    if model.adapter and policy.added_rows:
        raise ServerError(
            f"the tokenizer has {policy.added_rows} tokens more than the model has rows, and a server knows the base "
            "as it is on disk: make one that has them (unbraid add-delimiters), then train the adapter on that"
        )


def refuse_policy(policy: Policy) -> None:
    """What no server at all can be, whoever starts it. Raises as `refuse` does."""
    if isinstance(policy.model, TwoAgents):
        raise ServerError("model.two_agents: they are two models, and a server has one: set sampler to local")
    if policy.router and not isinstance(policy.router, Router):
        raise ServerError(
            "model.adapter.routing.assign is a control, which no server knows: set it to role, or sampler to local"
        )


def needs_plugin(policy: Policy) -> bool:
    """Whether vLLM must load unbraid's plugin: to take all weights, or to route."""
    return not policy.has_adapter or policy.router is not None


def _source(policy: Policy, model: ModelConfig, folder: Path) -> str:
    """What servers start from: the base that is on disk, or the policy as it is where all weights are trained."""
    if policy.has_adapter:
        return resolve_path(model)
    start = folder / "start"
    shutil.rmtree(start, ignore_errors=True)
    policy.save(start)
    return str(start.resolve())


def _positions(policy: Policy) -> int | None:
    return getattr(policy.model.config, "max_position_embeddings", None)


def longest_context_of(config: SamplerConfig) -> int:
    """Ask the servers that run already what they are, and for the longest context that all of them take.

    Raises:
        ServerError: one is not there, or of a version that is not supported.
    """

    try:
        facts = at_once(lambda session: together(Client(url, session).facts() for url in config.urls))
    except ServerError as problem:
        raise ServerError(f"sampler.urls: {problem}: give addresses where vLLM answers") from problem
    for url, (version, _) in zip(config.urls, facts, strict=True):
        if not is_supported(version):
            raise ServerError(
                f"sampler.urls: {url} is vLLM {version}: supported are {SUPPORTED[0]} up to, but not with, "
                f"{SUPPORTED[1]}: start one of those there"
            )
    return min(longest for _, longest in facts)
