"""What a run's weights are, and how they get into a folder that stock software loads."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from unbraid.errors import CheckpointError, ModelError
from unbraid.policy import load_policy
from unbraid.policy.routed_lora import MERGING
from unbraid.recipe import Recipe
from unbraid.run.folder import take_weights
from unbraid.tokens import ROUTING_FILE, Router

Kind = Literal["whole", "adapter", "routed"]
"""All weights; one LoRA over a base; several, each token through its own."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def kind_of(folder: Path) -> Kind:
    """What the folder of a run's weights holds.

    Raises:
        CheckpointError: nothing, or what only unbraid's experiments use: two agents, or a control of routing.
    """
    if (folder / ROUTING_FILE).is_file():
        return "routed"
    if (folder / ADAPTER_FILES[0]).is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "whole"
    if several := [*folder.glob("*/adapter_config.json"), *folder.glob("*/config.json")]:
        raise CheckpointError(
            f"{folder} holds {len(several)} models or adapters and no {ROUTING_FILE}: two agents and controls of "
            "routing are for experiments and have no stock form; export another run"
        )
    raise CheckpointError(f"{folder} holds no weights: finish the run, or name a folder of it that does (--checkpoint)")


def copy_weights(folder: Path, out: Path, kind: Kind, base: str = "") -> None:
    """Copy weights with what describes them, and nothing else that may lie beside them.

    Args:
        base: name of the base that adapters are to carry; empty leaves what they were trained over.
    """
    if kind == "whole":
        for path in [folder / "config.json", *sorted(folder.glob("model*.safetensors*"))]:
            shutil.copy2(path, out / path.name)
    elif kind == "adapter":
        _copy_adapter(folder, out, base)
    else:
        router = Router.load(folder)
        for name in router.adapters:
            (out / name).mkdir()
            _copy_adapter(folder / name, out / name, base)
        router.save(out)


def merge_weights(recipe: Recipe, folder: Path, kind: Kind, out: Path) -> None:
    """Write the base with its one adapter merged in, in the base's type.

    The product is added in float32 (float64 where the run was): rounded once, when it is saved.

    Raises:
        ModelError: there is no adapter, or there are several that take turns, or the base cannot be loaded.
    """
    if kind == "routed":
        raise ModelError(MERGING)
    if kind == "whole":
        raise ModelError("the run trained all weights, there is no adapter to merge: leave out --merge")
    dtype = recipe.model.dtype
    exact = recipe.model.model_copy(update={"device": "cpu", "dtype": "float64" if dtype == "float64" else "float32"})
    policy = load_policy(exact, recipe.chat)
    take_weights(policy, folder)
    merged: Any = policy.model.merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, dtype)).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)


def rank_of(folder: Path, kind: Kind) -> int:
    """The rank of the largest adapter."""
    folders = [folder / name for name in Router.load(folder).adapters] if kind == "routed" else [folder]
    return max(json.loads((one / ADAPTER_FILES[0]).read_text())["r"] for one in folders)


def _copy_adapter(folder: Path, out: Path, base: str) -> None:
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}: the run is damaged, make it again")
        shutil.copy2(folder / name, out / name)
    if base:
        config = json.loads((out / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        text = json.dumps({**config, "base_model_name_or_path": base}, indent=2, ensure_ascii=False)
        (out / ADAPTER_FILES[0]).write_text(text + "\n", encoding="utf-8")
