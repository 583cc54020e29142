"""Which adapter a token runs through: the router against the definition in plain words, on any ids and provenance."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.policy.control_routers import Control, ControlRouter
from unbraid.tokens import NONE, Delimiter, Role, RoleAutomaton, Router, written_mask, written_spans

THINK = Delimiter("think", 10, 11, Role.REASONING)
CALL = Delimiter("call", 20, 21, Role.ACTION)
SQL = Delimiter("sql", 6, 5, Role.ACTION)
AUTOMATON = RoleAutomaton([THINK, CALL, SQL])
TWO = Router(AUTOMATON, ("reasoning", "action"), "reasoning", ("reasoning", "action", "action"), "reasoning")
# An adapter for each kind of span, nobody for the context, and the released code's boundary.
MANY = Router(AUTOMATON, ("says", "thinks", "calls", "asks"), "says", ("thinks", "calls", "asks"), None, "shifted")
BARE = Router(AUTOMATON, ("reasoning", "action"), "reasoning", ("reasoning", "action", "action"), None)
ROUTERS = [TWO, MANY, BARE]

IDS = st.sampled_from([0, 1, 5, 6, 7, 10, 11, 12, 20, 21, 22, 151_999])
TOKENS = st.lists(st.tuples(IDS, st.booleans()), min_size=1, max_size=60)


def by_the_rules(router: Router, tokens: list[tuple[int, bool]]) -> list[int]:
    """The definition, one `if` per sentence; -1 is nobody."""
    number = {name: index for index, name in enumerate(router.adapters)} | {None: -1}
    writers, inside = [], None  # who writes each token
    for token, written in [*tokens, (0, True)]:
        if not written:
            writers.append(router.context)
            inside = None
            continue
        owner = router.outside if inside is None else router.spans[router.automaton.delimiters.index(inside)]
        writers.append(owner)
        if inside is None:
            inside = next((d for d in router.automaton.delimiters if d.open == token), None)
        elif token == inside.close:
            inside = None
    used = writers[1:] if router.boundary == "eq2" else writers[:-1]
    return [number[name] for name in used]


def split(tokens: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([t for t, _ in tokens]), np.array([w for _, w in tokens], dtype=bool)


@pytest.mark.parametrize("router", ROUTERS)
@given(tokens=TOKENS)
@settings(max_examples=300, deadline=None)
def test_routes_follow_the_definition(router: Router, tokens):
    assert router.route(*split(tokens)).tolist() == by_the_rules(router, tokens)


@pytest.mark.parametrize(
    "router", [*ROUTERS, *(ControlRouter(TWO, c) for c in ("swapped", "all", "position", "prompt"))]
)
@given(tokens=TOKENS, more=st.lists(IDS, min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_going_on_token_by_token_gives_the_routes_of_the_whole(router, tokens, more):
    ids, written = split(tokens)
    states, found = np.array([router.state(ids, written)]), router.route(ids, written).tolist()
    for token in more:
        states, routes = router.step(states, [token])
        found += routes.tolist()
    whole = split([*tokens, *((token, True) for token in more)])
    assert found == router.route(*whole).tolist()
    assert states.tolist() == [router.state(*whole)]


def test_an_example_position_by_position():
    """`<think> so </think> <call> q q </call>`, a result, and an answer: as the module's own picture has it."""
    ids = [1, 2, 10, 7, 11, 20, 8, 9, 21, 30, 31, 7, 2]
    written = [False] * 2 + [True] * 7 + [False] * 2 + [True] * 2
    #              prompt   <think>so</think><call>q q </call> result  answer
    assert BARE.route(ids, written).tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, -1, -1, 0, 0, 0]
    assert TWO.route(ids, written).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    # The released code: input positions s + 1 … e, so that the first word of the query is written by reasoning.
    shifted = Router(AUTOMATON, TWO.adapters, TWO.outside, TWO.spans, TWO.context, "shifted")
    assert shifted.route(ids, written).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    # Whose the loss is depends on the role alone.
    assert (
        shifted.owners(ids, written).tolist()
        == TWO.owners(ids, written).tolist()
        == TWO.route(ids, written)[:-1].tolist()
    )


@given(tokens=TOKENS)
@settings(max_examples=100, deadline=None)
def test_a_batch_is_its_rows(tokens):
    ids, written = split(tokens)
    for router in (TWO, MANY, ControlRouter(TWO, "prompt"), ControlRouter(TWO, "position")):
        both = router.route(np.stack([ids, ids[::-1]]), np.stack([written, written[::-1]]))
        assert both.tolist() == [router.route(ids, written).tolist(), router.route(ids[::-1], written[::-1]).tolist()]


def test_controls_say_nothing_of_the_role():
    rng = np.random.default_rng(0)
    ids = rng.choice([0, 1, 7, 10, 11, 20, 21], size=(4000, 30))
    written = np.arange(30) >= rng.integers(1, 12, size=(4000, 1))
    roles = TWO.route(ids, written)[written]
    limits: tuple[tuple[Control, float], ...] = (("position", 0.002), ("prompt", 0.0005))
    for control, limit in limits:
        routes = ControlRouter(TWO, control).route(ids, written)[written]
        joint = np.array([[np.mean((roles == a) & (routes == b)) for b in (0, 1)] for a in (0, 1)])
        expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        assert float((joint * np.log(joint / expected)).sum()) < limit
        assert 0.3 < routes.mean() < 0.7
    prompt = ControlRouter(TWO, "prompt").route(ids, written)
    assert (prompt == prompt[:, :1]).all()  # one adapter for a whole episode
    only = ControlRouter(TWO, "only", ("action",)).route(ids, written)
    assert set(np.unique(only)) == {NONE, 1} and ((only == 1) == (TWO.route(ids, written) == 1)).all()


@pytest.mark.parametrize("router", ROUTERS)
def test_a_routing_file_gives_the_same_router(router: Router, tmp_path):
    router.save(tmp_path)
    again = Router.load(tmp_path)
    assert again.to_json() == router.to_json() == json.loads((tmp_path / "routing.json").read_text())
    ids, written = np.array([1, 10, 7, 11, 20, 8, 21, 3]), np.array([False, *[True] * 6, False])
    assert again.route(ids, written).tolist() == router.route(ids, written).tolist()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 9}, "version 9"),
        ({"context": "nobody"}, "differ"),
        ({"adapters": ["reasoning", "action", "more"]}, "differ"),
        ({"adapters": ["reasoning", "reasoning"]}, "differ"),
        ({"spans": [{"name": "think"}]}, "'open'"),
    ],
)
def test_a_routing_file_that_is_none_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        Router.from_json(TWO.to_json() | change)


@given(st.lists(st.booleans(), max_size=40))
def test_stretches_and_masks_are_each_other(mask):
    assert written_mask(len(mask), written_spans(mask)).tolist() == mask


@pytest.mark.parametrize("spans", [[(0, 6)], [(-1, 2)], [(3, 2)], [(1,)], [(1, 2, 3)]])
def test_a_stretch_that_is_none_is_refused(spans):
    with pytest.raises(ValueError, match="pairs inside"):
        written_mask(5, spans)
