"""Real vLLM servers: every token of a routed request runs through the adapter of its route, whatever vLLM does with it.

What is drawn is held against a Hugging Face model with hooks and a router of loops (`routed_adapters`), and against
mistaken ones: a test that these passed would notice nothing.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from routed_adapters import (
    CALL,
    END_CALL,
    END_SQL,
    END_TURN,
    SQL,
    TURN,
    Reference,
    make_adapters,
    make_model,
    make_router,
    naive_routes,
)
from vllm_servers import Counters, ask, chunk_of, serving

from unbraid.errors import ServerError
from unbraid.tokens import Router, Turns, written_mask, written_spans
from unbraid.vllm.client import Client, Generated, RefusedError
from unbraid.vllm.server import Server

pytestmark = pytest.mark.vllm

LARGEST = 1e-4
"""Of |Δ log-prob| in float32, nats."""
BLOCK, CHUNK = 32, 96
TIGHT = (
    f"--block-size={BLOCK}", f"--max-num-batched-tokens={CHUNK}", "--max-num-seqs=32", "--num-gpu-blocks-override=24",
    "--max-loras=3", "--max-cpu-loras=6",
)  # fmt: skip
"""Prompts arrive in chunks, running requests are preempted, and two routed adapters of two do not fit together."""
ROUTERS: dict[str, Router] = {
    "paper": make_router(),
    "three": make_router(sql="query", context=None),
    "shifted": make_router(boundary="shifted", turns=Turns((TURN, 7), (END_TURN,))),
}


@dataclass(frozen=True)
class Asked:
    """A request: the name of what is asked, the prompt, and what of it the model wrote."""

    model: str
    ids: tuple[int, ...]
    written: tuple[bool, ...]


@dataclass(frozen=True)
class Setting:
    """A server with everything loaded, and a reference for each name."""

    server: Server
    references: dict[str, Reference]

    def draw(self, requests: Sequence[Asked], tokens: int, salt: str) -> list[Generated]:
        """Ask for all of it at once."""

        async def all_of_it(client: Client) -> list[Generated]:
            return await asyncio.gather(*(self._one(client, one, tokens, salt) for one in requests))

        return ask(self.server, all_of_it)

    def _one(self, client: Client, one: Asked, tokens: int, salt: str) -> Any:
        told = written_spans(one.written) if one.model in ROUTERS else None
        asked: dict[str, Any] = {"temperature": 1.0, "max_tokens": tokens, "seed": None, "stop_ids": ()}
        return client.generate(one.ids, model=one.model, salt=salt, written=told, **asked)

    def gap(self, asked: Asked, drawn: Generated, routes: NDArray[np.int8]) -> float:
        """Largest |Δ log-prob| between what was drawn and a reference with these routes."""
        full = [*asked.ids, *drawn.ids]
        own = self.references[asked.model].logprobs(full, routes, len(asked.ids))
        return float(np.abs(own - drawn.logprobs).max())

    def routes(self, asked: Asked, drawn: Generated) -> NDArray[np.int8]:
        """As they should be, by the loops; base and plain adapters have one."""
        full, written = [*asked.ids, *drawn.ids], [*asked.written, *[True] * len(drawn.ids)]
        if asked.model not in ROUTERS:
            return np.full(len(full), -1 if asked.model == "base" else 0, dtype=np.int8)
        return naive_routes(full, written, ROUTERS[asked.model])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("routed")
    make_model(made / "model")
    for seed, (name, router) in enumerate(ROUTERS.items()):
        make_adapters(made / "model", made / name, router, rank=4, seed=seed)
    return made


@pytest.fixture(scope="module")
def setting(folder: Path) -> Iterator[Setting]:
    model = folder / "model"
    references = {name: Reference(model, folder / name, router) for name, router in ROUTERS.items()}
    references |= {"base": references["paper"], "plain": references["paper"]}
    with serving(model, folder, tokens=384, rank=8, routed=2, flags=TIGHT) as server:
        for name in ROUTERS:
            ask(server, lambda client, name=name: client.load_adapter(name, str(folder / name)))
        ask(server, lambda client: client.load_adapter("plain", str(folder / "paper" / "reasoning")))
        yield Setting(server, references)


def random_request(model: str, rng: np.random.Generator) -> Asked:
    """Delimiters everywhere, in random stretches of the model's and of others."""
    length = int(rng.integers(1, 40)) if rng.random() < 0.7 else int(rng.integers(CHUNK, 300))
    ids = rng.integers(3, 30, size=length)
    stretches = np.repeat(rng.random(length) < rng.choice([0.0, 0.5]), rng.integers(1, 40))[:length]
    return Asked(model, tuple(ids.tolist()), tuple(stretches.tolist()))


BY_HAND = {
    "stray": ([5, END_CALL, 6, END_SQL], []),
    "stray, written": ([5, END_CALL, 6, END_SQL, 7], [(1, 5)]),
    "nested": ([5, CALL, 6, SQL, 7, END_SQL, CALL, 8, END_CALL, 9], [(1, 10)]),
    "unclosed": ([5, 6, CALL, 8, 9], [(1, 5)]),
    "truncated, then an observation": ([5, 6, CALL, 8, 9, 20, 21, 22, 23], [(1, 5)]),
    "truncated, then an observation and the model": ([5, 6, CALL, 8, 9, 20, 21, 22, 23], [(1, 5), (7, 9)]),
    "delimiters in the prompt": ([CALL, 6, 7, SQL, 8], []),
    "delimiters in an observation": ([5, 6, CALL, 8, END_CALL, 20, CALL, 22, SQL, 23], [(1, 5)]),
    "closing tag at the end": ([5, CALL, 8, END_CALL], [(1, 4)]),
    "opening tag at the end": ([5, 6, SQL], [(1, 3)]),
    "forced prefix opens": ([5, 6, 7, CALL], [(3, 4)]),
    "one token": ([5], []),
    "one token, written": ([SQL], [(0, 1)]),
}


@pytest.fixture(scope="module")
def drawn(setting: Setting) -> list[tuple[Asked, Generated]]:
    """More than 500 routed requests at once, with plain ones and ones to the base among them."""
    rng = np.random.default_rng(0)
    requests = [random_request(name, rng) for name in ROUTERS for _ in range(160)]
    for name in ROUTERS:
        for ids, spans in BY_HAND.values():
            requests.append(Asked(name, tuple(ids), tuple(written_mask(len(ids), spans).tolist())))
    assert len(requests) >= 500
    requests += [random_request(name, rng) for name in ("plain", "base") for _ in range(20)]
    rng.shuffle(requests)
    return list(zip(requests, setting.draw(requests, 16, "all"), strict=True))


def test_every_log_prob_is_the_reference(setting: Setting, drawn: list[tuple[Asked, Generated]]):
    gaps = [setting.gap(asked, got, setting.routes(asked, got)) for asked, got in drawn]
    print(f"{len(gaps)} sequences, largest |Δ log-prob| {max(gaps):.2g} nats")
    assert max(gaps) <= LARGEST
    counters = Counters.of(setting.server)
    assert chunk_of(setting.server) == CHUNK and max(len(asked.ids) for asked, _ in drawn) > 2 * CHUNK
    assert counters.preemptions > 0
    used = {int(one) for asked, got in drawn for one in setting.routes(asked, got)[len(asked.ids) :]}
    assert used >= {-1, 0, 1, 2}


def never_reset(router: Router, ids: Sequence[int], written: Sequence[bool], start: int) -> NDArray[np.int8]:
    """A span left open where the model stopped goes on after what a tool said."""
    mine = [place for place in range(len(ids)) if written[place]]
    routes = naive_routes(ids, written, router)
    if mine:
        unbroken = naive_routes([ids[place] for place in mine], [True] * len(mine), router)
        for place, route in zip(mine, unbroken, strict=True):
            if place + 1 == len(ids) or written[place + 1]:
                routes[place] = route
    return routes


MISTAKES: dict[str, Callable[[Router, list[int], list[bool], int], NDArray[np.int8]]] = {
    "one late": lambda router, ids, written, start: naive_routes(ids, written, router, shift=1),
    "after a closing tag": lambda router, ids, written, start: naive_routes(ids, written, router, sticky=True),
    "state not reset": never_reset,
    "everything written": lambda router, ids, written, start: naive_routes(ids, [True] * len(ids), router),
    "nothing written": lambda router, ids, written, start: naive_routes(
        ids, [place >= start for place in range(len(ids))], router
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_router_would_be_noticed(setting: Setting, drawn: list[tuple[Asked, Generated]], mistake: str):
    caught = 0
    for asked, got in [one for one in drawn if one[0].model in ("paper", "three")]:
        full, written = [*asked.ids, *got.ids], [*asked.written, *[True] * len(got.ids)]
        wrong = MISTAKES[mistake](ROUTERS[asked.model], full, written, len(asked.ids))
        if (wrong[:-1] != setting.routes(asked, got)[:-1]).any():
            caught += setting.gap(asked, got, wrong) > 100 * LARGEST
    print(f"{mistake}: {caught} sequences")
    assert caught >= 5


@pytest.mark.parametrize("name", ["paper", "three"])
def test_remembered_beginnings_are_shared_where_routes_agree_and_nowhere_else(setting: Setting, name: str):
    rng = np.random.default_rng(1)
    ids = tuple(rng.integers(3, 30, size=6 * BLOCK).tolist())

    def provenance(*spans: tuple[int, int]) -> Asked:
        return Asked(name, ids, tuple(written_mask(len(ids), spans).tolist()))

    first = provenance((BLOCK + 5, 5 * BLOCK))
    others = [
        provenance((BLOCK + 5, 4 * BLOCK)),
        provenance(),
        provenance((BLOCK + 5, 4 * BLOCK), (5 * BLOCK, 6 * BLOCK)),
    ]
    (got,) = setting.draw([first], 12, f"shared-{name}")
    right = setting.routes(first, got)
    assert setting.gap(first, got, right) <= LARGEST
    for other in [first, *others]:
        before = Counters.of(setting.server).hits
        (got,) = setting.draw([other], 12, f"shared-{name}")
        routes = setting.routes(other, got)
        assert setting.gap(other, got, routes) <= LARGEST
        agree = int(np.argmin(np.append(routes[: len(ids)] == right[: len(ids)], False)))
        shared = Counters.of(setting.server).hits - before
        if other is first:
            assert shared >= (len(ids) - 1) // BLOCK * BLOCK
        else:
            # What is remembered may also be that of another of these requests; it is never more than what agrees.
            assert shared >= agree // BLOCK * BLOCK > 0
            stale = np.concatenate([right[: 5 * BLOCK], routes[5 * BLOCK :]])
            assert setting.gap(other, got, stale) > 100 * LARGEST, "a stale cache would be noticed"


def test_the_next_turn_goes_on_from_what_was_generated(setting: Setting):
    """Turn after turn over keys and values that decoding left, with provenance told as a trainer tells it."""
    rng, salt = np.random.default_rng(2), "turns"
    ids, written = rng.integers(3, 30, size=70).tolist(), [False] * 70
    before = Counters.of(setting.server).hits
    for _ in range(4):
        asked = Asked("paper", tuple(ids), tuple(written))
        (got,) = setting.draw([asked], 40, salt)
        assert setting.gap(asked, got, setting.routes(asked, got)) <= LARGEST
        observation = rng.integers(3, 30, size=9).tolist()
        ids += [*got.ids, *observation]
        written += [True] * len(got.ids) + [False] * len(observation)
    assert Counters.of(setting.server).hits - before >= (64 + 96 + 160), "blocks that hold generated tokens are found"


@pytest.mark.parametrize(
    "told", ['"2, 3"', "[3, 4]", "[[3]]", "[[0, 99]]", "[[4, 2]]", "[[-1, 2]]", '[["a", "b"]]', "[[0, 1.5]]", "{}", "7"]
)
def test_malformed_provenance_is_refused_in_one_line(setting: Setting, told: str):
    body = {"model": "paper", "token_ids": [3, 4, 5, 6], "sampling_params": {"extra_args": {}, "max_tokens": 1}}
    body["sampling_params"]["extra_args"]["unbraid_written"] = json.loads(told)
    with pytest.raises(RefusedError, match=r"written stretch|unbraid_written is .*give \[\[start, end\)") as refused:
        ask(setting.server, lambda client: client._post("/inference/v1/generate", body, 60))
    assert "\n" not in str(refused.value)


def complete(server: Server, model: str, ids: Sequence[int], **more: Any) -> tuple[list[int], list[float]]:
    """Stock OpenAI completions: (ids, log-probs) of 12 tokens."""
    body = {"model": model, "prompt": list(ids), "max_tokens": 12, "logprobs": 1, "return_token_ids": True, **more}
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        choice = json.load(answer)["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


@pytest.mark.parametrize("way", ["told", "turns", "nothing"])
def test_clients_of_openai(setting: Setting, way: str):
    """Provenance as JSON in `vllm_xargs`, from turn markers in the prompt, or none."""
    ids = [5, CALL, 6, TURN, 7, 8, CALL, 9, 20, END_TURN, 21, SQL, TURN, 7, 22, SQL]
    spans = {"told": [(3, 9)], "turns": [(5, 10), (14, 16)], "nothing": []}[way]
    model = "shifted" if way == "turns" else "paper"
    more = {"vllm_xargs": {"unbraid_written": json.dumps(spans)}} if way == "told" else {}
    drawn, logprobs = complete(setting.server, model, ids, **more)
    got = Generated(tuple(drawn), tuple(logprobs), stopped=False)
    asked = Asked(model, tuple(ids), tuple(written_mask(len(ids), spans).tolist()))
    assert setting.gap(asked, got, setting.routes(asked, got)) <= LARGEST
    if spans:
        blank = Asked(model, tuple(ids), tuple([False] * len(ids)))
        assert setting.gap(asked, got, setting.routes(blank, got)) > 100 * LARGEST


def test_what_cannot_be_routed_is_refused(setting: Setting, folder: Path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        complete(setting.server, "paper", [5, 6], use_beam_search=True, n=2, temperature=0)
    assert refused.value.code == 400 and b"beams" in refused.value.read()
    body = {"lora_name": "paper", "lora_path": str(folder / "paper"), "load_inplace": True}
    with pytest.raises(RefusedError, match="load the new one under a new name"):
        ask(setting.server, lambda client: client._post("/v1/load_lora_adapter", body, 60))


def test_a_server_of_ordinary_adapters_refuses_routed_ones(folder: Path, tmp_path: Path):
    """Ordinary adapters are served as ever, the routed one is not."""
    with serving(folder / "model", tmp_path, tokens=64, rank=8) as server:
        with pytest.raises(RefusedError, match=r"400: .*start vLLM with --max-loras=2"):
            ask(server, lambda client: client.load_adapter("paper", str(folder / "paper")))
        reference = Reference(folder / "model", folder / "paper", ROUTERS["paper"])
        check_alone(server, folder, reference)


def test_each_adapter_alone_loads_in_vllm_without_us(folder: Path, tmp_path: Path):
    off = {"VLLM_PLUGINS": ""}
    with serving(folder / "model", tmp_path, tokens=64, rank=8, variables=off) as server:
        check_alone(server, folder, Reference(folder / "model", folder / "paper", ROUTERS["paper"]))
        with pytest.raises(ServerError, match="No adapter found"):
            ask(server, lambda client: client.load_adapter("paper", str(folder / "paper")))


def check_alone(server: Server, folder: Path, reference: Reference) -> None:
    for number, name in enumerate(["reasoning", "action"]):
        ask(server, lambda client, name=name: client.load_adapter(name, str(folder / "paper" / name)))
        asked = Asked("paper", (5, CALL, 6), (False, True, True))
        (got,) = Setting(server, {name: reference}).draw([Asked(name, *asked_parts(asked))], 12, "alone")
        routes = np.full(len(asked.ids) + len(got.ids), number, dtype=np.int8)
        assert Setting(server, {"paper": reference}).gap(asked, got, routes) <= LARGEST


def asked_parts(asked: Asked) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    return asked.ids, asked.written


def test_what_routes_wrongly_is_refused_at_the_start(folder: Path, tmp_path: Path):
    """Speculative decoding; async scheduling is another such thing, which vLLM's build for CPUs never has."""
    guess = json.dumps({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2})
    flags = [f"--speculative-config={guess}"]
    guessing = serving(folder / "model", tmp_path, tokens=64, rank=8, routed=2, flags=flags)
    with pytest.raises(ServerError, match="routed adapters cannot be served with speculative decoding"), guessing:
        pass
