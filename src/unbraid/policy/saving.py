"""Weights on disk in stock formats: one model or adapter, a folder for each of several adapters, or for each agent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unbraid.errors import ModelError
from unbraid.policy.routed_lora import Binding
from unbraid.policy.sharding import part_of
from unbraid.policy.two_agents import TwoAgents
from unbraid.tokens import ROUTING_FILE, Router


def save_model(model: Any, path: str | Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a folder; of routed adapters and of two agents each has a folder of its own in it, named as it is.

    Args:
        weights: of a model whose own are spread over the ranks (`sharding.whole_weights`).
    """
    if isinstance(model, TwoAgents):
        for name, agent in model.agents.items():
            save_model(agent, Path(path) / name)
        return
    model.save_pretrained(path, state_dict=weights)
    if (router := router_of(model)) is not None:
        router.save(path)


@torch.no_grad()
def load_model(model: Any, path: str | Path) -> None:
    """Take over, exactly, the weights that `save_model` wrote of such a model.

    Raises:
        ModelError: the folder's adapters are routed otherwise than these.
    """
    path = Path(path)
    if isinstance(model, TwoAgents):
        for name, agent in model.agents.items():
            load_model(agent, path / name)
    elif hasattr(model, "peft_config"):
        import peft

        _compare_routing(model, path)
        for name in model.peft_config:
            # PEFT writes the adapter `default` into the folder itself, any other into one below it.
            weights = peft.load_peft_weights(str(path if name == "default" else path / name), device=str(model.device))
            peft.set_peft_model_state_dict(model, weights, adapter_name=name)
    else:
        # Through from_pretrained, which knows shards, tied weights and renamed keys.
        saved = type(model).from_pretrained(path, dtype=model.dtype).state_dict()
        for name, value in model.state_dict().items():
            value.copy_(part_of(saved[name], value))


def weights_folder(run_dir: str | Path, checkpoint: str = "final") -> Path:
    """Where the weights are: `checkpoint` in a run's folder; an exported folder itself, which has them at its top."""
    run_dir = Path(run_dir)
    exported = not (run_dir / checkpoint).is_dir() and (run_dir / "tokenizer_config.json").is_file()
    return run_dir if exported else run_dir / checkpoint


def router_of(model: Any) -> Router | None:
    """The router of a model's adapters, unless that is a control or there is none."""
    binding: Binding | None = getattr(model, "routing", None)
    return binding.router if binding and isinstance(binding.router, Router) else None


def _compare_routing(model: Any, path: Path) -> None:
    router = router_of(model)
    if router is None or not (path / ROUTING_FILE).exists():
        return
    saved, own = Router.load(path).to_json(), router.to_json()
    if differing := sorted(key for key in {*own, *saved} if saved.get(key) != own.get(key)):
        raise ModelError(
            f"{path} is routed otherwise ({', '.join(differing)}): take the recipe of the run that saved it"
        )
