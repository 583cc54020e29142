"""`unbraid serve RUN`: what vLLM is told, so that stock clients read a trained policy's answers as unbraid does.

`serve_flags` reads the run's folder and says what to start; `ServePlan.write` puts down the few files that vLLM needs
besides. Nothing here starts a server or imports vLLM.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from unbraid.chat.calls import CallFormat, JsonCalls
from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.preset import Preset
from unbraid.data.read import DataConfig
from unbraid.errors import ModelError, ServerError
from unbraid.plugins import call, names_code
from unbraid.policy import ModelConfig
from unbraid.policy.saving import weights_folder
from unbraid.rollout.config import EnvironmentConfig, RolloutConfig
from unbraid.serve.response_template import reads_calls, response_template
from unbraid.tokens import ROUTING_FILE, Router
from unbraid.vllm.flags import flags_of_routed, lora_rank
from unbraid.vllm.routes import WRITTEN

SAFE = {"VLLM_SERVER_DEV_MODE": "0", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0"}
"""Variables that keep the routes off which change weights, load adapters or run code."""
REFUSED = ("--enable-scale-out", "--tokens-only", "--enable-fault-tolerance", "--config")
"""Flags that put such routes on, or a file that may hold them."""
GUARD = "unbraid_guard"
"""Module name of `vllm_app.py` where vLLM imports it."""
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
)


class Served(Protocol):
    """What is asked of a recipe."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def chat(self) -> ChatConfig: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def rollout(self) -> RolloutConfig: ...
    @property
    def environment(self) -> EnvironmentConfig | None: ...


@dataclass(frozen=True)
class ServePlan:
    """A server to start, once `write` was called.

    arguments: flags of vLLM, without host and port. environment: variables to set. name: what clients ask for. notes:
    what users should know, a line each. folder: where the files go. texts: contents by file name. copies: files that
    are copied there first.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]
    notes: tuple[str, ...]
    name: str
    folder: Path
    texts: dict[str, str] = field(default_factory=dict)
    copies: tuple[Path, ...] = ()

    def write(self) -> None:
        """Put the files down that the arguments speak of.

        Raises:
            ServerError: the folder cannot be written.
        """
        try:
            if self.texts or self.copies:
                self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.copies:
                (self.folder / path.name).write_bytes(path.read_bytes())
            for name, text in self.texts.items():
                (self.folder / name).write_text(text, encoding="utf-8")
        except OSError as problem:
            raise ServerError(
                f"{self.folder}: cannot be written ({problem.strerror}): make it writable, or copy the run elsewhere"
            ) from problem


def serve_flags(
    run_dir: str | Path, recipe: Served, *, name: str = "", max_tokens: int | None = None, flags: Sequence[str] = ()
) -> ServePlan:
    """What serves a run's `final/` or an exported folder: a whole model, an adapter, or routed adapters.

    Args:
        name: what clients ask for; empty takes the recipe's name. max_tokens: longest context in tokens; None takes the
            recipe's. flags: further flags of vLLM; they win over those of the plan.

    Raises:
        ServerError: `final/` is absent or incomplete, vLLM cannot serve its adapter, or a flag is refused.
        ChatError: its tokenizer does not fit the recipe's chat format.
    """
    final = weights_folder(run_dir).absolute()
    folder = Path(run_dir).absolute() / "serve"
    name = name or recipe.name
    _refuse(flags)
    if not (final / "tokenizer_config.json").is_file():
        raise ServerError(f"{run_dir}: holds no final/ with a tokenizer: finish the run, or name another folder")
    chat = ChatFormat.build(_tokenizer(final), recipe.chat)
    adapters = adapters_of(final)
    base = base_of(recipe.model) if adapters else str(final)
    config = _config_of(base)
    for adapter in adapters:
        refuse_adapter(final, adapter, len(chat.tokenizer), config)

    parsing, template, notes = parsers(chat)
    texts: dict[str, str] = {}
    copies: tuple[Path, ...] = ()
    if template:
        settings = {**read_json(final / "tokenizer_config.json"), "response_template": template}
        texts["tokenizer_config.json"] = json.dumps(settings, ensure_ascii=False, indent=1)
        copies = tuple(
            path for pattern in _TOKENIZER_FILES for path in sorted(final.glob(pattern)) if path.name not in texts
        )
    generation = "vllm"
    if not stops_known(chat, read_json(Path(base) / "generation_config.json")):
        texts["generation_config.json"] = json.dumps({"eos_token_id": list(chat.stop_ids)})
        generation = str(folder)
    arguments = [
        f"--model={base}",
        f"--tokenizer={folder if template else final}",
        f"--dtype={'float32' if recipe.model.dtype == 'float64' else recipe.model.dtype}",
        f"--max-model-len={context_tokens(recipe, config, max_tokens)}",
        f"--generation-config={generation}",
        *parsing,
    ]
    environment = dict(SAFE)
    if (final / "chat_template.jinja").is_file():
        arguments.append(f"--chat-template={final / 'chat_template.jinja'}")
    if is_routed(run_dir):
        routed, variables = flags_of_routed()
        arguments, environment = [*arguments, *routed], environment | variables
        notes = (*notes, _told_of_provenance(final))
    if adapters:
        arguments += adapter_flags(name, final, max(adapter["r"] for adapter in adapters), len(adapters))
        texts[f"{GUARD}.py"] = Path(__file__).with_name("vllm_app.py").read_text(encoding="utf-8")
        environment |= {"PYTHONPATH": str(folder), "UNBRAID_SERVED_MODEL": name}
    else:
        arguments.append(f"--served-model-name={name}")
    return ServePlan((*arguments, *flags), environment, notes, name, folder, texts, copies)


def parsers(chat: ChatFormat) -> tuple[tuple[str, ...], dict[str, Any] | None, tuple[str, ...]]:
    """(flags, response template, notes): which of vLLM's parsers read a chat format.

    Qwen3's spelling has parsers of its own, `qwen3` and `hermes`. Others are read by `hf`, which goes by the template
    that is returned. Calls that no stock parser reads stay in the content, and a note says so.
    """
    preset, calls = chat.preset, chat.calls
    plain = writes_qwen3(preset)
    if plain and writes_hermes(calls):
        note = (
            "modes are asked for by chat_template_kwargs {'enable_thinking': true or false}; vLLM's qwen3 parser does "
            "not know {'mode': 'no_think'} and takes an answer without calls for a thought"
        )
        return ("--reasoning-parser=qwen3", "--enable-auto-tool-choice", "--tool-call-parser=hermes"), None, (note,)
    if reads_calls(calls):
        flags = ("--reasoning-parser=hf", "--enable-auto-tool-choice", "--tool-call-parser=hf")
        return flags, response_template(chat), ("tool_choice is auto or none: vLLM cannot force calls in this format",)
    if calls.observation:
        note = (
            f"calls between {calls.open} and {calls.close} stay in the content, which ends where one closes: their "
            "results belong into the assistant's own turn, which /v1/completions can continue and chat cannot"
        )
    else:
        note = f"calls between {calls.open} and {calls.close} stay in the content: no parser of vLLM reads this format"
    return ("--reasoning-parser=hf",), response_template(chat), (note,)


def writes_qwen3(preset: Preset) -> bool:
    """Whether thinking is written as Qwen3 does: in `<think>`, and skipped by an empty one."""
    return preset.think.split() == ["<think>"] and preset.no_think.split() == ["<think>", "</think>"]


def writes_hermes(calls: CallFormat) -> bool:
    """Whether calls are written as Hermes does: each in its own `<tool_call>`, as an object of name and arguments."""
    return (
        isinstance(calls, JsonCalls)
        and (calls.open, calls.close, calls.key) == ("<tool_call>", "</tool_call>", "arguments")
        and calls.one_per_span
        and not (calls.is_list or calls.observation or any(calls.content_tags))
    )


def is_routed(run_dir: str | Path) -> bool:
    """Whether a run's policy is routed adapters, which vLLM serves with unbraid's plugin only."""
    return (weights_folder(run_dir) / ROUTING_FILE).is_file()


def adapters_of(final: Path) -> list[dict[str, Any]]:
    """The adapter_config.json of each adapter of a policy: none of a whole model, several of a routed one.

    Raises:
        ServerError: one is missing, the routing cannot be read, or the policy is several that no server serves.
    """
    if (final / ROUTING_FILE).is_file():
        try:
            names = Router.load(final).adapters
        except (OSError, ValueError) as problem:
            raise ServerError(f"{final / ROUTING_FILE}: {problem}: the run is damaged, make it again") from problem
        found = [read_json(final / name / "adapter_config.json") for name in names]
        if not all(found):
            raise ServerError(f"{final}: has not all of the adapters {', '.join(names)}: the run is damaged")
        return found
    alone = read_json(final / "adapter_config.json")
    if not alone and (several := [*final.glob("*/adapter_config.json"), *final.glob("*/config.json")]):
        raise ServerError(
            f"{final}: holds {len(several)} models or adapters and no {ROUTING_FILE}: two agents and controls of "
            "routing are for experiments, vLLM serves neither: use --local"
        )
    return [alone] if alone else []


def _told_of_provenance(final: Path) -> str:
    if Router.load(final).turns:
        return (
            "tokens run through the adapter of their role; what the model wrote in a prompt is seen by the template's "
            f"turn markers, unless a request tells it: vllm_xargs {{'{WRITTEN}': '[[start, end], …]'}}"
        )
    return (
        "tokens run through the adapter of their role; a prompt counts as not written by the model, but for what a "
        f"request names: vllm_xargs {{'{WRITTEN}': '[[start, end], …]'}}"
    )


def adapter_flags(name: str, final: Path, rank: int, slots: int = 1) -> list[str]:
    """Flags that serve a policy of `slots` adapters as `name`.

    The base has another name, and the guard keeps requests from it.
    """
    try:
        most = lora_rank(rank)
    except ValueError as problem:
        raise ServerError(f"{final}: {problem}: train one of a lower rank, or merge it into its base") from problem
    hidden = f"{name}-without-adapter"
    module = json.dumps({"name": name, "path": str(final), "base_model_name": hidden}, ensure_ascii=False)
    return [
        f"--served-model-name={hidden}", "--enable-lora", f"--max-lora-rank={most}", f"--max-loras={slots}",
        f"--lora-modules={module}", f"--middleware={GUARD}.OnlyAdapter",
    ]  # fmt: skip


def refuse_adapter(final: Path, adapter: dict[str, Any], ids: int, config: dict[str, Any]) -> None:
    """Refuse an adapter that is more than low-rank updates of the base's own rows, which vLLM cannot serve.

    Args:
        ids: length of the adapter's tokenizer. config: of the base.

    Raises:
        ServerError: the adapter adds tokens, or saves whole modules.
    """
    rows = config.get("vocab_size")
    if isinstance(rows, int) and ids > rows:
        raise ServerError(
            f"{final}: its tokenizer has {ids} ids and the base's embedding {rows} rows: vLLM takes no adapter that "
            "adds tokens; merge it into its base (peft's merge_and_unload) and serve the whole model"
        )
    if whole := adapter.get("modules_to_save"):
        raise ServerError(
            f"{final}: the adapter saves whole modules ({', '.join(whole)}), which vLLM does not take: merge it into "
            "its base (peft's merge_and_unload) and serve the whole model"
        )


def context_tokens(recipe: Served, config: dict[str, Any], wanted: int | None = None) -> int:
    """Longest context to serve, in tokens: `wanted`, or what the run was trained with as far as the model reaches."""
    if wanted is not None:
        return wanted
    if recipe.environment:
        trained = recipe.environment.tokens
    else:
        trained = recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens
    positions = config.get("max_position_embeddings")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    stretched = isinstance(rope, dict) and rope.get("factor") is not None
    return min(trained, positions) if isinstance(positions, int) and not stretched else trained


def stops_known(chat: ChatFormat, generation: dict[str, Any]) -> bool:
    """Whether vLLM stops where the policy was trained to: at the tokenizer's end, and at those of the model."""
    ends = generation.get("eos_token_id")
    known = [chat.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
    return all(token in known for token in chat.stop_ids)


def base_of(model: ModelConfig) -> str:
    """The folder or hub name of a recipe's model."""
    path = str(call(model.path, ModelError, "model.path")) if names_code(model.path) else model.path
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def model_config(run_dir: str | Path, recipe: Served) -> dict[str, Any]:
    """The config.json of the model that a run serves: its own, or its adapter's base's; empty if it is not here."""
    final = weights_folder(run_dir)
    return read_json(final / "config.json") or _config_of(base_of(recipe.model))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty where there is no such file.

    Raises:
        ServerError: the file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ServerError(f"{path}: cannot be read ({problem}): the run is damaged, make it again") from problem
    if not isinstance(found, dict):
        raise ServerError(f"{path}: is no JSON object: the run is damaged, make it again")
    return found


def _config_of(model: str) -> dict[str, Any]:
    """A model's config.json, that of its text part where it has several; empty if a hub name cannot be reached."""
    if Path(model).is_dir():
        config = read_json(Path(model) / "config.json")
        if not config:
            raise ServerError(f"{model}: holds no config.json: give a folder with a whole model")
    else:
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(model).to_dict()
        except (OSError, ValueError, KeyError):
            return {}  # vLLM will say what is wrong with it
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _tokenizer(final: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(str(final))
    except (OSError, ValueError, KeyError, ImportError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise ServerError(f"{final}: its tokenizer cannot be loaded ({reason}): finish the run again") from problem


def _refuse(flags: Sequence[str]) -> None:
    """Refuse flags that put on what must be off; vLLM takes them with underscores and abbreviated too."""
    for flag in flags:
        written = flag.partition("=")[0].replace("_", "-")
        if len(written) > 4 and any(one.startswith(written) for one in REFUSED):
            raise ServerError(
                f"{flag}: refused, for it opens routes that change the server or may do so: leave it out; a trainer's "
                "servers are started by `sampler: vllm`"
            )
