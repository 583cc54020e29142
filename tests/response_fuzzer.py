"""Random responses whose reading is known by construction.

This file knows how responses are put together and nothing of how they are read: it imports nothing of the package.
A response is drawn as a well-formed draft; defects are then put into it, each with the problem that it is. What
the reading must say follows from the list of defects alone.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# The order in which the first problem is the reason of a response.
ORDER = (
    "no_mode", "truncated", "unclosed", "nested", "stray", "repeated_thought",
    "empty", "not_json", "not_object", "no_name", "bad_arguments",
)  # fmt: skip

OPEN, CLOSE = "<think>", "</think>"
# preset -> (think prefix, no_think prefix), as texts of their own; special tokens are atoms of their own.
PREFIXES = {
    "tag": (("[think]\n", OPEN, "\n"), ("[no_think]\n",)),
    "think-block": ((OPEN, "\n"), (OPEN, "\n\n", CLOSE, "\n\n")),
}
# format -> (opening delimiter, closing delimiter, name of the arguments)
FORMATS = {
    "hermes": ("<tool_call>", "</tool_call>", "arguments"),
    "json_list": ("<tool_call>", "</tool_call>", "arguments"),
    "llama": ("<|python_tag|>", "<|eom_id|>", "parameters"),
    "toolrl": ("<tool_call>", "</tool_call>", "parameters"),
}
STOP = "<|im_end|>"
WORDS = (
    "so",
    "Paris",
    "weather",
    "3",
    "東京",
    "🎉",
    "é",
    "x < y",
    "a>b",
    "{",
    "}",
    '"',
    "\\",
    "look up",
    "[1]",
    "</b>",
)


@dataclass
class Block:
    """One span of calls: the JSON text of each, or a payload that replaces them."""

    objects: list[str]
    payload: str | None = None
    extra: str | None = None  # a special token somewhere inside
    closed: bool = True


@dataclass
class Draft:
    mode: str
    head: list[str]
    thought: str
    thought_extra: str | None
    thought_closed: bool
    body: list[str | Block]  # text, a special token, or a block
    calls: list[tuple[str, dict[str, Any]]]
    content: str
    problems: set[str] = field(default_factory=set)
    ends_with_stop: bool = True
    cut: bool = False
    text_too: bool = True  # whether the text alone says as much as the ids do


@dataclass
class Sample:
    """A response and what reading it must give. `atoms` are texts to be tokenised one by one."""

    ids: list[int]
    text: str
    text_too: bool
    truncated: bool
    mode: str
    reason: str | None
    calls: list[tuple[str, dict[str, Any]]]
    thought: str
    content: str


class Fuzzer:
    """Draws samples for one preset and one call format.

    Args:
        encode: text -> ids; called on single special tokens and on text that contains none.
    """

    def __init__(self, seed: int, preset: str, call_format: str, encode: Callable[[str], list[int]]):
        self.rng = random.Random(f"{seed} {preset} {call_format}")
        self.think, self.no_think = PREFIXES[preset]
        self.preset, self.format, self.encode = preset, call_format, encode
        self.open, self.close, self.key = FORMATS[call_format]
        self.defects: dict[str, Callable[[Draft], None]] = {problem: getattr(self, f"_{problem}") for problem in ORDER}

    def draw(self, *problems: str) -> Sample:
        """A response with these problems (none: well-formed).

        Defects go in from the last in the order to the first: one that hides another is always the earlier one.
        """
        draft = self._well_formed(needs_call=bool(set(problems) - {"no_mode", "truncated", "stray"}))
        for problem in sorted(problems, key=ORDER.index, reverse=True):
            self.defects[problem](draft)
            draft.problems.add(problem)
        return self._finish(draft)

    def _well_formed(self, needs_call: bool) -> Draft:
        rng, mode = self.rng, self.rng.choice(("think", "no_think"))
        calls = [(self._word(), self._object()) for _ in range(rng.randint(1 if needs_call else 0, 3))]
        objects = [self._json({"name": name, self.key: arguments}) for name, arguments in calls]
        groups = [[one] for one in objects] if self.format == "hermes" else [objects] if objects else []
        blocks: list[str | Block] = []
        for group in groups:
            blocks += [Block(group), rng.choice(("", "\n", "\n\n"))]
        content = self._text() if rng.random() < 0.5 else ""
        shown = (
            f"<response>{content}</response>" if self.format == "toolrl" and content and rng.random() < 0.7 else content
        )
        body = [shown, "\n", *blocks] if rng.random() < 0.5 else [*blocks, shown]
        thought = self._text() if mode == "think" and rng.random() < 0.9 else ""
        head = list(self.think if mode == "think" else self.no_think)
        return Draft(mode, head, thought, None, True, body, calls, content, text_too=bool(thought) or mode != "think")

    # Defects, in the order of ORDER.

    def _no_mode(self, draft: Draft) -> None:
        draft.mode = "none"
        if draft.thought or draft.head == list(self.think):
            # The thinking span stays, so that nothing else changes; what stands around its opening is wrong.
            draft.head = self.rng.choice((["[maybe]\n", OPEN, "\n"], [OPEN, "hm "], ["\n", OPEN, "\n"]))
        else:
            draft.head = self.rng.choice((["[maybe]\n"], ["[no_thin"], [], ["Well: "]))

    def _truncated(self, draft: Draft) -> None:
        draft.cut = True

    def _unclosed(self, draft: Draft) -> None:
        if draft.head == list(self.think) and self.rng.random() < 0.4:
            draft.thought_closed, draft.body = False, [self._text()]
            return
        last = max(place for place, item in enumerate(draft.body) if isinstance(item, Block))
        block = draft.body[last]
        assert isinstance(block, Block)
        block.closed, draft.body = False, draft.body[: last + 1]
        draft.ends_with_stop = self.rng.random() < 0.5

    def _nested(self, draft: Draft) -> None:
        inner = self.rng.choice((OPEN, self.open))
        if draft.mode == "think" and self.rng.random() < 0.5:
            draft.thought_extra = inner
        else:
            self._block(draft).extra = inner

    def _stray(self, draft: Draft) -> None:
        closing = self.rng.choice((CLOSE, self.close))
        if draft.mode == "think" and self.rng.random() < 0.3:
            draft.thought_extra = self.close
        elif any(isinstance(item, Block) for item in draft.body) and self.rng.random() < 0.3:
            self._block(draft).extra = CLOSE
        else:
            draft.body.insert(self.rng.randint(0, len(draft.body)), closing)

    def _repeated_thought(self, draft: Draft) -> None:
        place = self.rng.randint(0, len(draft.body))
        draft.body[place:place] = [OPEN, self._text(), CLOSE]

    def _empty(self, draft: Draft) -> None:
        empty = ["", "\n", " \n\t "] + ["[]", "\n[ ]\n"] * (self.format == "json_list")
        place = self.rng.randint(0, len(draft.body))
        draft.body.insert(place, Block([], self.rng.choice(empty)))

    def _not_json(self, draft: Draft) -> None:
        block = self._block(draft)
        whole = self._payload(block)
        bad = [
            "word", "{", "[1,]", "{'name': 1}", "nan", '"\ttab"', "01", "1 2,", "True", "[" * 3000,
            whole + "]", whole + "}", whole.rstrip() + ",", whole + "\u00a0",
            "// \n" + whole, "'" + whole, "\\" + whole, "\x0b" + whole, "\ufeff" + whole,
        ]  # fmt: skip
        if self.format != "toolrl":  # where white space alone separates calls, this would be two
            bad += [whole + " " + whole, whole + "\n{}"]
        values = ('{"a": 1, "a": 1}', "NaN", "[-Infinity]", "1e999", '"\\ud800"', "9" * 5000, ".5", "{", "+1", "'a'")
        inner = [f'{{"name": "f", "{self.key}": {{"a": {value}}}}}' for value in values]
        inner += [f'{{"name": "f", "name": "g", "{self.key}": {{}}}}', f'{{"name": "f", "{self.key}": {{}}']
        if self.rng.random() < 0.5:
            block.payload = self.rng.choice(bad)
        else:
            self._replace(block, self.rng.choice(inner))

    def _not_object(self, draft: Draft) -> None:
        block, wrong = self._block(draft), ["3", '"f"', "null", "true", "[3]", "[[]]", "2.5e3", '["name"]']
        if self.format == "json_list" and self.rng.random() < 0.5:
            block.payload = self.rng.choice(["3", '"f"', "{}", block.objects[0], "null"])
            return
        self._replace(block, self.rng.choice(wrong))

    def _no_name(self, draft: Draft) -> None:
        name = self.rng.choice(
            ("", '"name": "", ', '"name": "  ", ', '"name": 3, ', '"name": null, ', '"name": ["f"], ')
        )
        rest = self.rng.choice((f'"{self.key}": {{}}', '"x": 1', f'"{self.key}": 3'))
        self._replace(self._block(draft), "{" + name + rest + "}")

    def _bad_arguments(self, draft: Draft) -> None:
        other = "parameters" if self.key == "arguments" else "arguments"
        keys = ("", *(f', "{self.key}": {bad}' for bad in ("[]", "3", '"{}"', "null", "true")), f', "{other}": {{}}')
        self._replace(self._block(draft), '{"name": "f"' + self.rng.choice(keys) + "}")

    def _block(self, draft: Draft) -> Block:
        return self.rng.choice([item for item in draft.body if isinstance(item, Block) and item.objects])

    def _replace(self, block: Block, text: str) -> None:
        """A bad object before, after or instead of the good ones; the format decides where there is room."""
        block.payload = None
        if self.format == "hermes":
            block.objects = [text]
        else:
            block.objects.insert(self.rng.randint(0, len(block.objects)), text)

    # Writing down.

    def _payload(self, block: Block) -> str:
        if block.payload is not None:
            return block.payload
        if self.format == "json_list":
            return "[" + ", ".join(block.objects) + "]"
        return ("; " if self.format == "llama" else "\n").join(block.objects)

    def _atoms(self, draft: Draft) -> tuple[list[str], int]:
        """The response in pieces, and how many of them are the mode prefix."""
        atoms, prefix = list(draft.head), len(draft.head)
        if draft.head[-2:-1] == [OPEN] or draft.head == [OPEN, "hm "]:
            atoms += self._inside(draft.thought, draft.thought_extra)
            atoms += ["\n", CLOSE, "\n\n"] if draft.thought_closed else []
        for item in draft.body:
            if isinstance(item, str):
                atoms.append(item)
            else:
                space = self.rng.choice(("\n", "", " "))
                inside = self._inside(space + self._payload(item) + space, item.extra)
                atoms += [self.open, *inside, *([self.close] if item.closed else [])]
        # A call that ends the turn by its own delimiter needs no other stop token.
        ended = self.format == "llama" and atoms and atoms[-1] == self.close and self.rng.random() < 0.5
        return atoms + [STOP] * (draft.ends_with_stop and not ended), prefix

    def _inside(self, text: str, extra: str | None) -> list[str]:
        if extra is None:
            return [text]
        at = self.rng.randint(0, len(text))
        return [text[:at], extra, text[at:]]

    def _finish(self, draft: Draft) -> Sample:
        atoms, prefix = self._atoms(draft)
        coded = [self.encode(atom) if atom else [] for atom in atoms]
        head = sum(map(len, coded[:prefix]))
        ids = [token for tokens in coded for token in tokens]
        text = "".join(atoms)
        mode = draft.mode
        if draft.cut:
            at = self.rng.randint(0, len(ids) - 1)
            ids, text, draft.text_too = ids[:at], "", False
            if at < head or mode == "none":
                mode = "none"
                draft.problems.add("no_mode")
        reason = min(draft.problems, key=ORDER.index, default=None)
        return Sample(ids, text, draft.text_too, draft.cut, mode, reason, draft.calls, draft.thought, draft.content)

    # Drawing values.

    def _word(self) -> str:
        return self.rng.choice(WORDS)

    def _text(self) -> str:
        text = "".join(self._word() + self.rng.choice((" ", "\n", "", ", ")) for _ in range(self.rng.randint(1, 8)))
        return text.strip() or "so"

    def _object(self, depth: int = 0) -> dict[str, Any]:
        return {self._word() + str(i): self._value(depth) for i in range(self.rng.randint(0, 3))}

    def _value(self, depth: int) -> Any:
        kind = self.rng.randint(0, 7 if depth < 2 else 5)
        if kind == 6:
            return [self._value(depth + 1) for _ in range(self.rng.randint(0, 3))]
        if kind == 7:
            return self._object(depth + 1)
        plain = (
            None,
            self.rng.random() < 0.5,
            self.rng.randint(-99, 10**20),
            self.rng.uniform(-1, 1) * 1e5,
            self._text(),
        )
        return (*plain, self.rng.choice((OPEN, self.close, STOP, f"x{self.open}y")))[kind]

    def _json(self, value: dict[str, Any]) -> str:
        text = json.dumps(value, ensure_ascii=self.rng.random() < 0.3, indent=self.rng.choice((None, None, 1)))
        return text.replace("<", "\\u003C")
