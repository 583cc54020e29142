"""The router where it goes on from a state, and what it sees of the model's turns in a prompt."""

import json
from pathlib import Path

import numpy as np
import pytest
from routed_adapters import END_TURN, ROUTERS, TURN, make_router, naive_routes
from tiny import CHATML, NO_TOOLS, REACTING, SEARCH_TAGS, tiny_tokenizer

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.types import Answer, Mode
from unbraid.tokens import Router, Turns, written_mask


@pytest.mark.parametrize("name", ROUTERS)
def test_going_on_from_a_state_is_routing_at_once(name: str):
    router, rng = ROUTERS[name], np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(3, 20, size=rng.integers(2, 30))
        cut = int(rng.integers(1, len(ids)))
        written = np.r_[rng.random(cut) < 0.5, np.ones(len(ids) - cut, dtype=bool)]
        state, routes = router.resume(int(router.state(ids[:cut], written[:cut])), ids[cut:])
        np.testing.assert_array_equal(routes, router.route(ids, written)[cut:])
        np.testing.assert_array_equal(routes, naive_routes(ids.tolist(), written.tolist(), router)[cut:])
        assert state == router.state(ids, written)


def test_going_on_with_nothing():
    state, routes = ROUTERS["paper"].resume(1, [])
    assert state == 1 and len(routes) == 0


@pytest.mark.parametrize(
    ("ids", "spans"),
    [
        ([1, 2, 3], []),
        ([TURN, 7], [(2, 2)]),
        ([TURN, 7, 1, 2], [(2, 4)]),
        ([9, TURN, 7, 1, END_TURN, 2], [(3, 5)]),
        ([TURN, 7, END_TURN, TURN, 8, 1, END_TURN, TURN, 7, 3], [(2, 3), (9, 10)]),
        ([TURN, 7, 1, TURN, 7, 2, END_TURN, 3], [(2, 7)]),  # an opening inside a turn is content
        ([TURN], []),
        ([END_TURN, TURN, 7, 5, 6], [(3, 5)]),
    ],
)
def test_turn_markers(ids: list[int], spans: list[tuple[int, int]]):
    turns = Turns((TURN, 7), (END_TURN, 99))
    assert turns.written(ids).tolist() == written_mask(len(ids), spans).tolist()


def test_turn_markers_are_saved(tmp_path: Path):
    router = make_router(turns=Turns((TURN, 7), (END_TURN,)))
    router.save(tmp_path)
    assert json.loads((tmp_path / "routing.json").read_text()) == router.to_json()
    assert Router.load(tmp_path).turns == router.turns
    assert "turns" not in make_router().to_json() and Router.from_json(make_router().to_json()).turns is None
    with pytest.raises(ValueError, match="ids that open them and ids that close them"):
        Turns((), (1,))


@pytest.mark.parametrize("template", [CHATML, REACTING, NO_TOOLS])
def test_a_rendered_conversation_shows_what_the_model_wrote(template: str):
    """The same stretches as in the tokens that were sampled: from where a response starts to its stop token."""
    chat = ChatFormat.build(tiny_tokenizer(template), ChatConfig(preset="think-block"))
    assert chat.turns
    messages = [{"role": "user", "content": "<think> What is the weather?"}]
    prompt = chat.prompt_ids(messages)
    response = chat.response_ids(Answer(Mode.THINK, "I look.", (), "Sunny"))
    spoken = [
        *messages,
        {"role": "assistant", "content": chat.decode(response[:-1])},
        {"role": "user", "content": "And?"},
    ]
    ids = chat.prompt_ids(spoken)
    assert ids[: len(prompt) + len(response)] == [*prompt, *response]
    assert not chat.turns.written(prompt).any()
    spans = [(len(prompt), len(prompt) + len(response))]
    assert chat.turns.written(ids).tolist() == written_mask(len(ids), spans).tolist()
    forced = chat.turns.written([*ids, *chat.prefix_ids(Mode.THINK)])
    assert forced[len(ids) :].all() and not forced[spans[0][1] : len(ids)].any()


def test_templates_that_show_no_turns():
    observations = ChatFormat.build(
        tiny_tokenizer(tags=SEARCH_TAGS), ChatConfig(preset="think-block", call_format="search")
    )
    assert observations.turns is None, "results stand within the model's own turn"
    plain = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}bot: {% endif %}"
    assert ChatFormat.build(tiny_tokenizer(plain), ChatConfig(preset="think-block")).turns is None
