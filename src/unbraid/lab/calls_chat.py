"""How the calls world is written: a word-level tokenizer with a chat template, a call format, two modes.

    prompt  <tools> t6 t0 t2 <ask> i2b e7 r0 r1 r5 <go>
    direct  <no_think> <tool_call> t2 ( p2 = e8 ) </tool_call> <eos>
    think   <think> use t2 ; start at e7 ; ... so value e8 </think> <tool_call> t2 ( p2 = e8 ) </tool_call> <eos>

It goes through the same code as any real model: nothing here knows how training or sampling work.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from unbraid.chat.calls import CallFormat
from unbraid.chat.format import ChatConfig
from unbraid.chat.preset import Preset
from unbraid.chat.types import Answer, Call, Mode, Problem
from unbraid.lab.calls_world import ENTITIES, RELATIONS, TOOLS, WORDINGS, Query

PAD, UNKNOWN, STOP = "<pad>", "<unk>", "<eos>"
WORDS = (
    *("<tools>", "<ask>", "<go>", "<think>", "</think>", "<no_think>", "<tool_call>", "</tool_call>"),
    *("(", ")", "=", ",", ";", "use", "start", "at", "now", "take", "of", "this", "gives", "so", "value"),
    *(f"e{i}" for i in range(ENTITIES)),
    *(f"r{i}" for i in range(RELATIONS)),
    *(f"t{i}" for i in range(TOOLS)),
    *(f"p{i}" for i in range(TOOLS)),
    *(f"i{i}{wording}" for i in range(TOOLS) for wording in WORDINGS),
)

CHAT_TEMPLATE = (
    "<tools>{% for tool in tools or [] %} {{ tool.function.name }}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %} <ask> {{ message.content }} <go> "
    "{% elif message.role == 'assistant' %}{{ message.content }} <eos>"
    "{% endif %}{% endfor %}"
)

CHAT = ChatConfig(
    preset=Preset(think="<think> ", after_thought=" </think> ", no_think="<no_think> "),
    call_format="unbraid.lab.calls_chat:WordCalls",
)
"""The chat section of a recipe for this world."""


def calls_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word, the same ids in every world."""
    vocabulary = {word: i for i, word in enumerate((PAD, UNKNOWN, STOP, *WORDS))}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=STOP,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_words(query: Query) -> list[str]:
    """What the chat template gives for a query's task, without the template: pre-training writes half a million."""
    return ["<tools>", *(f"t{t}" for t in query.offered), "<ask>", *query.text.split(), "<go>"]


def response_words(answer: Answer) -> list[str]:
    """What the chat format gives for an answer, the stop token included."""
    opening = ["<think>", *answer.thought.split(), "</think>"] if answer.mode is Mode.THINK else ["<no_think>"]
    calls = [word for call in answer.calls for word in ("<tool_call>", *call_words(call), "</tool_call>")]
    return [*opening, *calls, STOP]


def call_words(call: Call) -> list[str]:
    """`t2 ( p2 = e8 )`, arguments parted by commas."""
    words = [word for name, value in call.arguments.items() for word in (",", name, "=", str(value))]
    return [call.name, "(", *words[1:], ")"]


class WordCalls(CallFormat):
    """Calls in words, one per span: `<tool_call> t2 ( p2 = e8 ) </tool_call>`."""

    def render(self, calls: Sequence[Call]) -> str:
        return " ".join(" ".join((self.open, *call_words(call), self.close)) for call in calls)

    def parse(self, text: str) -> tuple[Call, ...] | Problem:
        words = text.split()
        if not words:
            return Problem.EMPTY
        name, rest = words[0], words[1:]
        if name in _PUNCTUATION:
            return Problem.NO_NAME
        if len(rest) < 2 or rest[0] != "(" or rest[-1] != ")":
            return Problem.NOT_OBJECT
        parts = [part.split() for part in " ".join(rest[1:-1]).split(",")] if rest[1:-1] else []
        if any(len(p) != 3 or p[1] != "=" or {p[0], p[2]} & _PUNCTUATION for p in parts):
            return Problem.BAD_ARGUMENTS
        arguments = {p[0]: p[2] for p in parts}
        return (Call(name, arguments),) if len(arguments) == len(parts) else Problem.BAD_ARGUMENTS


_PUNCTUATION = {"(", ")", "=", ",", ";"}
