"""How the search world is written: a word-level tokenizer with a chat template, and the public `search` call format.

    <q> a5_0 of a7_0 of e21 </q>
    <think> next a7_0 e21 </think> <search> e21 w7_0 w7_1 </search>
    <information> e21 w7_1 e76 . e3 w7_0 e21 . </information>
    <think> got e76 next a5_0 e76 </think> <search> e76 w5_0 w5_1 </search>
    <information> e76 w5_0 e9 . e76 w5_1 e4 . </information>
    <think> got e9 </think> <answer> e9 </answer> <eos>

Every line from the second on that is no observation is a response of its own. The tags split words apart wherever they
stand, as they do in the tokenizers of large models.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from unbraid.chat.format import ChatConfig
from unbraid.chat.preset import Preset
from unbraid.chat.types import Answer
from unbraid.lab.search_world import ENTITIES, NOTHING, RELATIONS, WORDINGS

PAD, UNKNOWN, STOP = "<pad>", "<unk>", "<eos>"
TAGS = (
    *("<q>", "</q>", "<think>", "</think>", "<no_think>", "<search>", "</search>"),
    *("<information>", "</information>", "<answer>", "</answer>"),
)
WORDS = (
    *("of", "next", "got", NOTHING, "."),
    *(f"e{i}" for i in range(ENTITIES)),
    *(f"a{r}_{w}" for r in range(RELATIONS) for w in range(WORDINGS)),
    *(f"w{r}_{w}" for r in range(RELATIONS) for w in range(WORDINGS)),
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<q> {{ message.content }} </q> "
    "{% elif message.role == 'assistant' %}{{ message.content }} <eos>"
    "{% endif %}{% endfor %}"
)

CHAT = ChatConfig(
    preset=Preset(think="<think> ", after_thought=" </think> ", no_think="<no_think> "), call_format="search"
)
"""The chat section of a recipe for this world. No one has to think here; who does not, starts with `<no_think>`."""


def search_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word, the same ids in every world."""
    return tagged_tokenizer(WORDS)


def tagged_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of this way of writing over other words: the tags first, one id per word."""
    vocabulary = {word: i for i, word in enumerate((PAD, UNKNOWN, STOP, *TAGS, *words))}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=STOP,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_words(question: str) -> list[str]:
    """What the chat template gives for a question, without the template: pre-training writes tens of thousands."""
    return ["<q>", *question.split(), "</q>"]


def response_words(answer: Answer) -> list[str]:
    """What the chat format gives for a thinking answer: it ends in `</search>`, or with the stop token."""
    thought = ["<think>", *answer.thought.split(), "</think>"]
    if answer.calls:
        return [*thought, "<search>", *answer.calls[0].arguments["query"].split(), "</search>"]
    return [*thought, "<answer>", *answer.content.split(), "</answer>", STOP]


def observation_words(text: str) -> list[str]:
    """What follows a search."""
    return ["<information>", *text.split(), "</information>"]
