"""Answers in every preset and call format, and what vLLM's parsers make of them: two halves, one for each interpreter.

python vllm_parsers.py cases FILE   writes answers, and which parsers their plan names (needs unbraid)
python vllm_parsers.py read FILE    reads them with these parsers and prints {"read": N, "wrong": [...]} (needs vLLM)
"""

import json
import sys
from pathlib import Path
from typing import Any

NO_MODE_WORD = {"auto": {}, "think": {"enable_thinking": True}, "no_think": {"enable_thinking": False}}
PIECES = (1, 3, 1000)
"""Tokens that arrive together."""


def cases(file: Path) -> None:
    """Write the answers with what is to be read in them."""
    from tiny import MESSAGES, SEARCH_TAGS, tiny_tokenizer

    from unbraid.chat.format import ChatConfig, ChatFormat
    from unbraid.chat.preset import PRESETS, Preset
    from unbraid.chat.types import Answer, Call, Mode
    from unbraid.serve.run_flags import parsers

    calls = (Call("get_weather", {"city": 'a "b" }; {c </x>', "days": 3}), Call("add", {"a": [1, {"b": "é\n}\n{"}]}))
    own = Preset(think="<think>\n", after_thought="\n</think>\n\n", no_think="[direct]\n")
    found: list[dict[str, Any]] = []
    for number, preset in enumerate((*PRESETS, own)):
        for form in ("hermes", "json_list", "toolrl", "llama", "search"):
            chat = ChatFormat.build(tiny_tokenizer(tags=SEARCH_TAGS), ChatConfig(preset=preset, call_format=form))
            flags, template, _ = parsers(chat)
            tokenizer = file.parent / f"{number}-{form}"
            prompts = {
                mode: chat.encode(chat.render(MESSAGES)) + list(chat.prefix_ids(Mode(mode))) for mode in NO_MODE_WORD
            }
            chat.tokenizer.response_template = template
            chat.save(tokenizer)
            for some in ((), calls[:1], calls):
                for content in ("", "Sunny < 3, [ok]."):
                    if (form == "search" and (some or not content)) or not (some or content):
                        continue
                    for thinks in (True, False):
                        mode = Mode.THINK if thinks else Mode.NO_THINK
                        thought = "The user asks.\nSo?" if thinks else ""
                        ids = chat.response_ids(Answer(mode, thought, some, content))
                        shown = f"<answer>{content}</answer>" if form == "search" else content
                        for asked in ("auto", mode.value):
                            prefix = len(chat.prefix_ids(mode)) if asked != "auto" else 0
                            options = [NO_MODE_WORD[asked]]
                            if "--reasoning-parser=hf" in flags:  # which sees the prompt, however it came about
                                options.append({"mode": asked})
                            for one in options:
                                found.append(
                                    {
                                        "flags": flags, "tokenizer": str(tokenizer), "prompt": prompts[asked],
                                        "response": ids[prefix:], "options": one, "thought": thought, "content": shown,
                                        "calls": [[call.name, call.arguments] for call in some],
                                    }
                                )  # fmt: skip
    file.write_text(json.dumps(found))


def read(file: Path) -> None:
    """Read them as vLLM's chat route does."""
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import (  # pyright: ignore[reportMissingImports]
        ChatCompletionRequest,
    )
    from vllm.parser.parser_manager import ParserManager  # pyright: ignore[reportMissingImports]

    wrong, count, tokenizers = [], 0, {}
    for case in json.loads(file.read_text()):
        tokenizer = tokenizers.setdefault(case["tokenizer"], None) or AutoTokenizer.from_pretrained(case["tokenizer"])
        tokenizers[case["tokenizer"]] = tokenizer
        named = dict(flag.partition("=")[::2] for flag in case["flags"])
        reader = ParserManager.get_parser(
            tool_parser_name=named.get("--tool-call-parser"),
            reasoning_parser_name=named.get("--reasoning-parser"),
            enable_auto_tools=True,
            tokenizer=tokenizer,
        )
        for pieces in (0, *PIECES):
            tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
            request = ChatCompletionRequest(
                model="m", messages=[{"role": "user", "content": "?"}], tools=[tool], stream=bool(pieces),
                chat_template_kwargs=case["options"],
            )  # fmt: skip
            parser = reader(tokenizer, request.tools, chat_template_kwargs=case["options"])
            # The stop token ends the text: vLLM does not show it.
            got = (_stream if pieces else _whole)(parser, tokenizer, request, case, pieces)
            count += 1
            if got != (case["thought"], case["content"], case["calls"]):
                wrong.append({"case": case["tokenizer"], "options": case["options"], "pieces": pieces, "got": got})
    print(json.dumps({"read": count, "wrong": wrong[:5]}))


Read = tuple[str, str, list[list[Any]]]


def _whole(parser: Any, tokenizer: Any, request: Any, case: dict[str, Any], pieces: int) -> Read:
    parser.set_prompt_token_ids(case["prompt"])
    reasoning, content, calls = parser.parse(tokenizer.decode(case["response"][:-1]), request, enable_auto_tools=True)
    found = [[call.name, json.loads(call.arguments)] for call in calls or []]
    return (reasoning or "").strip(), (content or "").strip(), found


def _stream(parser: Any, tokenizer: Any, request: Any, case: dict[str, Any], pieces: int) -> Read:
    reasoning = content = shown = ""
    calls: dict[int, list[str]] = {}
    ids = case["response"]
    for start in range(0, len(ids), pieces):
        end = min(start + pieces, len(ids))
        text = tokenizer.decode(ids[: min(end, len(ids) - 1)])
        if text.endswith("\ufffd"):  # in the middle of a character: vLLM waits for the rest of it
            text = shown
        delta = parser.parse_delta(
            text[len(shown) :], ids[start:end], request, prompt_token_ids=case["prompt"], finished=end == len(ids)
        )
        shown = text
        if delta:
            reasoning += delta.reasoning or ""
            content += delta.content or ""
            for call in delta.tool_calls or []:
                parts = calls.setdefault(call.index, ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
    return reasoning.strip(), content.strip(), [[name, json.loads(text or "null")] for name, text in calls.values()]


if __name__ == "__main__":
    {"cases": cases, "read": read}[sys.argv[1]](Path(sys.argv[2]))
