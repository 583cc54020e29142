"""A stand-in for a vLLM 0.32 server, in a thread: its routes and its wire, real draws from a real model, and every way
to misbehave.

It remembers keys and values of beginnings by (model name, salt) and, unlike vLLM, never forgets them: who samples new
weights under an old name and salt gets a mixture of both.
"""

import asyncio
import copy
import json
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import peft
import torch
import transformers
from aiohttp import web

GENERATE = "/inference/v1/generate"
BLOCK = 4
"""Beginnings are remembered in blocks of so many tokens."""


@dataclass
class Trouble:
    """What goes wrong with requests to `path`: not with the first `after` of them, then `times` times.

    kind: another `status`; `hang`, no answer; `cut`, half an answer; `die`, the whole server goes; `garbage`, no JSON;
    `abort`, a response that the server gave up.
    """

    kind: Literal["status", "hang", "cut", "die", "garbage", "abort"]
    path: str = GENERATE
    after: int = 0
    times: int = 1
    status: int = 500


class StandIn:
    """One server; `with` starts and ends it. What is changed on it holds from the next request on.

    Args:
        model: what it starts with, under the name `base`; it is copied.
        troubles: what goes wrong. seconds: each response takes at least so long.

    Attributes:
        asked: (path with query, body) of every request so far.
        busy, busiest: responses on their way now, and most of them at once.
        noise: added to every log-prob it tells. factor: of the temperature, 1.0 is honest. stale: new adapters get the
        weights of the last one; they take `loading` seconds. tells: what /version answers.
    """

    def __init__(self, model: Any, *troubles: Trouble, max_tokens: int = 256, seconds: float = 0.0):
        self._base, self.max_tokens, self.seconds = copy.deepcopy(model).eval(), max_tokens, seconds
        self.troubles = list(troubles)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.busy = self.busiest = 0
        self.noise, self.factor, self.stale, self.tells = 0.0, 1.0, False, "0.32.0"
        self.loading = 0.0
        self.adapters: dict[str, Any] = {}
        self._last_adapter: Any = None
        self._remembered: dict[tuple[str, str, tuple[int, ...]], Any] = {}
        self._random = torch.Generator().manual_seed(0)
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._listening: Any = None
        self._grave: socket.socket | None = None
        self.url = ""
        self._paused = self._updating = self.asleep = self._dead = False

    # -- its life --------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen; returns when it does."""
        ready = threading.Event()

        async def listen() -> None:
            self._server = web.Server(self._handle, handler_cancellation=True, access_log=None)
            self._listening = await self._loop.create_server(self._server, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"
            ready.set()

        def live() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(listen())
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

        self._thread = threading.Thread(target=live, daemon=True)
        self._thread.start()
        assert ready.wait(20)
        return self

    def died(self) -> str | None:
        """As `unbraid.vllm.server.Server.died`."""
        return f"vLLM at {self.url} was killed by SIGKILL: it said nothing" if self._dead else None

    def die(self, turns: int = 0) -> None:
        """Go, with every connection, so many turns of the event loop from now; from any thread."""
        self._loop.call_soon_threadsafe(partial(self.die, turns - 1) if turns else self._die)

    def within(self, work: Callable[[], None]) -> None:
        """Do something in the server's thread; returns when it is done."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (work(), done.set()))
        assert done.wait(20)

    def stop(self) -> None:
        """As `unbraid.vllm.server.Server.stop`."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._die)
            self._loop.call_soon_threadsafe(self._bury)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(20)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _die(self) -> None:
        if self._dead:
            return
        self._dead = True
        self._abort()
        # Connections that were accepted but not made yet are known to nobody: they would live on, and be answered. So
        # no more are accepted, and the port closes when those have come up.
        for listening in self._listening.sockets:
            self._loop.remove_reader(listening.fileno())
        self._loop.call_later(0.02, self._bury)

    def _bury(self) -> None:
        self._abort()
        if not self._listening.is_serving():
            return
        address = self._listening.sockets[0].getsockname()
        self._listening.close()
        # The port stays taken, though nobody listens there: another test's server must not answer for this one.
        self._grave = socket.socket()
        self._grave.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._grave.bind(address)

    def _abort(self) -> None:
        for connection in self._server.connections:
            if connection.transport:
                connection.transport.abort()

    # -- what a test wants to know ---------------------------------------------------------------------------------

    def bodies(self, path: str = GENERATE) -> list[dict[str, Any]]:
        """Bodies of the requests to a path so far."""
        return [body for asked, body in self.asked if asked.partition("?")[0] == path]

    def questions(self) -> list[dict[str, Any]]:
        """Bodies of the requests that ask for the probabilities of given tokens."""
        return [body for body in self.bodies() if "logprob_token_ids" in body["sampling_params"]]

    # -- routes ----------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        if self._dead:
            return await _silence()
        self.asked.append((request.path_qs, body))
        trouble = self._next_trouble(request.path)
        if trouble and trouble.kind == "die":
            self._die()
        if trouble and trouble.kind in ("hang", "die"):
            return await _silence()
        if trouble and trouble.kind == "status":
            return _error(trouble.status, "EngineCore encountered an issue.\nSee stack trace (above).")
        if trouble and trouble.kind == "garbage":
            return web.Response(text='{"choices": [', content_type="application/json")
        if request.path == "/v1/load_lora_adapter":
            await asyncio.sleep(self.loading)
        if request.path != GENERATE:
            return self._manage(request, body)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await asyncio.sleep(self.seconds)
            answer = self._generate(body)
        finally:
            self.busy -= 1
        if isinstance(answer, web.Response):
            return answer
        if trouble and trouble.kind == "abort":
            answer["choices"][0]["finish_reason"] = "abort"
        if trouble and trouble.kind == "cut":
            return await _half(request, json.dumps(answer).encode())
        return web.json_response(answer)

    def _next_trouble(self, path: str) -> Trouble | None:
        """What goes wrong with this request."""
        for trouble in self.troubles:
            if trouble.path == path and trouble.times:
                if trouble.after:
                    trouble.after -= 1
                    return None
                trouble.times -= 1
                return trouble
        return None

    def _manage(self, request: web.BaseRequest, body: dict[str, Any]) -> web.Response:
        """Everything but responses. Answers of text, JSON or nothing are vLLM's."""
        path = request.path
        match path:
            case "/health":
                return web.Response()
            case "/version":
                return web.json_response({"version": self.tells})
            case "/v1/models":
                models = [{"id": name, "max_model_len": self.max_tokens} for name in ("base", *self.adapters)]
                return web.json_response({"object": "list", "data": models})
            case "/v1/load_lora_adapter":
                return self._load_adapter(body["lora_name"], body["lora_path"])
            case "/v1/unload_lora_adapter":
                if self.adapters.pop(body["lora_name"], None) is None:
                    return _error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
                return web.Response(text=f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")
            case "/sleep" | "/wake_up":
                self.asleep = path == "/sleep"
            case "/pause" | "/resume":
                if path == "/resume" and self._updating:
                    return _error(500, "a weight update is under way")
                self._paused = path == "/pause"
            case "/start_weight_update":
                self._updating = self._paused
            case "/update_weights" | "/finish_weight_update":
                if not self._updating:
                    return _error(500, "no weight update was started")
                if path == "/finish_weight_update":
                    self._updating = False
                else:
                    folder = body["update_info"]["folder"]
                    self._base = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
            case _:
                return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response({"status": "done"})

    def _load_adapter(self, name: str, folder: str) -> web.Response:
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (self.stale and self._last_adapter):
            self._last_adapter = peft.PeftModel.from_pretrained(copy.deepcopy(self._base), folder).eval()
        self.adapters[name] = self._last_adapter
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    # -- responses -------------------------------------------------------------------------------------------------

    def _generate(self, body: dict[str, Any]) -> dict[str, Any] | web.Response:
        ids, params, name = body["token_ids"], body["sampling_params"], body.get("model", "base")
        if name != "base" and name not in self.adapters:
            return _error(404, f"The model `{name}` does not exist.")
        if self.asleep or self._paused:
            return _error(500, "the engine does not run")
        if len(ids) >= self.max_tokens:
            return _error(400, f"The decoder prompt (length {len(ids)}) is longer than the maximum model length.")
        if not params["max_tokens"] or params["max_tokens"] < 1:
            return _error(400, "max_tokens must be at least 1")
        assert params["ignore_eos"] and params["detokenize"] is False
        content, stopped = self._draw(name, body["cache_salt"], ids, params)
        choice = {
            "index": 0,
            "logprobs": {"content": content},
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": content[-1]["token_id"] if stopped else None,
            "token_ids": [token["token_id"] for token in content],
            "routed_experts": None,
        }
        return {"request_id": "generate-tokens-0", "choices": [choice], "prompt_logprobs": None}

    @torch.inference_mode()
    def _draw(self, name: str, salt: str, ids: list[int], params: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
        """(entries of `logprobs.content`, whether a stop token was drawn)."""
        model = self.adapters.get(name, self._base)
        cache, fed = self._recall(name, salt, ids)
        temperature = params["temperature"] * self.factor
        seed = params.get("seed")
        random = self._random if seed is None else torch.Generator().manual_seed(seed)
        content: list[dict[str, Any]] = []
        feed = ids[fed:]
        for _ in range(min(params["max_tokens"], self.max_tokens - len(ids))):
            logits = model(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True).logits[0, -1]
            if not content:
                self._remember(name, salt, ids, cache)
            logp = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
            drawn = int(torch.multinomial(logp.exp(), 1, generator=random) if temperature else logp.argmax())
            content.append(self._entry(logp, drawn, params))
            if drawn in params.get("stop_token_ids", ()):
                return content, True
            feed = [drawn]
        return content, False

    def _entry(self, logp: torch.Tensor, drawn: int, params: dict[str, Any]) -> dict[str, Any]:
        def one(token: int) -> dict[str, Any]:
            rank = 1 + int((logp > logp[token]).sum())
            return {"token_id": token, "logprob": max(float(logp[token]) + self.noise, -9999.0), "rank": rank}

        # The sampled token comes first, and the list is cut to `logprobs` entries, it included.
        told = list(dict.fromkeys([drawn, *params.get("logprob_token_ids", ())]))[: max(params["logprobs"], 1)]
        return one(drawn) | {"top_logprobs": [one(token) for token in told]}

    def _recall(self, name: str, salt: str, ids: Sequence[int]) -> tuple[Any, int]:
        """(a copy of what is remembered of a beginning, its length); never all of it: the last token gives logits."""
        for blocks in range((len(ids) - 1) // BLOCK, 0, -1):
            if (name, salt, beginning := tuple(ids[: blocks * BLOCK])) in self._remembered:
                return copy.deepcopy(self._remembered[name, salt, beginning]), len(beginning)
        return transformers.DynamicCache(), 0

    def _remember(self, name: str, salt: str, ids: Sequence[int], cache: Any) -> None:
        length = len(ids) // BLOCK * BLOCK
        if length and (name, salt, tuple(ids[:length])) not in self._remembered:
            kept = copy.deepcopy(cache)
            if length < len(ids):  # a negative number: so many go
                kept.crop(length - len(ids))
            self._remembered[name, salt, tuple(ids[:length])] = kept


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "InternalServerError", "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


async def _silence() -> web.Response:
    """No answer: whoever waits for it gives up, or its connection ends."""
    await asyncio.sleep(3600)
    raise AssertionError("somebody waited for an hour")


async def _half(request: web.BaseRequest, answer: bytes) -> web.StreamResponse:
    """The first half of an answer, and then nothing more."""
    response = web.StreamResponse(headers={"Content-Length": str(len(answer)), "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(answer[: len(answer) // 2])
    if request.transport:
        request.transport.close()
    return response
