"""Routes of requests without vLLM: how batches and cached blocks get them, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from routed_adapters import (
    CALL,
    END_CALL,
    END_TURN,
    ROUTERS,
    SQL,
    TURN,
    VOCABULARY,
    lora_of,
    make_router,
    naive_routes,
    save_routed,
)

from unbraid.tokens import Turns
from unbraid.vllm import routed_engine
from unbraid.vllm.routes import (
    FURTHER,
    BatchRoutes,
    RequestRoutes,
    Routed,
    open_routed,
    prompt_written,
    read_routed,
)

# What a request tells.


@pytest.mark.parametrize("told", [[[1, 3], [5, 6]], [(1, 3), (5, 6)], "[[1, 3], [5, 6]]"])
def test_provenance_is_told_as_list_or_json(told: Any):
    mask = prompt_written(make_router(), range(7), told)
    assert np.flatnonzero(mask).tolist() == [1, 2, 5]


def test_what_is_told_comes_before_turn_markers():
    router, ids = make_router(turns=Turns((TURN,), (END_TURN,))), [TURN, 1, 2, END_TURN, 3]
    assert prompt_written(router, ids, None).tolist() == [False, True, True, True, False]
    assert not prompt_written(router, ids, []).any()
    assert not prompt_written(make_router(), ids, None).any()


@pytest.mark.parametrize(
    "told", ["[[1, 2]", "nothing", "7", 7, [3], [[3]], [[1, 2, 3]], [[0, 8]], [[3, 2]], [[-1, 2]], [["0", "1"]],
             [[0, 1.0]], [[True, 2]], {"0": 1}, [None]]
)  # fmt: skip
def test_malformed_provenance_is_refused_in_one_line(told: Any):
    with pytest.raises(ValueError, match=r"give \[") as refused:
        prompt_written(make_router(), range(7), told)
    assert "\n" not in str(refused.value)


# Folders.


def test_a_folder_of_adapters(tmp_path: Path):
    router = ROUTERS["none"]
    routed = open_routed("step-1", 5, str(save_routed(tmp_path / "step", router)))
    assert routed and routed.router.to_json() == router.to_json()
    assert routed.names == ("step-1/reasoning", "step-1/action", "step-1/query")
    assert routed.numbers == (5, 5 + FURTHER, 5 + 2 * FURTHER) and routed.slots.tolist() == [*routed.numbers, 0]
    assert [Path(one).name for one in routed.folders] == list(router.adapters)
    (tmp_path / "plain").mkdir()
    assert open_routed("plain", 6, str(tmp_path / "plain")) is None and open_routed("hub", 7, "owner/name") is None


def test_broken_folders_are_refused_in_one_line(tmp_path: Path):
    folder = save_routed(tmp_path / "step", make_router())
    with pytest.raises(ValueError, match="numbers below"):
        read_routed("a", FURTHER, str(folder))
    (folder / "action" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="has no adapter action"):
        read_routed("a", 1, str(folder))
    for text in ("{", "[]", "{}", '{"version": 9}', '{"version": 1, "spans": 3}'):
        (folder / "routing.json").write_text(text)
        with pytest.raises(ValueError, match="save the policy again") as refused:
            read_routed("a", 1, str(folder))
        assert "\n" not in str(refused.value)


# A batch, as vLLM drives it.


@dataclass
class Running:
    """A request as the simulated server has it. text: all that it will ever be; known: tokens it has now."""

    name: str
    text: list[int]
    prompt: int
    mask: list[bool]
    routed: Routed | None
    known: int = 0
    computed: int = 0
    found: dict[int, int] = field(default_factory=dict)

    def add_to(self, batch: BatchRoutes) -> None:
        if self.routed:
            spans = [[at, at + 1] for at in range(self.prompt) if self.mask[at]]
            batch.add(self.name, self.routed, self.text[: self.prompt], self.text[self.prompt : self.known], spans)


def routed_of(name: str, number: int) -> Routed:
    router = ROUTERS[name]
    numbers = tuple(number + index * FURTHER for index in range(len(router.adapters)))
    return Routed(router, number, router.adapters, router.adapters, numbers, np.array([*numbers, 0]))


def serve(seed: int, broken: type[BatchRoutes] = BatchRoutes) -> int:
    """A server that chunks, preempts, moves and swaps at random; returns how many tokens went another way than due."""
    rng = np.random.default_rng(seed)
    rows, length = 6, 64
    kinds = [*(routed_of(name, 1 + number) for number, name in enumerate(ROUTERS)), None]
    waiting: list[Running] = []
    for number in range(24):
        prompt, whole = int(rng.integers(1, 40)), 0
        whole = prompt + int(rng.integers(1, 20))
        text = rng.integers(3, 16, size=whole).tolist()
        mask = [*(rng.random(prompt) < 0.4).tolist(), *[True] * (whole - prompt)]
        waiting.append(Running(f"r{number}", text, prompt, mask, kinds[rng.integers(len(kinds))], prompt))
    everyone, batch, running = list(waiting), broken(rows), list[Running]()
    tokens = np.zeros((rows, length), dtype=np.int32)
    while waiting or running:
        while waiting and len(running) < rows:
            one = waiting.pop(0)
            one.computed = int(rng.integers(0, one.known)) if rng.random() < 0.3 else 0  # found in the cache
            one.add_to(batch)
            running.append(one)
        rng.shuffle(running)
        for row, one in enumerate(running):
            tokens[row, : one.known] = one.text[: one.known]
        left = np.array([one.known - one.computed for one in running])
        scheduled = np.minimum(left, rng.integers(1, 9, size=len(running)))
        computed = np.array([one.computed for one in running])
        plain = np.array([one.routed.number if one.routed else 99 for one in running])
        found, last = batch.numbers([one.name for one in running], plain, scheduled, computed, tokens)
        ends = np.cumsum(scheduled)
        assert last.tolist() == found[ends - 1].tolist() and len(found) == ends[-1]
        for one, end, many in zip(running, ends, scheduled, strict=True):
            one.found |= {one.computed + at: int(found[end - many + at]) for at in range(many)}
            one.computed += int(many)
            if one.computed == one.known:
                one.known += 1
        for one in [one for one in running if one.known > len(one.text) or rng.random() < 0.05]:
            running.remove(one)
            batch.drop(one.name)
            if one.known <= len(one.text):  # preempted: all it has is computed again
                waiting.append(one)
    assert len(batch) == 0
    wrong = 0
    for one in everyone:
        due = naive_routes(one.text, one.mask, one.routed.router) if one.routed else []
        # The last token that is drawn is never an input.
        for at, number in one.found.items():
            wrong += number != (int(one.routed.slots[due[at]]) if one.routed else 99)
        assert max(one.found) == len(one.text) - 1
    return wrong


@pytest.mark.parametrize("seed", range(10))
def test_every_token_of_a_batch_gets_the_adapter_of_its_route(seed: int):
    assert serve(seed) == 0


class OneLate(BatchRoutes):
    """Decoding steps go by the token before."""

    def numbers(self, order: Any, plain: Any, scheduled: Any, computed: Any, tokens: Any) -> Any:
        return super().numbers(order, plain, scheduled, computed, np.roll(tokens, 1, axis=1))


class NeverReset(BatchRoutes):
    """The state of the request before stays in its cell."""

    def add(self, request: str, routed: Any, prompt: Any, output: Any, told: Any) -> None:
        before = self._state.copy()
        super().add(request, routed, prompt, output, told)
        self._state[:] = before


class NotMoved(BatchRoutes):
    """Rows are looked up only when a request comes or goes."""

    def numbers(self, order: Any, plain: Any, scheduled: Any, computed: Any, tokens: Any) -> Any:
        self._order = list(order) if self._order else []
        return super().numbers(order, plain, scheduled, computed, tokens)


@pytest.mark.parametrize("mistake", [OneLate, NeverReset, NotMoved])
def test_mistakes_of_a_batch_are_noticed(mistake: type[BatchRoutes]):
    noticed = 0
    for seed in range(10):
        try:
            noticed += serve(seed, mistake) > 0
        except (RuntimeError, IndexError):  # so do tokens of a request in another one's row
            noticed += 1
    assert noticed >= 5


def test_positions_that_were_never_seen_stop_the_server():
    batch, routed = BatchRoutes(2), routed_of("paper", 1)
    batch.add("a", routed, [3, 4, 5], [], None)
    with pytest.raises(RuntimeError, match="--no-async-scheduling"):
        batch.numbers(["a"], np.array([1]), np.array([2]), np.array([3]), np.zeros((2, 8), dtype=np.int32))


# Cached blocks.


@pytest.mark.parametrize("name", ROUTERS)
def test_blocks_are_told_apart_by_their_routes(name: str):
    router, rng = ROUTERS[name], np.random.default_rng(3)
    for _ in range(50):
        ids = rng.integers(3, 16, size=40).tolist()
        mask = [*(rng.random(20) < 0.5).tolist(), *[True] * 20]
        spans = [[at, at + 1] for at in range(20) if mask[at]]
        routes = RequestRoutes(router, ids[:20], spans)
        due = router.route(ids, mask).tobytes()
        for start in range(0, 40, 8):  # as blocks fill
            assert routes.between(ids[: start + 8], start, start + 8) == due[start : start + 8]
        assert routes.between(ids, 4, 12) == due[4:12]


def test_the_last_position_of_a_prompt_depends_on_who_goes_on():
    """A prompt that ends there, and one in which an observation follows, have different last routes: other blocks."""
    router = make_router(sql="query", context=None)
    written = [[1, 4]]
    alone = RequestRoutes(router, [3, CALL, 5, 6], written).between([3, CALL, 5, 6], 0, 4)
    followed = RequestRoutes(router, [3, CALL, 5, 6, 7, 8], written).between([3, CALL, 5, 6, 7, 8], 0, 4)
    assert alone[:3] == followed[:3] and alone[3] != followed[3]


def block_keys(request: Any, start: int, end: int) -> Any:
    def stock(request: Any, start: int, end: int, start_mm: int) -> Any:
        name = (("lora", request.lora_request.lora_name),) if request.lora_request else None
        return name, start_mm + 1

    return routed_engine.extra_keys(stock, request, start, end, 0)


def request_of(lora: Any, ids: Sequence[int] = (), spans: Any = None, **more: Any) -> Any:
    told = {"unbraid_written": spans} if spans is not None else None
    return SimpleNamespace(
        lora_request=lora, prompt_token_ids=list(ids), all_token_ids=list(ids),
        sampling_params=SimpleNamespace(extra_args=told), **more,
    )  # fmt: skip


def test_keys_of_blocks(tmp_path: Path):
    lora, ids = lora_of(save_routed(tmp_path / "routed", make_router())), [3, CALL, 5, END_CALL, 7, 8, 9, 9]
    one, other, third = (request_of(lora, ids, spans) for spans in ([[1, 4]], [[1, 3]], [[1, 4], [6, 8]]))
    assert block_keys(one, 0, 4) != block_keys(other, 0, 4) and block_keys(one, 0, 4) == block_keys(third, 0, 4)
    (name, (tag, routes)), next_mm = block_keys(one, 4, 8)
    assert name == ("lora", "lora-1") and tag == "unbraid_routes" and len(routes) == 4 and next_mm == 1
    (tmp_path / "plain").mkdir()
    assert block_keys(request_of(lora_of(tmp_path / "plain", 2), ids), 0, 4) == ((("lora", "lora-2"),), 1)
    assert block_keys(request_of(None, ids), 0, 4) == (None, 1)


# Slots.


def admitted(most: int, waiting: Sequence[Any], running: Sequence[Any]) -> list[str]:
    """Names of the waiting requests' adapters that a step takes."""
    scheduler = SimpleNamespace(lora_config=SimpleNamespace(max_loras=most), running=list(running))
    taken = []

    def plan(scheduler: Any) -> None:
        for request in waiting:
            if routed_engine.may_be_scheduled(lambda *_: True, scheduler, request):
                scheduler.running.append(request)
                taken.append(request.lora_request.lora_name if request.lora_request else "base")

    routed_engine.schedule(plan, scheduler)
    return taken


def test_a_routed_request_is_charged_all_its_slots(tmp_path: Path):
    two, three = (save_routed(tmp_path / name, ROUTERS[name]) for name in ("paper", "none"))
    (tmp_path / "plain").mkdir()
    a, b, c = (request_of(lora_of(folder, n)) for n, folder in ((1, two), (2, two), (3, three)))
    p, q = (request_of(lora_of(tmp_path / "plain", n)) for n in (4, 5))
    base = request_of(None)
    assert admitted(2, [a, p, b, base, a], []) == ["lora-1", "base", "lora-1"]
    assert admitted(3, [a, p, b, p, q], []) == ["lora-1", "lora-4", "lora-4"]
    assert admitted(4, [a, c, b, p], []) == ["lora-1", "lora-2"]
    assert admitted(3, [c, p, base], []) == ["lora-3", "base"]
    assert admitted(2, [b, q, a], [p]) == ["lora-5"]
    assert admitted(2, [b, a, p], [a]) == ["lora-1"]


def test_ids_beyond_the_vocabulary_of_delimiters_are_ordinary():
    routes = RequestRoutes(make_router(), [0, SQL, VOCABULARY + 10**6], json.dumps([[1, 3]]))
    assert list(routes.between([], 0, 3)) == [0, 1, 1]
