"""Routed LoRA for whoever calls a model without routes, as TRL's trainers and `generate` do.

Every call finds its routes in its own ids. What the model wrote is what stands between the template's turn markers (the
`turns` of a router, as for servers): after what the template opens an assistant's turn with, up to what ends it. So no
prompt length has to be told, a mode that the template forces counts as written, results of tools do not, and training,
generation and stock vLLM see the same routes. docs/trl.md says what that cannot do.

In generation only the newest token is in a call. `generate` prepares each of its inputs from all ids so far: they are
looked at there, and the automaton takes one step a token.
"""

from contextlib import ExitStack
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModelForCausalLM
from torch import Tensor

from unbraid.chat.format import ChatFormat
from unbraid.errors import ModelError
from unbraid.policy.policy import AdapterConfig, add_adapter
from unbraid.policy.routed_lora import checkpoint_contexts
from unbraid.policy.routing import RoutingConfig
from unbraid.policy.saving import router_of
from unbraid.tokens import Router, Turns


def route_model(model: Any, format: ChatFormat, adapter: AdapterConfig | None = None) -> "RoutedModel":
    """Wrap a causal language model in routed adapters, for `model=` of TRL's trainers.

    Args:
        format: of the model's tokenizer: it knows delimiters and turn markers.
        adapter: None takes a `reasoning` and an `action` adapter of rank 8.

    Raises:
        ModelError: the template has no turn markers, the routing is a control or strict, or the adapter does not fit.
    """
    adapter = adapter or AdapterConfig()
    routing = adapter.routing or RoutingConfig()
    if format.turns is None:
        raise ModelError(
            "the chat template shows by no special token where the model's turns are, or results stand within them: "
            "roles cannot be found from ids alone; train with unbraid, whose trajectories know who wrote a token"
        )
    if routing.isolation == "strict" or routing.assign != "role":
        raise ModelError(
            f"routing with isolation {routing.isolation} and assign {routing.assign} needs unbraid's own trainer: "
            "here it is positional, by role"
        )
    routed = add_adapter(model, adapter.model_copy(update={"routing": routing}), format.automaton, format.turns)
    routed.__class__ = RoutedModel  # PEFT takes no class of ours to make one of
    routed.follow_calls()
    return routed


class RoutedModel(PeftModelForCausalLM):
    """A PEFT model whose tokens run through the adapter of whoever writes the next one. Make one with `route_model`."""

    def follow_calls(self) -> None:
        """Have every forward pass of the model beneath, and every step of its `generate`, looked at."""
        router = router_of(self)
        assert router and router.turns
        self._context: Tensor | None = None
        self._steps = _Steps(router, router.turns)
        self._within = ExitStack()
        inner: Any = self.get_base_model()
        prepare = inner.prepare_inputs_for_generation

        @wraps(prepare)
        def prepared(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._context = input_ids
            return prepare(input_ids, *args, **kwargs)

        inner.prepare_inputs_for_generation = prepared
        inner.register_forward_pre_hook(self._bind, with_kwargs=True)
        inner.register_forward_hook(self._unbind, always_call=True)

    def set_adapter(self, adapter_name: Any, inference_mode: bool = False) -> None:
        """All adapters stay active and trained, whichever is asked for: TRL's resuming names the first alone."""
        tuner: Any = self.base_model
        tuner.set_adapter(list(self.routing.router.adapters), inference_mode=inference_mode)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As transformers', with layers recomputed in the routes that they were computed in.

        Raises:
            ModelError: `use_reentrant` is asked for, which keeps no contexts.
        """
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ModelError("use_reentrant: routed adapters take gradient checkpointing without it: set it False")
        options["context_fn"] = partial(checkpoint_contexts, self)
        inner: Any = self.get_base_model()
        inner.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """A folder of PEFT's for each adapter, and the routing: what unbraid, and vLLM with its plugin, serve."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.routing.router.save(Path(save_directory))

    def _bind(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.routing.routes is not None:  # whoever calls knows better
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ModelError("a routed model finds roles in ids: give input_ids, not inputs_embeds")
        past = kwargs.get("past_key_values")
        seen = int(past.get_seq_length()) if past is not None else 0
        if seen:
            routes = self._steps.on(self._all_ids(ids, seen))[:, seen:]
        else:
            _refuse_packed(kwargs.get("position_ids"), kwargs.get("attention_mask"))
            routes = self._steps.whole(ids.cpu().numpy(), kwargs.get("labels"))
        self._within.enter_context(self.routing.bind(routes))

    def _unbind(self, *_: Any) -> None:
        self._within.close()

    def _all_ids(self, ids: Tensor, seen: int) -> NDArray[np.int64]:
        """Everything up to the end of a call that continues what was seen, (B, T)."""
        if self._context is None or self._context.shape != (len(ids), seen + ids.shape[1]):
            raise ModelError(
                f"a call continues {seen} tokens that `generate` did not prepare: a routed model decodes in `generate` "
                "only, and without prefill_chunk_size"
            )
        return self._context.cpu().numpy()


class _Steps:
    """Routes of the rows of a batch, (B, T), which may grow by a token at a time."""

    def __init__(self, router: Router, turns: Turns):
        self.router, self.turns = router, turns
        self._ids = np.zeros((0, 0), dtype=np.int64)
        self._states = np.zeros(0, dtype=np.uint8)
        self._routes = np.zeros((0, 0), dtype=np.int8)

    def whole(self, ids: NDArray[np.int64], labels: Tensor | None = None) -> NDArray[np.int8]:
        """The routes of whole rows. labels: what is learned from, −100 elsewhere.

        Raises:
            ModelError: a row is learned from and holds no turn of the model's.
        """
        written = np.stack([self.turns.written(row) for row in ids])
        if labels is not None:
            _refuse_unwritten(written, labels)
        self._ids, self._states = ids, self.router.state(ids, written)
        self._routes = self.router.route(ids, written)
        return self._routes

    def on(self, ids: NDArray[np.int64]) -> NDArray[np.int8]:
        """The routes of rows that `generate` draws: those known so far go on by a step, others are read whole."""
        if not np.array_equal(self._ids, ids[:, :-1]):
            return self.whole(ids)
        self._states, last = self.router.step(self._states, ids[:, -1])
        self._ids, self._routes = ids, np.concatenate([self._routes, last[:, None]], axis=1)
        return self._routes


def _refuse_unwritten(written: NDArray[np.bool_], labels: Tensor) -> None:
    learned = (labels != -100).any(1).cpu().numpy()
    if (bare := np.flatnonzero(learned & ~written.any(1))).size:
        raise ModelError(
            f"row {bare[0]} of a batch is learned from and holds no turn of the model's: its text was not made by this "
            "tokenizer's chat template (or was cut off); give TRL conversations, not text"
        )


def _refuse_packed(positions: Tensor | None, attention: Tensor | None) -> None:
    if attention is None and positions is not None and bool((torch.as_tensor(positions)[..., 1:] == 0).any()):
        raise ModelError("several conversations are packed into a row: set packing=False and padding_free=False")
