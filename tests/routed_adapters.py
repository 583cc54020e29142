"""Routed adapters for tests, and a reference that shares no code with ours: loops for routes, hooks for adapters."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unbraid.tokens import Delimiter, Role, RoleAutomaton, Router

VOCABULARY = 96
CALL, END_CALL, SQL, END_SQL, TURN, END_TURN = 10, 11, 12, 13, 14, 15
DELIMITERS = (CALL, END_CALL, SQL, END_SQL)
SPANS = {CALL: END_CALL, SQL: END_SQL}


def make_router(**settings: Any) -> Router:
    """`reasoning` outside, `action` in calls, and in queries whatever `sql` names, `action` too if nothing."""
    sql = settings.pop("sql", "action")
    automaton = RoleAutomaton(
        [Delimiter("call", CALL, END_CALL, Role.ACTION), Delimiter("sql", SQL, END_SQL, Role.ACTION)]
    )
    adapters = tuple(dict.fromkeys(["reasoning", "action", sql]))
    return Router(automaton, adapters, "reasoning", ("action", sql), settings.pop("context", "reasoning"), **settings)


ROUTERS = {
    "paper": make_router(),
    "none": make_router(context=None, sql="query"),
    "shifted": make_router(boundary="shifted"),
}


def make_model(folder: Path, layers: int = 2, positions: int = 512) -> Path:
    """A random Llama with heads of 32, keys and values shared by two, and a tokenizer of words w0, w1, …"""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, initializer_range=0.12, max_position_embeddings=positions,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(str(folder))
    return folder


def make_adapters(model: Path, folder: Path, router: Router, rank: int = 8, size: float = 0.3, seed: int = 0) -> Path:
    """A routed adapter as a trainer saves it, all of its adapters random and large."""
    for number, name in enumerate(router.adapters):
        base: Any = AutoModelForCausalLM.from_pretrained(model)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        made = peft.get_peft_model(base, config)
        generator = torch.Generator().manual_seed(100 * seed + number)
        with torch.no_grad():
            for key, weight in made.named_parameters():
                if "lora_B" in key:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * size)
                elif "lora_A" in key:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)
        made.save_pretrained(str(folder / name))
    router.save(folder)
    return folder


def save_routed(folder: Path, router: Router) -> Path:
    """A routed adapter as a trainer saves it, but for the weights."""
    for name in router.adapters:
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text("{}")
    router.save(folder)
    return folder


def lora_of(folder: Path, number: int = 1) -> Any:
    """What is read of vLLM's `LoRARequest`."""
    return SimpleNamespace(lora_name=f"lora-{number}", lora_int_id=number, lora_path=str(folder))


def naive_routes(
    ids: Sequence[int], written: Sequence[bool], router: Router, shift: int = 0, sticky: bool = False
) -> NDArray[np.int8]:
    """Routes by one loop over the rules, under either boundary.

    Args:
        shift: positions by which the routes are late: a planted mistake.
        sticky: what ends a span with a closing tag is forgotten: another one.
    """
    names = list(router.adapters)
    of_span = {CALL: names.index(router.spans[0]), SQL: names.index(router.spans[1])}
    outside, context = names.index(router.outside), -1 if router.context is None else names.index(router.context)
    inside, routes = None, []
    for at, (token, mine) in enumerate(zip(ids, written, strict=True)):
        before = inside
        if not mine:
            inside = None
        elif inside is None:
            inside = token if token in SPANS else None
        elif token == SPANS[inside] and not sticky:
            inside = None
        if router.boundary == "eq2":
            writer, applies = inside, at + 1 == len(ids) or written[at + 1]
        else:
            writer, applies = before, mine
        routes.append((outside if writer is None else of_span[writer]) if applies else context)
    return np.array([routes[max(at - shift, 0)] for at in range(len(routes))], dtype=np.int8)


class Reference:
    """The model in float32 with every token through the adapter of its route, by hooks on its linear layers."""

    def __init__(self, model: Path, adapters: Path, router: Router):
        self.router = router
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.routes = torch.zeros(0)
        modules = dict(self.model.named_modules())
        for number, name in enumerate(router.adapters):
            config = json.loads((adapters / name / "adapter_config.json").read_text())
            weights = load_file(adapters / name / "adapter_model.safetensors")
            for key, down in weights.items():
                if ".lora_A." in key:
                    up = weights[key.replace(".lora_A.", ".lora_B.")]
                    layer = modules[key.removeprefix("base_model.model.").partition(".lora_A.")[0]]
                    self._hook(layer, number, down, up, config["lora_alpha"] / config["r"])

    def _hook(self, layer: nn.Module, number: int, down: torch.Tensor, up: torch.Tensor, scale: float) -> None:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            part = inputs[0] @ down.T @ up.T * scale
            return output + part * (self.routes == number)[:, :, None]

        layer.register_forward_hook(add)

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], routes: NDArray[np.int8], start: int) -> NDArray[np.float64]:
        """Log-probs of `ids[start:]`, (N − start,), nats."""
        self.routes = torch.from_numpy(routes.astype(np.int64))[None]
        row = torch.tensor([list(ids)])
        logp = torch.log_softmax(self.model(input_ids=row, use_cache=False).logits[0].float(), -1)
        return logp[start - 1 : -1].gather(-1, row[0, start:, None])[:, 0].double().numpy()
