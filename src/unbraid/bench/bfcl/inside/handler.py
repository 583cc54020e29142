"""How BFCL's harness talks to a chat-completions server: its handler for OpenAI's API, with our requests.

Runs in `.venv-bfcl`, by path: it imports bfcl_eval, openai and the standard library, nothing of unbraid.
"""

import sys
import threading
import time
import uuid
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from openai import BadRequestError, UnprocessableEntityError

MODES: dict[str, dict[str, Any]] = {
    "auto": {},
    "think": {"chat_template_kwargs": {"enable_thinking": True}},
    "no_think": {"chat_template_kwargs": {"enable_thinking": False}},
}
"""What a request says beside its messages, as saved chat templates and Qwen3's take it; auto leaves it to the model."""
REFUSALS = (BadRequestError, UnprocessableEntityError)
"""The server will not answer this conversation, ever; most often it is too long."""


FUNCTION = ("name", "description", "parameters")
TRACE = "X-Request-Id"
"""Header by which a server's log can be laid beside the answers: `bfcl/ENTRY/REPLY/…`."""


@dataclass(frozen=True)
class Server:
    """Where requests go, and what they ask for beside messages and tools.

    url: up to `/v1`. retries: of one request, on lost connections, 408, 409, 429 and 5xx; the client waits longer
    every time. seconds: that one answer may take.
    """

    url: str = "http://127.0.0.1:9/v1"
    key: str = "none"
    mode: str = "auto"
    temperature: float = 0.0
    max_tokens: int = 4096
    seed: int | None = None
    retries: int = 5
    seconds: float = 600.0


@dataclass(frozen=True)
class ModelConfig:
    """A row of the harness's table of models, with the fields that it reads."""

    model_name: str
    display_name: str
    model_handler: Any
    is_fc_model: bool
    underscore_to_dot: bool
    url: str = ""
    org: str = ""
    license: str = ""
    input_price: float | None = None
    output_price: float | None = None


def register(row: str, model: str, prompting: bool, server: Server | None = None) -> type:
    """Make the harness know one model, ours, as `row` of its table. Comes before all other imports of bfcl_eval.

    Choice: the table stands in the place of the harness's own, `bfcl_eval.constants.model_config`, which imports the
    clients of twenty vendors to list their models. It is configuration; no file of the package is changed, and what
    checks answers is imported from it as it is.

    Args:
        row: no underscore (the harness takes it for a slash), and no `FC` (it would then call functions natively).
        prompting: functions are described in the prompt and called in text; else they are tools of the API.

    Returns:
        The class of the handler.
    """
    if "_" in row or "FC" in row:
        raise ValueError(f"the row {row!r} holds an underscore or FC, which mean something to the harness")
    table: dict[str, ModelConfig] = {}
    module: Any = ModuleType("bfcl_eval.constants.model_config")
    module.MODEL_CONFIG_MAPPING = table
    sys.modules[module.__name__] = module
    handler = _handler_class(server or Server())
    # Names with dots are sent to OpenAI's API with underscores, and are then checked so.
    table[row] = ModelConfig(model, row, handler, not prompting, underscore_to_dot=not prompting)
    return handler


def _handler_class(server: Server) -> type:
    from bfcl_eval.model_handler.api_inference.openai_completion import (  # pyright: ignore[reportMissingImports]
        OpenAICompletionsHandler,
    )

    class ChatHandler(OpenAICompletionsHandler):
        """The harness's own handler: tools, history and decoding are its; requests and what is kept of them ours."""

        heard = threading.local()
        """The entry that this thread works on: `id`, and `replies`, what it has been answered so far."""

        def _build_client_kwargs(self) -> dict[str, Any]:
            return {
                "base_url": server.url, "api_key": server.key, "timeout": server.seconds, "max_retries": server.retries,
            }  # fmt: skip

        def _compile_tools(self, inference_data: dict[str, Any], test_entry: dict[str, Any]) -> dict[str, Any]:
            """The harness's tools, with what OpenAI's API knows of a function and nothing else, in one order.

            Multi-turn functions describe their results under `response`. OpenAI's API ignores that and vLLM drops it,
            while other servers would show it to the model: so that a prompt is the same everywhere, it is not sent.
            """
            found = super()._compile_tools(inference_data, test_entry)
            for tool in found["tools"]:
                tool["function"] = {key: tool["function"][key] for key in FUNCTION if key in tool["function"]}
            return found

        def _query_FC(self, inference_data: dict[str, Any]) -> tuple[Any, float]:
            return self._ask(inference_data["message"], inference_data["tools"])

        def _query_prompting(self, inference_data: dict[str, Any]) -> tuple[Any, float]:
            return self._ask(inference_data["message"], [])

        def _ask(self, messages: list[Any], tools: list[Any]) -> tuple[Any, float]:
            started = time.monotonic()
            reply = self.client.chat.completions.create(
                model=self.model_name,
                messages=messages,
                temperature=server.temperature,
                max_tokens=server.max_tokens,
                extra_body=MODES[server.mode],
                extra_headers={TRACE: f"bfcl/{self.heard.id}/{len(self.heard.replies)}/{uuid.uuid4().hex[:8]}"},
                **({"tools": tools} if tools else {}),
                **({} if server.seed is None else {"seed": server.seed}),
            )
            seconds = time.monotonic() - started
            self.heard.replies.append(kept(reply, seconds))
            return reply, seconds

        def _parse_query_response_FC(self, api_response: Any) -> dict[str, Any]:
            return self._without_thought(super()._parse_query_response_FC(api_response), api_response)

        def _parse_query_response_prompting(self, api_response: Any) -> dict[str, Any]:
            return self._without_thought(super()._parse_query_response_prompting(api_response), api_response)

        def _without_thought(self, found: dict[str, Any], api_response: Any) -> dict[str, Any]:
            """Earlier thinking is not shown again: neither are models trained to see it, nor do templates show it."""
            message = api_response.choices[0].message
            said: dict[str, Any] = {"role": "assistant", "content": message.content or ""}
            if message.tool_calls:
                said["tool_calls"] = [_call(call) for call in message.tool_calls]
            return {
                **found,
                "model_responses_message_for_chat_history": said,
                "reasoning_content": thought_of(message) or "",
            }

    return ChatHandler


def kept(reply: Any, seconds: float) -> dict[str, Any]:
    """What is written down of one answer: as the server gave it, and what it took."""
    choice, usage = reply.choices[0], reply.usage
    return {
        "reasoning": thought_of(choice.message),
        "content": choice.message.content,
        "tool_calls": [_call(call) for call in choice.message.tool_calls or []],
        "finish": choice.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": round(seconds, 3),
    }


def thought_of(message: Any) -> str | None:
    """What the model thought, "" if nothing; None where the server does not tell."""
    told = [getattr(message, name) or "" for name in ("reasoning", "reasoning_content") if hasattr(message, name)]
    return max(told, key=len) if told else None


def _call(call: Any) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}
