"""`unbraid export RUN`: a folder for the hub, for stock transformers, PEFT and vLLM. Nothing is uploaded."""

from dataclasses import dataclass
from pathlib import Path

from unbraid.bench.score import read_score, records_of
from unbraid.chat.format import ChatFormat
from unbraid.errors import CheckpointError, DataError, ModelError
from unbraid.evaluate.metrics import Score
from unbraid.export.card import Card, license_of
from unbraid.export.provenance import provenance_of
from unbraid.export.tokenizer import MODES, Rendered, save_tokenizer
from unbraid.export.usage import Loading
from unbraid.export.weights import Kind, copy_weights, kind_of, merge_weights, rank_of
from unbraid.policy import load_tokenizer
from unbraid.policy.policy import resolve_path
from unbraid.recipe import Recipe
from unbraid.run.folder import read_scores, recipe_of, replace_folder
from unbraid.serve.run_flags import model_config
from unbraid.tokens import Router


@dataclass(frozen=True)
class Exported:
    """What was written: `kind` of weights, and what users should know, a line each."""

    path: Path
    kind: Kind
    notes: tuple[str, ...]


def export_run(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    merge: bool = False,
    checkpoint: str = "final",
    base: str = "",
    license: str = "",
) -> Exported:
    """Write a run's model as a folder that is there whole or not at all.

    Args:
        out: default: `export` in the run's folder. merge: add the one adapter to its base. checkpoint: folder of the
            run that holds the weights. base: hub name of the base where the recipe names a folder. license: of the
            model; empty takes what the base's card says, if that is here.

    Raises:
        DataError: the folder is no run. CheckpointError: `out` is there, or the run has no weights with a stock form.
        ModelError: the weights cannot be merged. ChatError: stock transformers would make other ids.
    """
    run_dir = Path(run_dir)
    recipe, folder = recipe_of(run_dir), run_dir / checkpoint
    target = Path(out) if out else run_dir / "export"
    if target.exists():
        raise CheckpointError(f"{target} is there already: choose another --out, or remove it")
    kind = kind_of(folder)
    named = base or resolve_path(recipe.model)
    notes: list[str] = []

    def write(partial: Path) -> None:
        if merge:
            merge_weights(recipe, folder, kind, partial)
        else:
            copy_weights(folder, partial, kind, base)
        chat, told = _trained_chat(recipe, folder)
        rendered = save_tokenizer(chat, partial)
        _write_generation_config(recipe, chat, partial)
        (partial / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        saved: Kind = "whole" if merge else kind
        loading = Loading(
            saved,
            chat,
            named,
            Router.load(folder).adapters if kind == "routed" else (),
            0 if saved == "whole" else rank_of(folder, kind),
            recipe.model.dtype,
            saved != "whole" and _adds_tokens(run_dir, recipe, chat),
        )
        card = Card(
            target.name if out else recipe.name,
            recipe,
            loading,
            merge,
            license or license_of(named),
            rendered,
            _scores(run_dir, checkpoint),
            [read_score(record) for record in records_of(run_dir) if record.name.startswith(f"{checkpoint}-")],
            provenance_of(recipe),
        )
        (partial / "README.md").write_text(card.text(), encoding="utf-8")
        notes.extend([*told, *_notes(card, rendered)])

    replace_folder(target, write)
    return Exported(target, "whole" if merge else kind, tuple(notes))


def _trained_chat(recipe: Recipe, folder: Path) -> tuple[ChatFormat, list[str]]:
    """The chat format that the run was trained in, by its base's tokenizer; that which it saved where there is none."""
    try:
        return ChatFormat.build(load_tokenizer(recipe.model), recipe.chat), []
    except ModelError:
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        note = "the base cannot be loaded here: ids were compared with the tokenizer that the run saved"
        return ChatFormat.build(tokenizer, recipe.chat), [note]


def _adds_tokens(run_dir: Path, recipe: Recipe, chat: ChatFormat) -> bool:
    """Whether the tokenizer has ids that the base has no rows for, as far as the base is known here."""
    rows = model_config(run_dir, recipe).get("vocab_size")
    return isinstance(rows, int) and rows < len(chat.tokenizer)


def _write_generation_config(recipe: Recipe, chat: ChatFormat, out: Path) -> None:
    """Stops where the policy was trained to stop, and draws as it was trained to be drawn from.

    Choice: the temperature of training, and no truncation of the distribution; a client that wants greedy says so.
    """
    import transformers

    settings = transformers.GenerationConfig(
        eos_token_id=list(chat.stop_ids),
        pad_token_id=chat.tokenizer.pad_token_id,
        bos_token_id=chat.tokenizer.bos_token_id,
        do_sample=True,
        temperature=recipe.rollout.temperature,
        top_p=1.0,
        top_k=0,
    )
    settings.save_pretrained(out)


def _scores(run_dir: Path, checkpoint: str) -> list[Score]:
    """The run's evaluations of these weights."""
    try:
        found = read_scores(run_dir)
    except DataError:
        return []
    return [score for score in found if score.labels.checkpoint.rpartition("/")[2] == checkpoint]


def _notes(card: Card, rendered: Rendered) -> list[str]:
    found = []
    if lost := [mode.value for mode in MODES if mode not in rendered.modes]:
        found.append(
            f"the template cannot force the modes {', '.join(lost)}: the tokenizer joins their first letters with what "
            "stands before; the card says which ids to append instead"
        )
    kind, base = card.loading.kind, card.loading.base
    if card.loading.grown:
        found.append("the adapters add tokens to the base: vLLM takes none that do, PEFT after a resize; or --merge")
    if kind == "routed":
        found.append("stock PEFT and vLLM load each adapter alone; together they need `unbraid serve` (docs/export.md)")
    if not Path(base).is_dir():
        return found
    if kind != "whole":
        found.append(f"adapters name a folder of this machine as their base, {base}: name it by --base, or --merge")
    if not card.license:
        found.append("the base's folder says no licence: give --license, or write it into the card")
    return found
