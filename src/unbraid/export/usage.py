"""How an exported folder is loaded: the lines of its card, for transformers, PEFT, vLLM and unbraid."""

import shlex
from dataclasses import dataclass

from unbraid.chat.format import ChatFormat
from unbraid.export.weights import Kind
from unbraid.serve.run_flags import parsers
from unbraid.vllm.flags import lora_rank

_GENERATE = """\
messages = [{{"role": "user", "content": "What is the weather in Paris?"}}]
inputs = tokenizer.apply_chat_template(
    messages, mode="auto", add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
settings = GenerationConfig.from_pretrained(path, max_new_tokens={tokens})
output = model.generate(**inputs, generation_config=settings)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
"""
_WHOLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

path = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
"""
_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

path = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
base = AutoModelForCausalLM.from_pretrained({base!r}, dtype="auto")
"""


@dataclass(frozen=True)
class Loading:
    """What has to be known to load an exported folder.

    base: hub name or folder. adapters: of a routed model. rank: of the largest adapter. dtype: of the weights.
    grown: the adapters add tokens that the base has no rows for.
    """

    kind: Kind
    chat: ChatFormat
    base: str
    adapters: tuple[str, ...] = ()
    rank: int = 0
    dtype: str = "float32"
    grown: bool = False


def usage(how: Loading, tokens: int) -> str:
    """The section on use. tokens: of the longest response that was trained."""
    loads = _WHOLE if how.kind == "whole" else _ADAPTER.format(base=how.base)
    if how.grown:
        loads += "base.resize_token_embeddings(len(tokenizer))  # it has no rows for the tokens that were added\n"
    if how.kind == "adapter":
        loads += "model = PeftModel.from_pretrained(base, path)\n"
    if how.kind == "routed":
        loads += f"model = PeftModel.from_pretrained(base, path, subfolder={how.adapters[0]!r})  # one of them, alone\n"
    by = "transformers" if how.kind == "whole" else "PEFT"
    parts = [
        f"With {by}:\n\n```python\n{loads}{_GENERATE.format(tokens=tokens)}```",
        "Not with vLLM, which takes no adapter that adds tokens: export with `--merge` for it."
        if how.grown
        else f"With vLLM:\n\n```sh\n{serve_command(how)}\n```",
        "With unbraid, which reads `recipe.yaml`:\n\n```sh\nunbraid serve .\nunbraid chat .\n```",
    ]
    if how.kind == "routed":
        parts.insert(
            0,
            "**Together the adapters need unbraid**: stock PEFT and stock vLLM know no routing by token, and load each "
            "adapter alone, for study. `unbraid serve` runs vLLM with unbraid's plugin, which routes; in transformers' "
            "`generate` `unbraid.trl.route_model` does. They cannot be merged: a merged weight acts on all tokens.",
        )
    return "\n\n".join(parts)


def serve_command(how: Loading, path: str = ".") -> str:
    """The line that serves the folder by vLLM as it is published, without unbraid."""
    reading, _, _ = parsers(how.chat)
    # By itself vLLM would serve weights in float32 in a shorter type.
    flags = [f"--dtype={'float32' if how.dtype == 'float64' else how.dtype}", *reading]
    if how.kind == "whole":
        return "vllm serve " + " ".join(map(shlex.quote, [path, *flags]))
    loaded = [f"{name}={path}/{name}" for name in how.adapters] if how.kind == "routed" else [f"tuned={path}"]
    flags += [
        f"--tokenizer={path}", f"--chat-template={path}/chat_template.jinja", f"--generation-config={path}",
        "--enable-lora", f"--max-lora-rank={lora_rank(how.rank)}", "--lora-modules", *loaded,
    ]  # fmt: skip
    return "vllm serve " + " ".join(map(shlex.quote, [how.base, *flags]))
