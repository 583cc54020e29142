"""What the claims run compares: methods as data, and the plan fixed before any of them was run.

A method is a start, shipped recipes on top of `calls`, and overrides. All RL methods draw the same number of responses
from the same prompts; hyper-parameters are those of the shipped recipes, and none was tuned on what is measured here.
"""

from dataclasses import dataclass
from enum import StrEnum

from unbraid.chat.types import Mode
from unbraid.lab.starts import Start

CLAIM_SHARE = 0.66
"""Share of known prompts at which the full list is run: the natural share of the world (.658), between the two
predicted thresholds."""
SHARES = (0.25, 0.35, 0.45, 0.55, 0.66, 0.75, 0.85)
"""Shares of the sweep."""
SWEEP_ORDER = (0.45, 0.85, 0.55, 0.25, 0.75, 0.35)
"""In which its cells are run: a run that ends early has shares on either side of the thresholds. The one of the claims
is there before."""
CLAIM_START = Start.FUZZY
SWEPT = ("plain", "advantage_batch", "autotool_published", "recommended")
"""Methods of the sweep, and of the second start."""
THRESHOLDS = {"group": 0.5, "batch": 0.75}
"""Known share above which no_think wins the vote on the mode, by the scaling of advantages: divided by the group's
deviation (one vote per prompt), or centred at one scale for all (½·x against 1½·(1 − x)); see docs/concepts.md."""
SCALING = {"plain": "group", "autotool_published": "group", "advantage_batch": "batch"}
"""How methods of the sweep scale advantages. `recommended` constrains the rate of the choice, so no vote decides it."""
SAVED, KEPT = 0.8, 0.95
"""The goal: this share of the oracle's token saving, at this share of the distilled accuracy."""
COLLAPSED = 0.05
"""A final think rate below this is a collapse."""


def predicted_collapse(method: str, share: float) -> bool:
    """Whether a method of the sweep is predicted to give up thinking at a share of known prompts."""
    return method in SCALING and share > THRESHOLDS[SCALING[method]]


class Whose(StrEnum):
    """Where a method is from."""

    PAPER = "AutoTool, arXiv 2603.13348"
    ABLATION = "AutoTool, less one ingredient"
    BASELINE = "a baseline of the paper"
    OTHERS = "Skywork-OR1"
    OURS = "ours"


@dataclass(frozen=True)
class Method:
    """One method of the comparison.

    start: the start that it is run from whatever the plan says; None = the plan's. layers: recipes on top of `calls`;
    without any there is no RL. base: the base itself, without a warm-up. refined: RL prompts are refined first.
    serves: the method whose weights these are, answering otherwise: it has no cell of its own.
    """

    name: str
    label: str
    whose: Whose
    layers: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    start: Start | None = None
    base: bool = False
    mode: Mode = Mode.AUTO
    refined: bool = False
    serves: str | None = None

    @property
    def is_trained(self) -> bool:
        """Whether there is RL."""
        return bool(self.layers)


_PUBLISHED = ("autotool_published",)
_UNIFIED = (
    "constraints=[{name: unified, group_by: all, measure: response, target: 0.2, gate: sample, "
    "coefficient: {start: 0.01, rule: gradient, learning_rate: 0.01, min: 0.0, max: 10.0}}]"
)
_LIST = (
    Method("direct", "the base, told not to think", Whose.BASELINE, base=True, mode=Mode.NO_THINK),
    Method("distilled", "warm-up on long answers only", Whose.BASELINE, start=Start.DISTILLED),
    Method("mixed_warmup", "the start of all RL runs, as it is", Whose.BASELINE),
    Method("plain", "GRPO, no entropy term", Whose.BASELINE, ("plain",)),
    Method(
        "recommended", "batch scaling, mode rate constrained, mode token weighted, KL", Whose.OURS, ("recommended",)
    ),
    Method(
        "second_thoughts",
        "recommended where it chooses thinking, or the base was unsure of its draft",
        Whose.OURS,
        ("recommended",),
        serves="recommended",
    ),
    Method("autotool_published", "decoupled adaptive entropy; all prompts", Whose.PAPER, _PUBLISHED),
    Method("autotool_refined", "the same on refined prompts", Whose.PAPER, _PUBLISHED, refined=True),
    Method("without_decoupling", "one adaptive constraint for both modes", Whose.ABLATION, _PUBLISHED, (_UNIFIED,)),
    Method(
        "without_adaptation",
        "coefficient of think fixed at 0.01",
        Whose.ABLATION,
        _PUBLISHED,
        ("constraints.0.coefficient.think=0.01",),
    ),
    Method(
        "without_asymmetry",
        "±1 in both modes",
        Whose.ABLATION,
        _PUBLISHED,
        ("reward.right=[1.0, 1.0]", "reward.wrong=[-1.0, -1.0]"),
    ),
    Method("fixed_entropy", "plain + one fixed entropy coefficient, 0.1", Whose.BASELINE, ("fixed_entropy",)),
    Method(
        "length_penalty",
        "plain + 0.005 off per token of thought",
        Whose.BASELINE,
        ("plain",),
        ("reward.function=unbraid.lab.autotool.rewards:length_penalty",),
    ),
    Method("global_adaptive", "one adaptive entropy target for all responses", Whose.OTHERS, ("global_adaptive",)),
    Method("advantage_none", "plain, advantages centred only", Whose.OURS, ("plain",), ("learn.advantage_scale=none",)),
    Method(
        "advantage_batch",
        "plain, divided by the batch's deviation",
        Whose.OURS,
        ("plain",),
        ("learn.advantage_scale=batch",),
    ),
    Method("mode_entropy", "batch scaling, entropy of each choice constrained", Whose.OURS, ("mode_entropy",)),
)
METHODS = {method.name: method for method in _LIST}
"""Every method by name, the ones that headline claims need first."""
SERVED = {method.serves: method.name for method in _LIST if method.serves}
"""Methods that are served otherwise as well, and what that is called."""
