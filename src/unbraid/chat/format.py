"""A chat format: conversations to prompt ids, answers to response ids, response ids back to what they say."""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field

from unbraid.chat.calls import CallFormat, call_format
from unbraid.chat.delimiters import require_single_id
from unbraid.chat.modes import ModePrefixes
from unbraid.chat.preset import Preset, preset
from unbraid.chat.template import wrap
from unbraid.chat.types import Answer, Call, Mode, Problem, Reading
from unbraid.errors import ChatError
from unbraid.tokens import Delimiter, Fault, Role, RoleAutomaton, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBLEM_OF = {Fault.UNCLOSED: Problem.UNCLOSED, Fault.NESTED: Problem.NESTED, Fault.STRAY: Problem.STRAY}
_ORDER = {problem: place for place, problem in enumerate(Problem)}
PROBE = "unbraid_probe"


class ChatConfig(BaseModel):
    """How modes and calls are written (recipe section `chat`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str | Preset = Field(
        default="tag", description="`tag` (paper), `think-block` (Qwen3-style), or three texts."
    )
    call_format: str = Field(
        default="hermes", description="hermes, json_list, llama, toolrl, search, sql, or module:name of your own."
    )


class ChatFormat:
    """A tokenizer, a preset and a call format, checked to fit together. Make one with `ChatFormat.build`.

    Attributes:
        tokenizer: the Hugging Face tokenizer, its chat template unchanged.
        modes: the two forced prefixes, as ids.
        automaton: roles of response ids; delimiters are the preset's (REASONING) and the call format's (ACTION).
        stop_ids: ids that end a response; the first is what the template ends an assistant turn with.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", preset: Preset, calls: CallFormat, automaton: RoleAutomaton,
        modes: ModePrefixes, stop_ids: tuple[int, ...],
    ):  # fmt: skip
        self.tokenizer = tokenizer
        self.preset = preset
        self.calls = calls
        self.automaton = automaton
        self.modes = modes
        self.stop_ids = stop_ids
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend_decode: Callable[..., str] | None = getattr(backend, "decode", None)

    @classmethod
    def build(
        cls, tokenizer: "PreTrainedTokenizerBase", config: ChatConfig | None = None, calls: CallFormat | None = None
    ) -> "ChatFormat":
        """Put the parts together.

        Args:
            calls: a call format of your own; None takes the one that `config` names.

        Raises:
            ChatError: no chat template, a delimiter that is not one id, modes that cannot be told apart, no stop token.
        """
        config = config or ChatConfig()
        if not tokenizer.chat_template:
            raise ChatError("the tokenizer has no chat template: set tokenizer.chat_template, or use a chat model's")
        chosen, calls = preset(config.preset), calls or call_format(config.call_format)
        texts = (chosen.open, chosen.close, calls.open, calls.close)
        if len(set(texts)) < len(texts):
            raise ChatError(f"delimiters {texts} repeat: thinking and calls need four different ones")
        ids = [require_single_id(tokenizer, text) for text in texts]
        automaton = RoleAutomaton(
            [Delimiter("think", ids[0], ids[1], Role.REASONING), Delimiter("call", ids[2], ids[3], Role.ACTION)]
        )
        prefixes = (tokenizer.encode(text, add_special_tokens=False) for text in (chosen.think, chosen.no_think))
        stops = [_turn_end(tokenizer), tokenizer.eos_token_id, ids[3] if calls.close_stops else None]
        stop_ids = tuple(dict.fromkeys(int(i) for i in stops if i is not None))
        if not stop_ids:
            raise ChatError("no stop token: the template ends turns with none; set the tokenizer's eos_token")
        return cls(tokenizer, chosen, calls, automaton, ModePrefixes(*(tuple(ids) for ids in prefixes)), stop_ids)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The generation prompt, up to where the response starts.

        Raises:
            ChatError: if the template cannot render the conversation, or tools are given and it ignores them.
        """
        if self.calls.observation:  # tools that are called by tags are explained in the prompt, not by the template
            tools = ()
        if tools and not self.shows_tools:
            raise ChatError("the chat template ignores tools: take a template with tool support, or drop the tools")
        return self.encode(self.render(messages, tools))

    def prefix_ids(self, mode: Mode) -> tuple[int, ...]:
        """What forcing `mode` puts first in the response; empty for AUTO."""
        return self.modes.of(mode)

    def response_ids(self, answer: Answer) -> list[int]:
        """The response that says `answer`; ends with a stop id. `read` gives the answer back (white space stripped).

        Raises:
            ChatError: if it would not, for example because the thought contains a delimiter.
        """
        if answer.mode not in (Mode.THINK, Mode.NO_THINK):
            raise ChatError(f"an answer in mode '{answer.mode}' cannot be written: choose think or no_think")
        if answer.thought and answer.mode is Mode.NO_THINK:
            raise ChatError("an answer in mode 'no_think' has a thought: drop it, or make the mode think")
        thought, content = answer.thought.strip(), answer.content.strip()
        before, after = self.calls.content_tags
        parts = [before + content + after if content else "", self.calls.render(answer.calls)]
        body = "\n".join(part for part in (parts if self.calls.content_first else parts[::-1]) if part)
        text = thought + self.preset.after_thought + body if answer.mode is Mode.THINK else body
        ids = [*self.modes.of(answer.mode), *self.encode(text)]
        if ids[-1] not in self.stop_ids:
            ids.append(self.stop_ids[0])
        found = self.read(ids)
        same = (found.mode, found.thought, found.calls, found.content) == (answer.mode, thought, answer.calls, content)
        if found.problems or not same or not set(self.stop_ids).isdisjoint(ids[:-1]):
            why = f" ({found.reason})" if found.reason else ""
            raise ChatError(
                f"an answer does not read back as it was written{why}: a thought, content or argument holds "
                f"delimiters or special tokens; clean or drop the row. It starts {text[:60]!r}"
            )
        return ids

    def read(self, response_ids: Iterable[int], truncated: bool = False) -> Reading:
        """What a response says, and everything that is wrong with it. Never raises on anything a model can write.

        Args:
            response_ids: the whole response; a forced prefix belongs to it.
            truncated: the token budget ended before the stop token.
        """
        ids = [int(token) for token in response_ids]
        mode = self.modes.read(ids)
        prefix = 0 if mode is Mode.NONE else len(self.modes.of(mode))
        return self._read(ids, mode, prefix, truncated, self.decode)

    def read_text(self, text: str, truncated: bool = False) -> Reading:
        """`read` for endpoints that return text. The text must show special tokens and start with the mode prefix.

        Delimiters and stop tokens become their ids and what is between them pseudo-ids; the rest is the same code.
        """
        prefixes = {Mode.THINK: self.preset.think, Mode.NO_THINK: self.preset.no_think}
        fitting = [mode for mode, prefix in prefixes.items() if text.startswith(prefix)]
        # As text, one prefix may start with the other; the longer one is meant.
        mode = max(fitting, key=lambda one: len(prefixes[one]), default=Mode.NONE)
        cut = len(prefixes.get(mode, ""))
        pieces = self._pieces(text[:cut])
        prefix = len(pieces)
        pieces += self._pieces(text[cut:])
        ids = [self._atoms.get(piece, -1 - place) for place, piece in enumerate(pieces)]
        text_of = dict(zip(ids, pieces, strict=True))
        return self._read(ids, mode, prefix, truncated, lambda some: "".join(text_of[token] for token in some))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens visible."""
        plain = [int(token) for token in ids]
        if self._backend_decode is not None:
            return self._backend_decode(plain, skip_special_tokens=False)
        return str(self.tokenizer.decode(plain, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def body(self, response_ids: Sequence[int]) -> str:
        """The text of a response without its thought and its stop token: what a server shows of one it cannot read."""
        ids = response_ids[:-1] if response_ids and response_ids[-1] in self.stop_ids else response_ids
        return self.decode(ids).rpartition(self.preset.close)[2].strip()

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), **options: Any
    ) -> str:
        """The template's text; `options` go to `apply_chat_template` (the generation prompt is on by default)."""
        chat: list[Any] = [dict(message) for message in messages]
        given: list[Any] | None = [dict(tool) for tool in tools] or None
        options = {"add_generation_prompt": True, **options}
        try:
            return str(self.tokenizer.apply_chat_template(chat, tools=given, tokenize=False, **options))
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as cause:
            raise ChatError(f"the chat template cannot render the messages ({cause}): correct them") from cause

    @cached_property
    def turns(self) -> Turns | None:
        """How a rendered conversation shows what the model wrote: after what the template opens a turn with.

        None where the template opens it with nothing that text cannot imitate, or where the results of calls stand
        within the model's own turn: then only whoever wrote the tokens knows.
        """
        chat = [{"role": "user", "content": "?"}]
        try:
            closed, opened = self.render(chat, add_generation_prompt=False), self.render(chat)
        except ChatError:  # no message comes first in this template
            return None
        if self.calls.observation or not opened.startswith(closed):
            return None
        ids = self.encode(opened[len(closed) :])
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return Turns(tuple(ids), self.stop_ids) if special.intersection(ids) else None

    def save(self, path: str | Path) -> None:
        """Save the tokenizer; its template now takes `mode=` (auto, think, no_think), or `enable_thinking=`."""
        tokenizer = copy.copy(self.tokenizer)
        template = tokenizer.chat_template
        if isinstance(template, dict):
            tokenizer.chat_template = {name: wrap(text, self.preset) for name, text in template.items()}
        else:
            tokenizer.chat_template = wrap(str(template), self.preset)
        tokenizer.save_pretrained(str(path))

    def _read(
        self, ids: list[int], mode: Mode, prefix: int, truncated: bool, decode: Callable[[list[int]], str]
    ) -> Reading:
        scan = self.automaton.scan(ids)
        problems = {_PROBLEM_OF[fault] for fault, _ in scan.faults}
        thoughts: list[str] = []
        calls: list[Call] = []
        outside: list[str] = []
        position = prefix
        for span in scan.spans:
            if span.end < prefix:  # the empty block that is the no_think prefix itself
                continue
            if position < span.start - 1:
                outside.append(decode(ids[position : span.start - 1]))
            text = decode(ids[max(span.start, prefix) : span.end])
            position = span.end + 1
            if span.role is Role.REASONING:
                thoughts.append(text.strip())
            elif span.closed:
                parsed = self.calls.parse(text)
                if isinstance(parsed, Problem):
                    problems.add(parsed)
                else:
                    calls.extend(parsed)
        end = len(ids) - 1 if ids and ids[-1] in self.stop_ids else len(ids)
        if position < end:
            outside.append(decode(ids[position:end]))
        if mode is Mode.NONE:
            problems.add(Problem.NO_MODE)
        if truncated:
            problems.add(Problem.TRUNCATED)
        if len(thoughts) > (mode is not Mode.NO_THINK):
            problems.add(Problem.REPEATED_THOUGHT)
        content = self._untag("".join(outside).strip())
        ordered = tuple(sorted(problems, key=_ORDER.__getitem__))
        # Choice: a truncated response has no mode; nobody knows what the rest of it would have done.
        found = Mode.NONE if truncated else mode
        return Reading(found, thoughts[0] if thoughts else "", tuple(calls), content, ordered)

    def _untag(self, content: str) -> str:
        before, after = self.calls.content_tags
        if before and content.startswith(before) and content.endswith(after):
            return content[len(before) : len(content) - len(after)].strip()
        return content

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _pieces(self, text: str) -> list[str]:
        return [piece for piece in self._splitter.split(text) if piece]

    @cached_property
    def _atoms(self) -> dict[str, int]:
        """Delimiters and stop tokens by their text."""
        delimiters = {i for d in self.automaton.delimiters for i in (d.open, d.close)}
        return {self.decode([i]): i for i in (*delimiters, *self.stop_ids)}

    @cached_property
    def _splitter(self) -> re.Pattern[str]:
        longest_first = sorted(self._atoms, key=len, reverse=True)
        return re.compile("(" + "|".join(re.escape(text) for text in longest_first) + ")")

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the chat template shows the tools that it is given."""
        function = {"name": PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
        return PROBE in self.render([{"role": "user", "content": "?"}], [{"type": "function", "function": function}])


def _turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The first special token that the template writes after an assistant's message, if any."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    tail = tokenizer.encode(text.rpartition(PROBE)[2], add_special_tokens=False) if PROBE in text else []
    return next((int(i) for i in tail if i in special), None)
