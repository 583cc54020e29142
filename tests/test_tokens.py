"""The role automaton: two faces and one reference in plain words, on any ids, provenance and chunking."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.tokens import Delimiter, Fault, Provenance, Role, RoleAutomaton, RoleReader, Span

THINK = Delimiter("think", 10, 11, Role.REASONING)
CALL = Delimiter("call", 20, 21, Role.ACTION)
SEARCH = Delimiter("search", 6, 5, Role.ACTION)
AUTOMATON = RoleAutomaton([THINK, CALL, SEARCH])

# Few ids, so that delimiters are frequent; some beyond all tables.
IDS = st.sampled_from([0, 1, 5, 6, 7, 10, 11, 12, 20, 21, 22, 151_999, 2**40])
TOKENS = st.lists(st.tuples(IDS, st.sampled_from(list(Provenance))), max_size=80)


def by_the_rules(automaton: RoleAutomaton, tokens: list[tuple[int, Provenance]]) -> list[Role]:
    """The rules of `tokens/automaton.py`, one `if` per sentence."""
    roles, inside = [], None
    for token, provenance in tokens:
        if provenance == Provenance.PROMPT:
            roles.append(Role.PROMPT)
            inside = None
        elif provenance == Provenance.OBSERVATION:
            roles.append(Role.OBSERVATION)
            inside = None
        elif inside is None:
            roles.append(automaton.outside)
            for delimiter in automaton.delimiters:
                if token == delimiter.open:
                    inside = delimiter
        else:
            roles.append(inside.role)
            if token == inside.close:
                inside = None
    return roles


def split(tokens: list[tuple[int, Provenance]]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array([token for token, _ in tokens], dtype=np.int64)
    return ids, np.array([origin for _, origin in tokens], dtype=np.int64)


@given(TOKENS, st.sampled_from([Role.REASONING, Role.ACTION]))
@settings(max_examples=400, deadline=None)
def test_vectorised_face_follows_the_rules(tokens, outside):
    automaton = RoleAutomaton([THINK, CALL, SEARCH], outside)
    assert automaton.label(*split(tokens)).tolist() == by_the_rules(automaton, tokens)


@given(TOKENS, st.data())
@settings(max_examples=400, deadline=None)
def test_incremental_face_equals_vectorised_under_any_chunking(tokens, data):
    expected = AUTOMATON.label(*split(tokens)).tolist()
    state, roles, position = 0, [], 0
    while position < len(tokens):
        origin = tokens[position][1]
        run = next((i for i in range(position, len(tokens)) if tokens[i][1] != origin), len(tokens))
        end = data.draw(st.integers(position + 1, run))
        # A new reader for every chunk: an integer is all the state there is.
        reader = RoleReader(AUTOMATON, state)
        if origin == Provenance.MODEL:
            assert reader.next_role == expected[position]
        roles += reader.push(iter([token for token, _ in tokens[position:end]]), origin)
        assert reader.push([], origin) == []
        state, position = reader.state, end
    assert roles == expected


@given(st.lists(st.lists(st.tuples(IDS, st.sampled_from(list(Provenance))), min_size=9, max_size=9), max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_batch_is_its_rows(rows):
    ids = np.array([[token for token, _ in row] for row in rows], dtype=np.int64).reshape(len(rows), 9)
    origin = np.array([[p for _, p in row] for row in rows], dtype=np.int64).reshape(len(rows), 9)
    labels = AUTOMATON.label(ids, origin)
    assert labels.shape == ids.shape
    assert labels.dtype == np.uint8
    for row, label in zip(rows, labels, strict=True):
        assert label.tolist() == by_the_rules(AUTOMATON, row)


@given(TOKENS, st.data())
@settings(max_examples=300, deadline=None)
def test_delimiters_in_prompts_and_observations_switch_nothing(tokens, data):
    """Swap every id that the model did not write for any other: no role changes."""
    ids, origin = split(tokens)
    other = np.array([t if p == Provenance.MODEL else data.draw(IDS) for t, p in tokens], dtype=np.int64)
    np.testing.assert_array_equal(AUTOMATON.label(ids, origin), AUTOMATON.label(other, origin))


def test_an_observation_full_of_delimiters_inside_a_conversation():
    tokens = [
        *((t, Provenance.PROMPT) for t in (1, 20, 10, 6)),
        *((t, Provenance.MODEL) for t in (7, 20, 1, 21, 7)),
        *((t, Provenance.OBSERVATION) for t in (10, 20, 21, 11, 6)),
        *((t, Provenance.MODEL) for t in (7, 10, 7, 11)),
    ]
    p, r, a, o = Role.PROMPT, Role.REASONING, Role.ACTION, Role.OBSERVATION
    assert AUTOMATON.label(*split(tokens)).tolist() == [p] * 4 + [r, r, a, a, r] + [o] * 5 + [r] * 4


@given(st.lists(IDS, max_size=60))
@settings(max_examples=400, deadline=None)
def test_scan_agrees_with_roles(ids):
    scan = AUTOMATON.scan(ids)
    roles = np.full(len(ids), AUTOMATON.outside, dtype=np.uint8)
    for span in scan.spans:
        roles[span.start : span.end + span.closed] = span.role
    np.testing.assert_array_equal(roles, AUTOMATON.label(ids))
    # Every delimiter is the edge of a span or a fault, once.
    edges = [span.start - 1 for span in scan.spans] + [span.end for span in scan.spans if span.closed]
    faults = [place for fault, place in scan.faults if fault is not Fault.UNCLOSED]
    delimiters = {i for d in AUTOMATON.delimiters for i in (d.open, d.close)}
    assert sorted(edges + faults) == [place for place, token in enumerate(ids) if token in delimiters]
    assert [s.closed for s in scan.spans] == [True] * (len(scan.spans) - 1) + [
        Fault.UNCLOSED not in dict(scan.faults) for _ in scan.spans[-1:]
    ]


def test_faults_are_defined():
    def faults(*ids: int):
        return [(fault, place) for fault, place in AUTOMATON.scan(ids).faults]

    assert faults(10, 1, 11, 20, 1, 21) == []
    assert faults(1, 10, 1) == [(Fault.UNCLOSED, 1)]
    assert faults(11, 1) == [(Fault.STRAY, 0)]
    assert faults(10, 20, 11) == [(Fault.NESTED, 1)]
    assert faults(10, 10, 11) == [(Fault.NESTED, 1)]
    assert faults(10, 21, 11) == [(Fault.STRAY, 1)]
    assert faults(20, 10, 11) == [(Fault.NESTED, 1), (Fault.STRAY, 2), (Fault.UNCLOSED, 0)]
    assert AUTOMATON.scan([1, 20, 7]).spans == (Span("call", Role.ACTION, 2, 3, closed=False),)
    assert AUTOMATON.scan([20, 21]).spans == (Span("call", Role.ACTION, 1, 1, closed=True),)
    assert AUTOMATON.scan([]).spans == ()


def test_a_truncated_span_does_not_leak_into_the_next_turn():
    tokens = [(20, Provenance.MODEL), (7, Provenance.MODEL), (1, Provenance.OBSERVATION), (7, Provenance.MODEL)]
    expected = [Role.REASONING, Role.ACTION, Role.OBSERVATION, Role.REASONING]
    assert AUTOMATON.label(*split(tokens)).tolist() == expected


def test_without_delimiters_everything_is_outside():
    assert RoleAutomaton([], Role.ACTION).label([1, 2, 3]).tolist() == [Role.ACTION] * 3


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="repeat"):
        RoleAutomaton([THINK, Delimiter("call", 11, 12, Role.ACTION)])
    with pytest.raises(ValueError, match="one per token"):
        AUTOMATON.label([1, 2], [Provenance.MODEL])
