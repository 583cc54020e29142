"""The model card: README.md with the hub's header, what the model is, its results, and where it comes from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from unbraid.bench.score import BenchmarkScore
from unbraid.evaluate.metrics import Score
from unbraid.evaluate.statistics import Estimate
from unbraid.export.provenance import Provenance, is_hub_name
from unbraid.export.tokenizer import MODES, Rendered
from unbraid.export.usage import Loading, usage
from unbraid.export.weights import Kind
from unbraid.recipe import Recipe

_WHAT: dict[Kind, str] = {
    "whole": "A whole model.",
    "adapter": "One LoRA adapter over its base.",
    "routed": "Two or more LoRA adapters over one base, each token through the one of its role (`routing.json`).",
}


@dataclass(frozen=True)
class Card:
    """What a card is made from. merged: an adapter was."""

    name: str
    recipe: Recipe
    loading: Loading
    merged: bool
    license: str
    rendered: Rendered
    scores: Sequence[Score]
    benchmarks: Sequence[BenchmarkScore]
    provenance: Provenance

    def text(self) -> str:
        """The whole file."""
        sections = [
            f"---\n{self._header()}\n---",
            f"# {self.name}",
            self._what(),
            self._modes(),
            "## Use\n\n" + usage(self.loading, self.recipe.rollout.max_new_tokens),
            "## Results\n\n" + self._results(),
            "## Training\n\n" + self._training(),
            "## Where it comes from\n\n" + self._origin(),
        ]
        return "\n\n".join(sections) + "\n"

    def _header(self) -> str:
        data = ModelCardData(
            base_model=self.loading.base if is_hub_name(self.loading.base) else None,
            license=self.license or None,
            library_name="transformers" if self.loading.kind == "whole" else "peft",
            pipeline_tag="text-generation",
            tags=["unbraid", "tool-use", "function-calling", "reasoning", *self._method_tags()],
            datasets=sorted({source.name for source in self.provenance.sources if source.hub}) or None,
        )
        if is_hub_name(self.loading.base):
            data["base_model_relation"] = "finetune" if self.loading.kind == "whole" else "adapter"
        return str(data.to_yaml()).strip()

    def _method_tags(self) -> list[str]:
        adapter = self.recipe.model.adapter
        return [
            "grpo",
            *(["lora"] if adapter else []),
            *(["routed-lora"] if self.loading.kind == "routed" else []),
            *(["entropy-constraint"] if self.recipe.constraints else []),
        ]

    def _what(self) -> str:
        merged = " The adapter it was trained as is merged into it." if self.merged else ""
        label = f" {self.recipe.label[0].upper()}{self.recipe.label[1:].rstrip('.')}." if self.recipe.label else ""
        base = f"`{self.loading.base}`" + (
            "" if is_hub_name(self.loading.base) else " (a folder of whoever trained it)"
        )
        licence = self.license or "not recorded: that of the base and of the data hold"
        return (
            f"{_WHAT[self.loading.kind]}{merged} Trained to call tools, and to think first where that pays.{label}\n\n"
            f"Trained with unbraid from {base}. Licence: {licence}."
        )

    def _modes(self) -> str:
        preset, lost = self.loading.chat.preset, [mode for mode in MODES if mode not in self.rendered.modes]
        forced = (
            "The model chooses by itself whether to think (`auto`), or is told: "
            '`apply_chat_template(…, mode="think")`, `mode="no_think"` (`enable_thinking=True`, `False` do the same). '
            f"A response starts with `{_code(preset.think)}` or `{_code(preset.no_think)}`; a mode that is told puts "
            "that into the prompt.\n\nStock transformers renders the ids that were trained on (compared on "
            f"{self.rendered.prompts} conversations in {len(MODES)} modes when this folder was written)."
        )
        ids = "; ".join(f"`{mode.value}`: {list(self.loading.chat.prefix_ids(mode))}" for mode in lost)
        free = (
            "The model chooses by itself whether to think. **The template cannot force a mode**: rendered as text, the "
            "tokenizer would join the mode's first letters with what stands before. Append these ids instead: "
            f"{ids}. Without a mode, stock transformers renders the ids that were trained on."
        )
        lines = ["## Modes", free if lost else forced]
        if self.loading.chat.calls.observation:
            result = _code(self.loading.chat.calls.observation)
            lines.append(
                "Tools are called by tags and explained in the prompt: give no `tools=`. A response ends at "
                f"`{self.loading.chat.calls.close}`; the result follows in the same turn, as `{result}`."
            )
        return "\n\n".join(lines)

    def _results(self) -> str:
        if not self.scores and not self.benchmarks:
            return "Not evaluated: the run holds no scores."
        rows = [
            (f"{s.labels.method}, test tasks", s.mode.value, s.decoding, s.accuracy, s.tokens, s.think_rate, s.acu)
            for s in self.scores
        ] + [
            (b.setting.benchmark, b.setting.mode.value, b.setting.decoding, b.accuracy, b.tokens, b.think_rate, b.acu)
            for b in self.benchmarks
        ]
        table = _table(
            ("evaluation", "mode", "decoding", "n", "right, %", "tokens", "thinks on, %", "ACU"),
            (
                (what, mode, how, str(right.n), _percent(right), _number(tokens), _percent(thinks), _plain(acu))
                for what, mode, how, right, tokens, thinks, acu in rows
            ),
        )
        versions = [f"{b.setting.benchmark}: {b.setting.version}, {b.setting.checker}" for b in self.benchmarks]
        return "\n\n".join(
            [
                table,
                "In brackets 95 % intervals. `tokens` are those of a response, or of all responses of an episode; ACU "
                "is accuracy per parameter and token (arXiv 2603.13348), comparable within one evaluation only.",
                *versions,
            ]
        )

    def _training(self) -> str:
        learn, rollout, model = self.recipe.learn, self.recipe.rollout, self.recipe.model
        adapter = f"LoRA of rank {model.adapter.rank}, alpha {model.adapter.alpha}" if model.adapter else "all weights"
        constraints = "; ".join(f"{c.name}: {c.measure} entropy by {c.group_by}" for c in self.recipe.constraints)
        facts = {
            "recipe": f"`{self.recipe.name}` ([recipe.yaml](recipe.yaml), whole)",
            "trained": f"{adapter}, weights in {model.dtype}",
            "warm-up": f"{self.recipe.warmup.steps} steps" if self.recipe.warmup else "none",
            "RL": f"{learn.steps} steps, {rollout.prompts} prompts × {rollout.samples} samples, learning rate "
            f"{learn.learning_rate:g}, advantages by {learn.advantage_scale}, KL {learn.kl:g}",
            "entropy constraints": constraints or "none",
            "sampling": f"temperature {rollout.temperature:g}, at most {rollout.max_new_tokens} tokens a response",
        }
        return _table(("", ""), facts.items())

    def _origin(self) -> str:
        origin = self.provenance
        facts = {
            "exported by": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
            **({"commit of unbraid": f"`{origin.commit}`"} if origin.commit else {}),
            "recipe's fingerprint": f"`{origin.recipe}`",
            "seed": str(origin.seed),
            **{f"{s.what} tasks": f"`{s.name}`: {s.state}" for s in origin.sources},
        }
        return _table(("", ""), facts.items()) + (
            "\n\nFingerprints are of files as they were when this was written, not when it was trained."
        )


def license_of(base: str) -> str:
    """The licence that the card of a base says, where that is a folder here; "" elsewhere."""
    path = Path(base) / "README.md"
    if not path.is_file():
        return ""
    from huggingface_hub import ModelCard

    try:
        return str(ModelCard.load(path).data.get("license") or "")
    except ValueError:  # a header that is no YAML
        return ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _percent(estimate: Estimate | None) -> str:
    return "–" if estimate is None else _interval(estimate, 100)


def _number(estimate: Estimate) -> str:
    return _interval(estimate, 1)


def _interval(estimate: Estimate, scale: float) -> str:
    value = f"{scale * estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({scale * estimate.low:.1f}–{scale * estimate.high:.1f})"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _code(text: str) -> str:
    """A text in one line of code."""
    return text.replace("\n", "\\n")
