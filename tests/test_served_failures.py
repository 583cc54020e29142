"""Servers that fail: nothing that arrived is lost, nothing comes twice, what cannot be mended is one line."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies import calls_tasks, requests_for, tiny_policy
from served_runs import AGAIN, Starts, assert_the_trainers, draw, fleet_of, own_fleet
from slot_agents import MODES, run
from stand_in_vllm import StandIn, Trouble

from unbraid.chat.types import Mode
from unbraid.errors import ServerError
from unbraid.rollout.context import Drawn
from unbraid.rollout.fleet import Member
from unbraid.rollout.probe import own_logprobs
from unbraid.rollout.served import ServedSampler


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbraid.rollout.fleet.PAUSE", 0.005)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(tiny_policy().model) as server:
        yield server


@pytest.fixture
def starts() -> Iterator[Callable[..., Starts]]:
    made: list[Starts] = []

    def make(*arguments: Any) -> Starts:
        made.append(Starts(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.mark.parametrize("turns", range(7))
def test_a_dead_stand_in_answers_nobody(server: StandIn, turns: int):
    """Nor who connects at the moment of its death, of whose connection its event loop alone knows yet."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.socket() as client:
        client.settimeout(5)

        def connect() -> None:
            client.connect((host, int(port)))
            server.die(turns)

        server.within(connect)
        while not server.died():
            time.sleep(0.001)
        with suppress(ConnectionError):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: stand-in\r\n\r\n")
            assert client.recv(1) == b""


@pytest.mark.parametrize("first", [0, 3, 9])
def test_when_one_of_two_servers_dies_nothing_is_lost_and_nothing_comes_twice(tmp_path, first):
    policy = tiny_policy()
    requests = requests_for(policy, calls_tasks(6), AGAIN)
    with StandIn(policy.model, Trouble("die", after=first), seconds=0.002) as one, StandIn(policy.model) as two:
        fleet = fleet_of(tmp_path, one, two)
        found = draw(fleet, policy, requests, contexts=8)
        assert_the_trainers(policy, found, 1.0)
        assert [(t.task_id, t.sample) for t in found] == [(r.task.id, r.sample) for r in requests]
        assert [tuple(t.ids[: t.prompt_length]) for t in found] == [r.prompt_ids for r in requests]
        asked = [len(server.bodies()) - len(server.questions()) for server in (one, two)]
        # What had arrived was kept: only the responses on their way, at most all 8 contexts, were drawn again.
        assert len(requests) <= sum(asked) <= len(requests) + 8
        (note,) = fleet.notes()
        assert one.url in note and "goes on without it" in note
        assert [bool(member.lost) for member in fleet.members] == [True, False]
        assert fleet.members[1].busy == 0 == fleet.members[0].busy
        draw(fleet, policy, requests[:3])
        assert not fleet.notes()


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("relative", [False, True], ids=["", "relative"])
def test_the_only_server_dies_and_comes_back_with_the_same_weights(tmp_path, monkeypatch, starts, adapter, relative):
    monkeypatch.chdir(tmp_path)
    policy, base = tiny_policy(seed=5 * (not adapter), adapter=adapter), tiny_policy().model
    start = starts(base)
    requests = requests_for(policy, calls_tasks(6), AGAIN)
    with StandIn(base, Trouble("die", after=20), seconds=0.002) as first:
        fleet = own_fleet(Path() if relative else tmp_path, first, start)
        found = draw(fleet, policy, requests, contexts=6)
        assert_the_trainers(policy, found, 1.0)
        assert len(start.servers) == 1 and fleet.members[0].url == start.servers[0].url != first.url
        second = start.servers[0]
        (note,) = fleet.notes()
        assert "died (vLLM" in note and "killed by SIGKILL" in note and "started again" in note
        asked = [len(server.bodies()) - len(server.questions()) for server in (first, second)]
        assert sum(asked) <= len(requests) + 6
        # Nobody asked the new server before it had the weights.
        loading = "/v1/load_lora_adapter" if adapter else "/pause"
        assert second.asked[0][0].startswith(loading)
        # The next weights reach it as any other; it never knew the adapter before the last one.
        with torch.no_grad():
            for _, parameter in policy.trainable():
                parameter.add_(0.01)
        assert_the_trainers(policy, draw(fleet, policy, requests[:6]), 1.0)


def test_nobody_asks_a_server_before_it_has_the_weights(tmp_path, starts):
    policy, base = tiny_policy(adapter=True), tiny_policy().model
    start = starts(base)

    def slowly(number: int) -> Any:
        server = start(number)
        server.loading = 0.5
        return server

    async def play(sampler: Any) -> tuple[list[int], Drawn]:
        first, second = await sampler.open([1, 5, 7]), await sampler.open([1, 5, 9])
        asking = asyncio.create_task(first.respond(np.uint64(0), Mode.AUTO, 3))
        while not (start.servers and start.servers[0].asked):
            await asyncio.sleep(0.01)
        drawn = await second.respond(np.uint64(1), Mode.AUTO, 3)  # its tool took until now
        await asking
        return second.ids, drawn

    with StandIn(base, Trouble("die")) as one:
        fleet = own_fleet(tmp_path, one, slowly)  # type: ignore[arg-type]
        ids, drawn = run(ServedSampler(fleet, policy, 2, 1.0), play)  # type: ignore[arg-type]
        own = own_logprobs(policy, ids, 3, 1.0)
        np.testing.assert_allclose(drawn.logprobs, own, atol=3e-5)


def test_a_server_that_dies_over_new_weights(tmp_path, starts):
    """It comes back with the new ones, and is not asked to forget what it never knew."""
    policy, base = tiny_policy(adapter=True), tiny_policy().model
    start = starts(base)
    requests = requests_for(policy, calls_tasks(2), MODES)
    with StandIn(base, Trouble("die", "/v1/load_lora_adapter", after=1)) as first:
        fleet = own_fleet(tmp_path, first, start)
        draw(fleet, policy, requests)
        with torch.no_grad():
            for _, parameter in policy.trainable():
                parameter.add_(0.01)
        assert_the_trainers(policy, draw(fleet, policy, requests), 1.0)
        assert list(start.servers[0].adapters) == [fleet.model]


def test_an_episode_that_gives_up_leaves_no_server_behind(tmp_path, starts):
    policy, base = tiny_policy(seed=5), tiny_policy().model
    start = starts(base)
    slow = own_fleet(tmp_path, StandIn(base, Trouble("die", after=1)).start(), lambda number: wait(number))  # type: ignore[arg-type,return-value]
    started: list[int] = []

    def wait(number: int) -> Any:
        started.append(number)
        time.sleep(0.4)
        return start(number)

    async def play(sampler: Any) -> None:
        contexts = [await sampler.open([1, 5, 7]) for _ in range(3)]
        for _ in range(2):
            waiting = [asyncio.wait_for(c.respond(np.uint64(0), Mode.AUTO, 3), 0.15) for c in contexts]
            assert all(isinstance(one, TimeoutError) for one in await asyncio.gather(*waiting, return_exceptions=True))

    run(ServedSampler(slow, policy, 3, 1.0), play)  # type: ignore[arg-type]
    assert started == [0] and slow.members[0].server is start.servers[0]
    assert slow.members[0].url == start.servers[0].url and slow.members[0].version == slow.salt
    requests = requests_for(policy, calls_tasks(2), MODES)
    assert_the_trainers(policy, draw(slow, policy, requests), 1.0)


def test_a_server_that_is_started_again_is_probed_before_it_is_asked(tmp_path, starts):
    """One that comes back with another temperature draws nothing for the run."""
    policy = tiny_policy()
    honest = starts(policy.model)

    def start(number: int) -> Any:
        server = honest(number)
        server.factor = 1.5
        return server

    requests = requests_for(policy, calls_tasks(4), AGAIN)
    with StandIn(policy.model, Trouble("die", after=30)) as first:
        fleet = own_fleet(tmp_path, first, start)  # type: ignore[arg-type]
        fleet.prompts = [request.prompt_ids for request in requests]
        with pytest.raises(ServerError, match=r"no server is left .* draws from another policy"):
            draw(fleet, policy, requests)


def test_restarts_come_to_an_end(tmp_path, starts):
    policy = tiny_policy()
    start = starts(policy.model, *[lambda: [Trouble("die", after=4)]] * 9)
    requests = requests_for(policy, calls_tasks(6), AGAIN)
    with StandIn(policy.model, Trouble("die", after=4)) as first:
        fleet = own_fleet(tmp_path, first, start, retries=9)
        with pytest.raises(ServerError) as caught:
            draw(fleet, policy, requests)
    assert len(start.servers) == 3 and "\n" not in str(caught.value)
    assert str(caught.value).startswith("no server is left to sample from: server 0 at http://127.0.0.1:")
    assert "killed by SIGKILL" in str(caught.value) and len(fleet.notes()) == 3


@pytest.mark.parametrize("others", [0, 1])
def test_a_server_that_does_not_start_again_is_lost(tmp_path, others):
    policy = tiny_policy()
    requests = requests_for(policy, calls_tasks(4), AGAIN)

    def start(number: int) -> Any:
        raise ServerError("too little memory")

    with StandIn(policy.model, Trouble("die", after=4)) as first, StandIn(policy.model) as second:
        fleet = own_fleet(tmp_path, first, start)  # type: ignore[arg-type]
        if others:
            fleet.members.append(Member(second.url))
            assert len(draw(fleet, policy, requests)) == len(requests)
            assert "too little memory" in fleet.notes()[-1]
        else:
            with pytest.raises(ServerError, match=r"no server is left .*: too little memory"):
                draw(fleet, policy, requests)


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble("status", after=3, times=3, status=500),
        Trouble("status", after=3, times=3, status=503),
        Trouble("status", after=3, times=3, status=429),
        Trouble("hang", after=3, times=3),
        Trouble("cut", after=3, times=3),
        Trouble("garbage", after=3, times=3),
        Trouble("abort", after=3, times=3),
    ],
    ids=lambda trouble: f"{trouble.kind}{trouble.status}",
)
def test_passing_trouble_is_waited_out(tmp_path, server, trouble):
    policy = tiny_policy()
    # A busy machine answers late, and is not to be taken for one that hangs.
    fleet = fleet_of(tmp_path, server, seconds=3.0 if trouble.kind == "hang" else 60.0)
    requests = requests_for(policy, calls_tasks(3), AGAIN)
    draw(fleet, policy, requests[:2])
    before, server.troubles = len(server.bodies()), [trouble]
    found = draw(fleet, policy, requests)
    assert_the_trainers(policy, found, 1.0)
    assert not trouble.times and not fleet.notes()
    asked = len(server.bodies()) - before
    assert asked == 3 + len(requests) + 3 or (trouble.kind == "hang" and asked > 3 + len(requests) + 3)


@pytest.mark.parametrize(("status", "attempts", "says"), [(500, 3, "given up after 3 attempts"), (400, 1, "400")])
def test_lasting_trouble_ends_it_and_a_refusal_at_once(tmp_path, server, status, attempts, says):
    policy = tiny_policy()
    fleet = fleet_of(tmp_path, server, retries=2)
    server.troubles = [Trouble("status", times=10**6, status=status)]
    with pytest.raises(ServerError, match=says) as caught:
        draw(fleet, policy, requests_for(policy, calls_tasks(1), [Mode.AUTO]))
    assert len(server.bodies()) == attempts and "\n" not in str(caught.value)


def test_a_question_outlives_the_context_that_asked_it(tmp_path):
    """Its server dies after that context was closed: the question moves on, for those who wait for the answer."""
    policy = tiny_policy()
    with StandIn(policy.model, seconds=0.2) as one, StandIn(policy.model) as two:
        fleet = fleet_of(tmp_path, one, two)

        async def play(sampler: Any) -> Drawn:
            first, second = await sampler.open([1, 5, 7]), await sampler.open([1, 5, 7])
            asking = asyncio.create_task(first.respond(np.uint64(0), Mode.AUTO, 3))
            waiting = asyncio.create_task(second.respond(np.uint64(1), Mode.AUTO, 3))
            await asyncio.sleep(0.1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            first.close()
            one.die()
            return await waiting

        drawn = run(ServedSampler(fleet, policy, 4, 1.0), play)  # type: ignore[arg-type]
        assert np.isfinite(drawn.choice_probs).all() and [member.busy for member in fleet.members] == [0, 1]
        assert len(two.questions()) == 1
