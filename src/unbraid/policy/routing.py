"""What a recipe says about routing, and the router that it makes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from unbraid.errors import ModelError
from unbraid.policy.control_routers import CONTROLS, ControlRouter
from unbraid.policy.routed_lora import Routes
from unbraid.tokens import Boundary, RoleAutomaton, Router, Turns


class RoutingConfig(BaseModel):
    """Which adapter owns which tokens. The defaults are the paper's (arXiv 2602.00994)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    owners: dict[str, str] = Field(default={"reasoning": "reasoning", "action": "action"}, min_length=1)
    """Role, or name of a kind of span (`think`, `call`), → the adapter that writes it; a span comes before its role."""
    context: str | None = "reasoning"
    """The adapter of prompts and observations (paper: reasoning), or null: these run through the bare base."""
    boundary: Boundary = "eq2"
    """Where a span begins: Eq. 2 of the paper, or `shifted` by one as its released code trains."""
    isolation: Literal["positional", "strict"] = "positional"
    """`positional` (paper): a loss also moves the other adapter, through attention. `strict`: each token's loss moves
    its owner only; the gradient of no single objective."""
    assign: Literal["role", "swapped", "all", "random", "placebo"] = "role"
    """`role`, or a control: the adapters swapped, all on at once, by position, or by prompt."""


def make_router(config: RoutingConfig, automaton: RoleAutomaton, turns: Turns | None = None) -> Routes:
    """The router of a recipe over the spans that the chat format knows. turns: as `Router` has them, for servers.

    Raises:
        ModelError: an owner or the context names what is not there.
    """
    kinds = {delimiter.name: delimiter.role.name.lower() for delimiter in automaton.delimiters}
    known = sorted({*kinds, *kinds.values(), automaton.outside.name.lower()})
    if unknown := [key for key in config.owners if key not in known]:
        raise ModelError(f"model.adapter.routing.owners: no role or span '{unknown[0]}': there are {', '.join(known)}")

    def owner(*keys: str) -> str:
        for key in keys:
            if key in config.owners:
                return config.owners[key]
        raise ModelError(f"model.adapter.routing.owners: nobody owns {keys[-1]}: add `{keys[-1]}: name of an adapter`")

    outside = owner(automaton.outside.name.lower())
    spans = tuple(owner(name, role) for name, role in kinds.items())
    adapters = tuple(dict.fromkeys([outside, *spans]))
    if config.context is not None and config.context not in adapters:
        raise ModelError(f"model.adapter.routing.context: no adapter '{config.context}': use one of {adapters} or null")
    if bad := [name for name in adapters if not name.isidentifier() or name == "default"]:
        raise ModelError(f"model.adapter.routing.owners: '{bad[0]}' names a folder and a module: use a plain word")
    router = Router(automaton, adapters, outside, spans, config.context, config.boundary, turns)
    return router if config.assign == "role" else ControlRouter(router, CONTROLS[config.assign])
