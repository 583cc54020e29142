"""A chat-completions server that knows BFCL's answers: it replays the right calls, or spoils them on purpose.

What it scores is known beforehand, so it tells whether anything is lost between a server and the official score.
"""

import ast
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from unbraid.bench.bfcl.agreement import ast_tasks, official_line
from unbraid.bench.bfcl.installation import Installation, errand
from unbraid.bench.bfcl.run import category_of
from unbraid.serve.retriever import listen

TEXT = "There is nothing to call."


class Gold:
    """The files of an installed harness: questions, functions and right answers by id."""

    def __init__(self, installation: Installation):
        self.installation, data = installation, installation.data
        self.questions = _rows(data.glob("BFCL_*.json"))
        self.answers = {name: row["ground_truth"] for name, row in _rows((data / "possible_answer").iterdir()).items()}
        documents = [json.loads(line) for file in (data / "multi_turn_func_doc").iterdir() for line in _lines(file)]
        self.parameters = {one["name"]: list(one["parameters"]["properties"]) for one in documents}
        self.tasks = {task.extra["id"]: task for task in ast_tasks(installation)}

    def calls(self, name: str, turn: int = 0) -> list[dict[str, dict[str, Any]]] | None:
        """The right calls of a turn, none where there is nothing to call; None where any call is right."""
        category = category_of(name)
        if "relevance" in category:
            return [] if "irrelevance" in category else None
        if category.startswith("multi_turn"):
            return [self._parsed(text) for text in self.answers[name][turn]]
        return self.line(name)["calls"] if name in self.tasks else []

    def line(self, name: str) -> dict[str, Any]:
        """The right calls of one turn, as the errand `check` is asked about them."""
        made = [{call.name: call.arguments} for call in self.tasks[name].expected]
        return official_line(self.tasks[name], made, self.questions[name]["function"])

    def _parsed(self, text: str) -> dict[str, dict[str, Any]]:
        """`f('a', b=1)` with arguments by name."""
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        name = ast.unparse(call.func)
        named = dict(zip(self.parameters[name], map(ast.literal_eval, call.args), strict=False))
        return {name: named | {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}}


def predicted(gold: Gold, names: Sequence[str]) -> dict[str, bool]:
    """What an oracle that spoils nothing scores: the official checker, asked directly about the answers it gives."""
    known = [name for name in names if name in gold.tasks]
    categories = sorted({category_of(name) for name in known})
    verdicts = errand(gold.installation, "check", {"categories": categories}, calls=map(gold.line, known))
    said = {name: verdict["right"] for name, verdict in zip(known, verdicts, strict=True)}
    # Two questions are such that our reader refuses them; the oracle has nothing to say there.
    return {name: said.get(name, name not in gold.answers or name.startswith("multi_turn")) for name in names}


class Oracle:
    """Answers by the id in the request's trace header. spoilt: entries whose first answer is made wrong.

    asked: how often each entry's first request was answered. fails: so many requests get a 503 first. dies_after: from
    then on all do.
    """

    def __init__(self, gold: Gold, spoilt: Callable[[str], bool] = lambda name: False, thinks: bool = False):
        self.gold, self.spoilt, self.thinks = gold, spoilt, thinks
        self.asked: dict[str, int] = {}
        self.bodies: list[dict[str, Any]] = []
        self.fails = 0
        self.dies_after: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address, up to /v1."""
        card = {"id": "oracle", "object": "model", "owned_by": "tests"}
        routes = [
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/models", lambda request: JSONResponse({"object": "list", "data": [card]})),
        ]
        listening = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="critical", timeout_keep_alive=60))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
            listening.close()

    async def _complete(self, request: Request) -> JSONResponse:
        name = request.headers["x-request-id"].split("/")[1]
        body = await request.json()
        with self._lock:
            self.fails -= self.fails > 0
            if self.fails or (self.dies_after is not None and len(self.bodies) >= self.dies_after):
                return JSONResponse({"error": {"message": "busy"}}, 503)
            first = not any(one["role"] == "assistant" for one in body["messages"])
            self.asked[name] = self.asked.get(name, 0) + first
            self.bodies.append(body)
        return JSONResponse(_completion(self._answer(name, body), self.thinks))

    def _answer(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        messages, prompting = body["messages"], "tools" not in body
        said = [one for one in messages if one["role"] == "user" and not one["content"].startswith("[{'role': 'tool'")]
        asked = self.gold.questions[name.split(":")[-1]]["question"]
        turn = len(said) - sum(one["role"] == "user" for one in asked[0])
        if messages[-1] is not said[-1]:  # the results of this turn's calls
            return {"content": TEXT}
        calls = self.gold.calls(name.split(":")[-1], turn)
        if self.spoilt(name) and turn == self._first_turn(name):
            calls = _spoilt(calls)
        if calls is None:
            calls = [{"anything": {}}]
        if not calls:
            return {"content": TEXT}
        if prompting:
            texts = [f"{called}({_arguments(given)})" for one in calls for called, given in one.items()]
            return {"content": "[" + ", ".join(texts) + "]"}
        return {"tool_calls": [_wire(i, *next(iter(one.items()))) for i, one in enumerate(calls)]}

    def _first_turn(self, name: str) -> int:
        """The first turn in which anything is to be called."""
        if not name.startswith("multi_turn"):
            return 0
        return next(turn for turn, calls in enumerate(self.gold.answers[name]) if calls)


def _spoilt(calls: list[dict[str, dict[str, Any]]] | None) -> list[dict[str, dict[str, Any]]]:
    """Calls where there should be none, none where there should be some."""
    return [] if calls is None or calls else [{"anything": {}}]


def _arguments(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in given.items())


def _wire(place: int, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    # As the harness's tools for OpenAI's API, names have no dots.
    function = {"name": name.replace(".", "_"), "arguments": json.dumps(arguments)}
    return {"id": f"call{place:05d}", "type": "function", "function": function}


def _completion(answer: Mapping[str, Any], thinks: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "reasoning": "I know this one." if thinks else None, **answer}
    finish = "tool_calls" if "tool_calls" in answer else "stop"
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "oracle", "choices": [choice], "usage": usage,
    }  # fmt: skip


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _rows(files: Any) -> dict[str, dict[str, Any]]:
    lines = [line for file in files for line in _lines(file) if line.startswith('{"id"')]
    return {row["id"]: row for row in map(json.loads, lines)}
