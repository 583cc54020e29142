"""Loading a policy, going back to where it started for the reference, and saving it in stock formats."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.errors import ModelError
from unbraid.plugins import call, names_code
from unbraid.policy.routed_lora import Binding, Routes, checkpoint_contexts, route_adapters
from unbraid.policy.routing import RoutingConfig, make_router
from unbraid.policy.saving import load_model, save_model
from unbraid.policy.sharding import is_sharded, overwrite, shard, unsharded, whole_weights
from unbraid.policy.two_agents import TwoAgents
from unbraid.tokens import Role, RoleAutomaton, Turns


class AdapterConfig(BaseModel):
    """LoRA over a frozen base: one adapter, or several with `routing`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=8, ge=1)
    """Rank r of the adapter."""
    alpha: int = Field(default=16, gt=0)
    """Scale: the update is alpha / rank · B·A."""
    targets: str | list[str] = "all-linear"
    """Modules to adapt, as PEFT takes them."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Must stay 0 for RL: with dropout the trainer's log-probs would differ from the sampler's."""
    routing: RoutingConfig | None = None
    """Adapters by role, each of this rank, and every token runs through its own; null is one adapter for all."""


class ModelConfig(BaseModel):
    """Which model to train, and how it is held."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    path: str
    """A Hugging Face folder, a hub name, or `module:function?key=value`: a function that returns a folder."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of the weights. Full fine-tuning below float32 loses small updates; an adapter stays float32."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, …; `auto` takes the first GPU if there is one."""
    adapter: AdapterConfig | None = None
    """None trains every weight."""
    two_agents: bool = False
    """Two such models instead of one, for reasoning and for actions: a baseline, at twice the cost."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    attention: str = "sdpa"
    """Attention implementation of transformers: sdpa, eager, flash_attention_2, …"""


@dataclass
class Policy:
    """A model with everything that belongs to it. `model` is a PEFT model if there are adapters."""

    model: Any
    tokenizer: Any
    format: ChatFormat
    device: torch.device
    has_adapter: bool = False
    added_rows: int = 0
    """Rows that the embedding got for tokens that the model on disk does not know."""
    _start: list[torch.Tensor] = field(default_factory=list, repr=False)
    _starts_bare: bool = field(default=False, repr=False)
    _stamp: tuple[int, ...] = field(default=(), repr=False)
    _whole: dict[str, torch.Tensor] | None = field(default=None, repr=False)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of everything that is trained, in a fixed order."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    @property
    def router(self) -> Routes | None:
        """What decides which adapter a token runs through; None where all tokens run through the same weights."""
        binding: Binding | None = getattr(self.model, "routing", None)
        return binding.router if binding else None

    def routes(self, ids: ArrayLike, roles: ArrayLike) -> NDArray[np.int8] | None:
        """The route of every input position, for `routed`; None if the model does not route.

        Args:
            ids: (T,) or (B, T). roles: `Role` of each token, the same shape.
        """
        return self.router.route(ids, written_by_model(roles)) if self.router else None

    def parameter_count(self) -> int:
        """All parameters, tied ones once; what ACU divides by."""
        return sum(p.numel() for p in self.model.parameters())

    def stamp(self) -> tuple[int, ...]:
        """Another one after every write to a trained weight: whoever holds a copy of the policy compares stamps.

        Writes that torch does not count are missed: those of `fused=True` optimisers, and through `.data`.
        """
        return self._stamp or tuple(p._version for _, p in self.trainable())

    def shard(self, device: str) -> None:
        """Spread all weights over the ranks (`sharding`). Every rank calls this, and `whole`, at once.

        Args:
            device: as `ModelConfig.device`; the model may be on the CPU until now.
        """
        self.device = _device(device)
        shard(self.model, self.device)

    @contextmanager
    def whole(self, saved: bool = True) -> Iterator[None]:
        """Within, sharded weights are whole: every rank may sample, and with `saved` rank 0 may save them.

        A policy that is not sharded is so anyway.
        """
        if not is_sharded(self.model):
            yield
            return
        if saved:
            self._stamp, self._whole = self.stamp(), whole_weights(self.model)
        try:
            with unsharded(self.model):
                yield
        finally:
            self._stamp, self._whole = (), None

    def digest(self) -> tuple[float, ...]:
        """A few numbers of the trained weights: processes that train together compare them. None of sharded ones."""
        if is_sharded(self.model):
            return ()
        wide, trained = torch.float64, [p.detach() for _, p in self.trainable()]
        sums = sum(float(p.sum(dtype=wide)) for p in trained)
        return sums, sum(float(torch.linalg.vector_norm(p, dtype=wide)) for p in trained)

    def freeze_reference(self) -> None:
        """Remember the trained weights of now: they are the reference of the KL term."""
        trained = self.trainable()
        self._start = [p.detach().clone() for _, p in trained]
        # Adapters that nothing was learned into yet add exactly 0.
        fresh = [not p.any() for name, p in trained if ".lora_B." in name]
        self._starts_bare = bool(fresh) and all(fresh) and all(".lora_" in name for name, _ in trained)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The model with the weights that `freeze_reference` remembered; the present ones are back afterwards.

        Where these were adapters that add nothing yet, they are switched off, which gives the same bits and takes less.

        Raises:
            ModelError: nothing was remembered.
        """
        if not self._start:
            raise ModelError("the policy has no reference: call freeze_reference() before the first update")
        if self._starts_bare and hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield self.model
            return
        parameters = [p for _, p in self.trainable()]
        if is_sharded(self.model):
            present = overwrite(parameters, self._start)
            try:
                yield self.model
            finally:
                overwrite(parameters, present)
            return
        present = [p.data for p in parameters]
        try:
            for parameter, start in zip(parameters, self._start, strict=True):
                parameter.data = start
            yield self.model
        finally:
            for parameter, value in zip(parameters, present, strict=True):
                parameter.data = value

    def save(self, path: str | Path) -> None:
        """Write a folder that stock transformers (or PEFT, for an adapter) loads, tokenizer and template included.

        Of routed adapters each has a folder of its own in it, which stock PEFT loads, beside `tokens.ROUTING_FILE`; of
        two agents each has a folder of its own.
        """
        self.save_weights(path)
        self.format.save(path)

    def save_weights(self, path: str | Path) -> None:
        """`save` without tokenizer and template."""
        save_model(self.model, path, self._whole)

    def load_weights(self, path: str | Path) -> None:
        """Take over the weights that `save` wrote, exactly: the adapters', or all of them.

        Raises:
            ModelError: the folder's adapters are routed otherwise than these.
        """
        load_model(self.model, path)


def load_policy(config: ModelConfig, chat: ChatConfig) -> Policy:
    """Load model, tokenizer and chat format; wrap the model in an adapter if the recipe asks for one.

    Raises:
        ModelError: the folder or hub name cannot be loaded, the device is not there, or the adapter does not fit.
    """
    device, path = _device(config.device), resolve_path(config)
    tokenizer, model = load_pair(path, dtype=getattr(torch, config.dtype), attn_implementation=config.attention)
    format = ChatFormat.build(tokenizer, chat)
    # Never fewer rows: a vocabulary padded for speed stays padded.
    added_rows = max(0, len(tokenizer) - model.get_input_embeddings().weight.shape[0])
    if added_rows:
        model.resize_token_embeddings(len(tokenizer))
    if config.adapter:
        turns = format.turns if config.adapter.routing else None
        model = add_adapter(model, config.adapter, format.automaton, turns)
    if config.two_agents:
        model = TwoAgents.of(model, _agents_router(config, format))
    if config.gradient_checkpointing:
        options: dict[str, Any] = {"use_reentrant": False}
        if config.adapter and config.adapter.routing:
            options["context_fn"] = partial(checkpoint_contexts, model)
        with _renamed():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model.enable_input_require_grads()
    return Policy(model.to(device), tokenizer, format, device, config.adapter is not None, added_rows)


def load_pair(path: str, **options: Any) -> tuple[Any, Any]:
    """Tokenizer and causal language model of a folder or hub name; `options` are `from_pretrained`'s, for the model.

    Raises:
        ModelError: it cannot be loaded.
    """
    import transformers

    with _loading(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(path, **options)


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of a model, without its weights.

    Raises:
        ModelError: as `load_policy`.
    """
    import transformers

    path = resolve_path(config)
    with _loading(path):
        return transformers.AutoTokenizer.from_pretrained(path)


def resolve_path(config: ModelConfig) -> str:
    """The folder or hub name that `model.path` stands for.

    Raises:
        ModelError: it names a function that fails.
    """
    return str(call(config.path, ModelError, "model.path") if names_code(config.path) else config.path)


@contextmanager
def _loading(path: str) -> Iterator[None]:
    """Whatever transformers raises while it loads becomes one line."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.path '{path}' cannot be loaded: {reason} | give a folder with config.json, weights and "
            "tokenizer, or a hub name that this machine can reach"
        ) from error


def add_adapter(
    model: Any, config: AdapterConfig, automaton: RoleAutomaton | None = None, turns: Turns | None = None
) -> Any:
    """Wrap `model` in trainable LoRA adapters held in float32 over the frozen base: one, or one per role.

    Args:
        automaton: decides the roles; needed with `config.routing`. turns: as the router has them.

    Raises:
        ModelError: dropout, targets that the model does not have, or a routing that names no role.
    """
    import peft

    if config.dropout:
        raise ModelError(f"model.adapter.dropout is {config.dropout}: set 0, or sampler and trainer disagree")
    router = make_router(config.routing, automaton, turns) if config.routing and automaton else None
    first, *others = router.adapters if router else ("default",)
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=config.targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    try:
        with _renamed():
            model = peft.get_peft_model(model, lora, adapter_name=first, autocast_adapter_dtype=True)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"model.adapter.targets {config.targets!r} does not fit the model ({str(error).splitlines()[0]}): use "
            f"all-linear, or some of {', '.join(names)}"
        ) from error
    for name in others:
        # PEFT writes the targets that it found into a configuration, so each adapter gets its own.
        with _renamed():
            model.add_adapter(name, replace(lora, target_modules=config.targets))
    if router and config.routing:
        route_adapters(model, router, strict=config.routing.isolation == "strict")
    return model


@contextmanager
def _renamed() -> Iterator[None]:
    """Without warnings of names that transformers is giving up: PEFT and we use them as long as they are there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing")
        yield


def _agents_router(config: ModelConfig, format: ChatFormat) -> Routes:
    if config.adapter and config.adapter.routing:
        raise ModelError("model.two_agents and model.adapter.routing are two ways to one end: set one of them")
    return make_router(RoutingConfig(), format.automaton)


def written_by_model(roles: ArrayLike) -> NDArray[np.bool_]:
    """Which tokens the model wrote, a forced prefix included, from their roles."""
    roles = np.asarray(roles)
    return (roles == Role.REASONING) | (roles == Role.ACTION)


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
            reason = str(error).splitlines()[0]
            raise ModelError(f"model.device '{name}' cannot be used: {reason} | set auto, or cpu") from error
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
