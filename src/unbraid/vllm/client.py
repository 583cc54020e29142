"""One vLLM server, spoken to over HTTP: token ids in, token ids and log-probs out."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unbraid.errors import MissingExtraError, ServerError
from unbraid.vllm.routes import WRITTEN

if TYPE_CHECKING:
    from aiohttp import ClientSession

ADMIN_SECONDS = 600.0
"""Longest wait for anything but a response: weights of a large model take their time."""
NO_LOGPROB = -9999.0
"""What vLLM writes for −inf and NaN."""
MOST_QUOTED = 300
"""Characters of a server's complaint that are passed on."""


class UnavailableError(ServerError):
    """No answer, or one that says nothing about the request: the same request may succeed elsewhere, or later."""


class RefusedError(ServerError):
    """The server understood and said no: asking again is of no use. `status`: of HTTP, 4xx."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Generated:
    """One response. ids: what was drawn, the stop token included. logprobs: one per id, in nats, of the distribution
    drawn from (temperature included; greedy: T = 1). stopped: at a stop token, not at the budget.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


def open_session() -> "ClientSession":
    """A session for any number of clients, in the running event loop; close it.

    Raises:
        MissingExtraError: without aiohttp.
    """
    try:
        import aiohttp
    except ImportError as error:
        raise MissingExtraError("sampling from vLLM needs aiohttp: pip install 'unbraid[vllm]'") from error
    key = os.environ.get("VLLM_API_KEY", "")
    # No limit on connections: whoever opens contexts counts them. Proxies of the environment are left out.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


class Client:
    """A server at `url`, such as `http://localhost:8000`.

    Args:
        seconds: longest wait for one response.
    """

    def __init__(self, url: str, session: "ClientSession", seconds: float = 600.0):
        self.url, self._session, self._seconds = url.rstrip("/"), session, seconds

    async def generate(
        self,
        ids: Sequence[int],
        *,
        model: str,
        temperature: float,
        max_tokens: int,
        seed: int | None,
        stop_ids: Sequence[int],
        salt: str,
        written: Sequence[Sequence[int]] | None = None,
    ) -> Generated:
        """Draw one response after `ids`.

        Args:
            model: name of the base or of an adapter. seed: of this request's own stream; None takes the server's.
            salt: requests share what the server remembers of a beginning only with others of the same salt.
            written: the [start, end) stretches of `ids` that the model wrote; None where nothing is routed by it.

        Raises:
            UnavailableError: the server died, timed out or gave up. ServerError: it refuses the request.
        """
        sampling = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
            "stop_token_ids": list(stop_ids),
            # The model's own end of sequence stops us only if the chat format says so.
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
        }
        choice = await self._generate(ids, model, sampling, salt, written)
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length"):
            raise UnavailableError(f"{self.url}: the response was ended by the server ({reason})")
        try:
            content = choice["logprobs"]["content"]
            drawn, logprobs = tuple(choice["token_ids"]), tuple(float(token["logprob"]) for token in content)
        except (KeyError, TypeError) as error:
            raise ServerError(f"{self.url}: the answer has no {error}: is it a vLLM of a supported version?") from error
        if not drawn or len(drawn) != len(logprobs):
            raise ServerError(f"{self.url}: {len(drawn)} tokens came with {len(logprobs)} log-probs")
        if not min(logprobs) > NO_LOGPROB:
            raise ServerError(f"{self.url}: a token was drawn without a log-prob: the model computes NaN, or overflows")
        return Generated(drawn, logprobs, reason == "stop")

    async def next_logprobs(
        self,
        ids: Sequence[int],
        wanted: Sequence[int],
        *,
        model: str,
        temperature: float,
        salt: str,
        written: Sequence[Sequence[int]] | None = None,
    ) -> list[float]:
        """Log-probs of `wanted` as the next token after `ids`. written, errors: as for `generate`."""
        # One id more than wanted: the sampled token takes the place of the last one asked for.
        extra = next(i for i in range(len(wanted) + 1) if i not in wanted)
        asked = [*wanted, extra]
        sampling = {
            "temperature": temperature or 1.0,
            "max_tokens": 1,
            "logprobs": len(asked),
            "logprob_token_ids": asked,
            "ignore_eos": True,
            "detokenize": False,
        }
        choice = await self._generate(ids, model, sampling, salt, written)
        try:
            (content,) = choice["logprobs"]["content"]
            found = {token["token_id"]: float(token["logprob"]) for token in content["top_logprobs"]}
            return [found[token] for token in wanted]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self.url}: the log-probs of {list(wanted)} did not come back ({error!r})") from error

    async def _generate(
        self,
        ids: Sequence[int],
        model: str,
        sampling: dict[str, Any],
        salt: str,
        written: Sequence[Sequence[int]] | None,
    ) -> Mapping[str, Any]:
        if written is not None:
            sampling["extra_args"] = {WRITTEN: [list(span) for span in written]}
        body = {"token_ids": list(ids), "sampling_params": sampling, "model": model, "cache_salt": salt}
        answer = await self._post("/inference/v1/generate", body, self._seconds)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != 1:
            raise ServerError(f"{self.url}: answers without a choice: is it a vLLM of a supported version?")
        return choices[0]

    async def load_adapter(self, name: str, folder: str) -> None:
        """Make an adapter known under a name that was never used before. Raises as `generate` does."""
        try:
            await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, ADMIN_SECONDS)
        except RefusedError as problem:
            # The name is new, so it was an earlier attempt, whose answer did not arrive, that loaded it.
            if "already been loaded" not in str(problem):
                raise

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter, if it is there. Raises as `generate` does."""
        try:
            await self._post("/v1/unload_lora_adapter", {"lora_name": name}, ADMIN_SECONDS)
        except RefusedError as problem:
            if problem.status != 404:  # a server that was started again never had it
                raise

    async def load_weights(self, folder: str) -> None:
        """Replace all weights by those in a folder that the server can read. Raises as `generate` does.

        These are vLLM's own routes for weight transfer; the transport is ours (`weight_engine.py`).
        """
        await self._post("/pause?mode=wait", {}, ADMIN_SECONDS)
        await self._post("/start_weight_update", {}, ADMIN_SECONDS)
        await self._post("/update_weights", {"update_info": {"folder": folder}}, ADMIN_SECONDS)
        await self._post("/finish_weight_update", {}, ADMIN_SECONDS)
        await self._post("/resume", {}, ADMIN_SECONDS)

    async def sleep(self) -> None:
        """Give the device's memory back: weights go to host memory, keys and values are forgotten."""
        await self._post("/sleep?level=1", {}, ADMIN_SECONDS)

    async def wake(self) -> None:
        """Take the device's memory again."""
        await self._post("/wake_up", {}, ADMIN_SECONDS)

    async def healthy(self) -> bool:
        """Whether it answers at all."""
        import aiohttp

        try:
            async with asyncio.timeout(5), self._session.get(self.url + "/health") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def facts(self) -> tuple[str, int]:
        """(version, longest context in tokens). Raises as `generate` does."""
        version = await self._request("GET", "/version", None, 30)
        models = await self._request("GET", "/v1/models", None, 30)
        try:
            return str(version["version"]), int(models["data"][0]["max_model_len"])
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ServerError(f"{self.url}: is no vLLM server (no {error}): give sampler.urls of vLLM") from error

    async def _post(self, path: str, body: Mapping[str, Any], seconds: float) -> Any:
        return await self._request("POST", path, body, seconds)

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
        import aiohttp

        try:
            async with asyncio.timeout(seconds):
                async with self._session.request(method, self.url + path, json=body) as response:
                    # vLLM answers some routes with text, some with nothing.
                    content: Any = await response.read()
                    if response.content_type == "application/json":
                        content = await response.json()
                    if response.status == 200:
                        return content
        except TimeoutError as error:
            raise UnavailableError(f"{self.url}{path}: no answer within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise UnavailableError(f"{self.url}{path}: {said}") from error
        complaint = f"{self.url}{path}: {response.status}: {_said(content)}"
        # A dead engine answers 500, a server that is starting or overloaded 503 or 429.
        may_pass = response.status >= 500 or response.status == 429
        raise UnavailableError(complaint) if may_pass else RefusedError(complaint, response.status)


def _said(content: Any) -> str:
    error = content.get("error", content) if isinstance(content, dict) else content
    text = error.get("message", error) if isinstance(error, dict) else error
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return " ".join(text.split())[:MOST_QUOTED]
