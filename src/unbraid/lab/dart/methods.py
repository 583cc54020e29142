"""What the claims run of DART compares: methods as data, and the plan fixed before any of them was run.

A method is a set of overrides of a world's recipe. All adapters have the same alpha / rank, the paper's 2: where
methods differ in rank, their steps do not differ in scale. Routed adapters of rank r train as many weights as one
shared adapter of rank 2r, and each token runs through half of them.
"""

from dataclasses import dataclass
from enum import StrEnum


class World(StrEnum):
    """Where a cell is run."""

    CONFLICT = "conflict"
    SEARCH = "search"


class Learner(StrEnum):
    """How a cell learns."""

    SUPERVISED = "supervised"
    GRPO = "grpo"


class Sharing(StrEnum):
    """Where the adapters of the conflict world sit, and so how much one of them can tell its two jobs apart."""

    TIGHT = "tight"
    MIDDLE = "middle"
    LOOSE = "loose"


TARGETS: dict[Sharing, str] = {
    Sharing.TIGHT: "[layers.0.self_attn.v_proj]",
    Sharing.MIDDLE: "[layers.0.mlp.gate_proj, layers.0.mlp.up_proj, layers.0.mlp.down_proj]",
    Sharing.LOOSE: "all-linear",
}
"""TIGHT: the first layer's values. They see a token and nothing else, so one adapter cannot know whether a field
stands in a call or in an answer; what tells these apart is in the frozen rest. MIDDLE: the first layer's MLP, behind
one round of attention. LOOSE: everywhere."""


class Whose(StrEnum):
    """Where a method is from."""

    PAPER = "DART, arXiv 2602.00994"
    BASELINE = "a baseline of the paper"
    VARIANT = "a variant of DART"
    CONTROL = "a control of ours"


ADAPTER_RATES, FULL_RATES = (2.5e-3, 5e-3, 1e-2, 2e-2), (1e-3, 2e-3, 4e-3)
"""The conflict world's learning rates, of which each method gets the best on the dev set of the base for tuning."""
SEARCH_ADAPTER_RATE, SEARCH_FULL_RATE = 2e-3, 5e-4
"""The search world's. Choice: those of the shipped recipe, for every method: a grid would take hours there."""


@dataclass(frozen=True)
class Method:
    """One method of the comparison.

    overrides: of a world's recipe. has_adapter: it trains adapters (else all weights). routed: in two roles.
    trained: False for the base itself.
    """

    name: str
    label: str
    whose: Whose
    overrides: tuple[str, ...] = ()
    has_adapter: bool = True
    routed: bool = False
    trained: bool = True

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the conflict world to choose from."""
        return ADAPTER_RATES if self.has_adapter else FULL_RATES

    @property
    def search_rate(self) -> float:
        """The learning rate of the search world."""
        return SEARCH_ADAPTER_RATE if self.has_adapter else SEARCH_FULL_RATE


def _shared(rank: int) -> Method:
    overrides = (f"model.adapter={{rank: {rank}, alpha: {2 * rank}}}",)
    return Method(f"shared_r{rank}", f"one LoRA adapter of rank {rank} for both roles", Whose.BASELINE, overrides)


def _routed(name: str, label: str, whose: Whose, rank: int = 8, routing: str = "") -> Method:
    overrides = (f"model.adapter={{rank: {rank}, alpha: {2 * rank}, routing: {{{routing}}}}}",)
    return Method(name, label, whose, overrides, routed=True)


_LIST = (
    Method("base", "the base as it is", Whose.BASELINE, has_adapter=False, trained=False),
    _shared(16),
    _routed("dart", "two routed adapters of rank 8", Whose.PAPER),
    _routed("dart_strict", "each role's loss moves its own adapter only", Whose.VARIANT, routing="isolation: strict"),
    _shared(8),
    _routed("placebo", "the adapter goes by the question, not by the role", Whose.CONTROL, routing="assign: placebo"),
    Method("full", "all weights, one model", Whose.BASELINE, has_adapter=False),
    Method(
        "two_lora_agents",
        "one frozen base run twice, with an adapter of rank 8 per role",
        Whose.BASELINE,
        ("model.adapter={rank: 8, alpha: 16}", "model.two_agents=true"),
        routed=True,
    ),
    Method(
        "two_agents",
        "two models, one per role, all weights",
        Whose.BASELINE,
        ("model.two_agents=true",),
        has_adapter=False,
        routed=True,
    ),
    _routed("dart_no_context", "prompt and observations run through the base", Whose.VARIANT, routing="context: null"),
    _routed(
        "dart_strict_no_context",
        "strict, and prompt and observations run through the base",
        Whose.VARIANT,
        routing="isolation: strict, context: null",
    ),
    _routed("dart_shifted", "the released code's mask, one later", Whose.VARIANT, routing="boundary: shifted"),
    _routed("dart_r4", "routed adapters of rank 4", Whose.PAPER, rank=4),
    _routed("dart_r16", "routed adapters of rank 16", Whose.PAPER, rank=16),
    _routed("dart_r32", "routed adapters of rank 32", Whose.PAPER, rank=32),
    _shared(4),
    _shared(32),
    _routed("both_on", "two adapters, both on every token", Whose.CONTROL, routing="assign: all"),
    _routed("random", "the adapter goes by a hash of the position", Whose.CONTROL, routing="assign: random"),
    _routed("swapped", "the roles' adapters change places", Whose.CONTROL, routing="assign: swapped"),
)
METHODS = {method.name: method for method in _LIST}
"""Every method by name, the ones that headline claims need first."""

RHOS = (1.0, 0.0, 0.5, 0.75, 0.25)
"""Doses, in the order of running: a run that ends early has the ends and the middle."""
DOSED = ("shared_r16", "dart")
"""Methods that are run at every dose, wherever in `DOSED_AT` the adapters sit; the others at both ends."""
DOSED_AT = (Sharing.TIGHT, Sharing.MIDDLE)
FIRST = ("placebo", "dart_strict", "two_lora_agents", "shared_r8")
"""What is run at both ends before `OTHERS`."""
REINFORCED = ("shared_r16", "dart", "dart_strict")
"""Methods of the conflict world that are trained by GRPO too, at both ends."""
GRPO_RATE = 1e-2
"""Their learning rate. Choice: that of the recipe, for all: a grid of these runs takes too long."""
OTHERS = tuple(name for name, method in METHODS.items() if method.trained and name not in (*DOSED, *FIRST))
"""The rest of the methods of the conflict world, at both ends."""
SEARCHED = ("base", "shared_r16", "dart", "dart_strict", "placebo", "full")
"""Methods of the search world."""
