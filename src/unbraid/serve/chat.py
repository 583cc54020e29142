"""`unbraid chat`: a conversation with a model in the terminal, its thinking and its calls told apart."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from unbraid.chat.types import Mode
from unbraid.errors import DataError, UnbraidError
from unbraid.serve.chat_clients import Chunks, Client, Heard
from unbraid.serve.completion_wire import BadRequestError, read_tools
from unbraid.tokens import Role

MODES = (Mode.AUTO, Mode.THINK, Mode.NO_THINK)
# Choice: as in the report's transcripts, but thinking steps back.
_STYLES = {Role.PROMPT: "dim", Role.REASONING: "dim yellow", Role.ACTION: "bold blue", Role.OBSERVATION: "green"}
# Control characters, those that turn the direction of writing, and surrogates, which no encoding holds.
_UNSAFE = [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SAFE = dict.fromkeys([*_UNSAFE, *range(0xD800, 0xE000)], "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True)
class ChatSettings:
    """How answers are asked for.

    system: what the model is told first; empty tells it nothing. tools: schemas, as the API takes them.
    temperature, max_tokens, seed: None leaves them to the server.
    """

    mode: Mode = Mode.AUTO
    system: str = ""
    tools: Sequence[Mapping[str, Any]] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


def chat(
    client: Client,
    console: Console,
    settings: ChatSettings | None = None,
    read: Callable[[str], str] = input,
    interactive: bool | None = None,
) -> bool:
    """Converse until the input ends or `/quit`.

    Every line is a message or a command (`/help` lists them). Ctrl-C ends the answer under way, which is then forgotten
    together with its question; Ctrl-D leaves. Where standard input is no terminal, nothing is asked or greeted, and
    Ctrl-C leaves. Nothing that a server or a model does ends the conversation.

    Args:
        read: the next line of input, given the prompt; EOFError ends it. interactive: None asks standard input.

    Returns:
        Whether all answers came and all commands were understood.

    Raises:
        KeyboardInterrupt: Ctrl-C, where it is not interactive.
    """
    interactive = bool(sys.stdin.isatty() if interactive is None else interactive)
    talk = _Talk(client, console, settings or ChatSettings(), interactive)
    prompt = ""
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  # a line can be edited, and had again
        prompt = "\001\033[1m\002› \001\033[0m\002" if console.color_system else "› "
        talk.say(f"{client.name}: /help lists the commands, Ctrl-D leaves", _STYLES[Role.PROMPT])
    while True:
        try:
            line = read(prompt)
        except EOFError:
            break
        except KeyboardInterrupt:
            if not interactive:
                raise
            talk.say("\nCtrl-D leaves", _STYLES[Role.PROMPT])
            continue
        except UnicodeDecodeError as problem:
            talk.complain(f"the input is not {problem.encoding}")
            break
        if not talk.take(line.strip()):
            break
    if interactive:
        talk.say("")
    return talk.all_well


def tools_of(path: Path) -> tuple[dict[str, Any], ...]:
    """The tool schemas of a JSON file: a list of them, each bare or as the API takes it.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.expanduser().read_text(encoding="utf-8"))
        if isinstance(found, list):
            found = [one if _wrapped(one) else {"type": "function", "function": one} for one in found]
        return read_tools(found)
    except BadRequestError as problem:
        raise DataError(f"{path} holds no tools: write a JSON list of schemas, each with a name") from problem
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"{path} cannot be read as tools: {problem}") from problem


def _wrapped(tool: Any) -> bool:
    return isinstance(tool, dict) and "function" in tool


class _Talk:
    """A conversation: its messages, its settings, and what is typed."""

    def __init__(self, client: Client, console: Console, settings: ChatSettings, interactive: bool):
        self.client, self.console, self.interactive = client, console, interactive
        self.mode, self.system = settings.mode, settings.system
        self.tools = tuple(settings.tools)
        drawing = {"temperature": settings.temperature, "max_tokens": settings.max_tokens, "seed": settings.seed}
        self.drawing = {key: value for key, value in drawing.items() if value is not None}
        self.messages: list[dict[str, Any]] = []
        self.waiting: list[dict[str, Any]] = []  # calls that have no result yet
        self.all_well = True

    def say(self, text: str, style: str = "", end: str = "\n") -> None:
        """Print as it is, but for what a terminal would take for commands."""
        self.console.print(Text(text.translate(_SAFE), style), end=end, soft_wrap=True, highlight=False)

    def complain(self, text: str) -> None:
        """One line of what went wrong."""
        self.all_well = False
        self.say("error: " + " ".join(text.split()), "red")

    def take(self, line: str) -> bool:
        """A line of input; false if it ends the conversation."""
        if not line.startswith("/"):
            if line:
                self.ask([{"role": "user", "content": line}])
            return True
        word, _, rest = line[1:].partition(" ")
        if word == "quit":
            return False
        if word not in _COMMANDS:
            self.complain(f"there is no command /{word}: /help lists them")
            return True
        try:
            _COMMANDS[word][1](self, rest.strip())
        except (OSError, ValueError, RecursionError) as problem:
            self.complain(str(problem))
        return True

    def ask(self, news: list[dict[str, Any]]) -> None:
        """Send what is new, print the answer and keep both; nothing is kept if there is no answer."""
        heard, started = Heard(), time.monotonic()
        try:
            with closing(self.client.chunks(self._request(news))) as chunks:
                self._print(chunks, heard)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self.say("\nstopped; this question and its answer are forgotten", _STYLES[Role.PROMPT])
            return
        except (UnbraidError, OSError) as problem:
            if heard.reasoning or heard.content:
                self.say("")
            self.complain(str(problem))
            return
        self.messages += [*news, heard.message()]
        self.waiting = heard.calls()
        for call in self.waiting:
            function = call["function"]
            self.say(f"→ {function['name']} {function['arguments']}", _STYLES[Role.ACTION])
        self._facts(heard, time.monotonic() - started)

    def _request(self, news: Sequence[dict[str, Any]]) -> dict[str, Any]:
        asked: dict[str, Any] = {"messages": [*self.history(), *news], **self.drawing}
        if self.tools:
            asked["tools"] = list(self.tools)
        if self.mode is not Mode.AUTO:  # what servers of other models understand too
            asked["chat_template_kwargs"] = {"enable_thinking": self.mode is Mode.THINK}
        return asked

    def history(self) -> list[dict[str, Any]]:
        """All messages so far, the system's first."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def _print(self, chunks: Chunks, heard: Heard) -> None:
        """Print text as it comes; a blank line parts the thought from the answer."""
        begun = ""
        with self.console.status("…") as waiting:
            for chunk in chunks:
                for kind, text in heard.take(chunk):
                    if begun != kind:
                        text = text.lstrip()
                        if not text:
                            continue
                        waiting.stop()
                        self.say("\n\n" if begun else "", end="")
                        begun = kind
                    self.say(text, _STYLES[Role.REASONING] if kind == "reasoning" else "", end="")
        if begun:
            self.say("")

    def _facts(self, heard: Heard, seconds: float) -> None:
        mode = str(self.mode)
        if self.mode is Mode.AUTO:
            mode = f"{Mode.THINK if heard.reasoning else Mode.NO_THINK}, its own choice"
        tokens = f"{heard.tokens} tokens" if heard.tokens is not None else ""
        cut = "cut off: no tokens were left" if heard.finish == "length" else ""
        call = "/tool TEXT answers a call" if self.waiting and self.interactive else ""
        facts = [tokens, mode, f"{seconds:.1f} s", cut, call]
        self.say(" · ".join(fact for fact in facts if fact), _STYLES[Role.PROMPT])

    def set_mode(self, word: str) -> None:
        """`/mode`."""
        if word not in MODES:
            raise ValueError(f"/mode takes {', '.join(MODES)}, not '{word}'")
        self.mode = Mode(word)

    def set_system(self, text: str) -> None:
        """`/system`."""
        self.system = text

    def set_tools(self, path: str) -> None:
        """`/tools`."""
        self.tools = tools_of(Path(path)) if path else ()
        names = ", ".join(tool["function"]["name"] for tool in self.tools)
        self.say(f"tools: {names or 'none'}", _STYLES[Role.PROMPT])

    def answer_call(self, text: str) -> None:
        """`/tool`: the result of the first call that has none; after the last one the model goes on."""
        if not self.waiting:
            raise ValueError("no call waits for a result: ask something that takes a tool")
        call, *rest = self.waiting
        result = {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": text}
        self.say(f"{call['function']['name']}: {text}", _STYLES[Role.OBSERVATION])
        if rest:
            self.messages.append(result)
            self.waiting = rest
        else:
            self.ask([result])

    def clear(self, _: str) -> None:
        """`/clear`."""
        self.messages, self.waiting = [], []

    def save(self, path: str) -> None:
        """`/save`."""
        if not path:
            raise ValueError("/save takes the name of a file")
        with Path(path).expanduser().open("x", encoding="utf-8") as file:
            json.dump(self.history(), file, indent=2)
            file.write("\n")
        self.say(f"saved {len(self.history())} messages", _STYLES[Role.PROMPT])

    def help(self, _: str) -> None:
        """`/help`."""
        for name, (usage, _command, meaning) in _COMMANDS.items():
            self.say(f"{f'/{name} {usage}':<28}{meaning}")
        self.say(f"{'/quit':<28}leave, as Ctrl-D does; Ctrl-C ends an answer")


_COMMANDS: dict[str, tuple[str, Callable[[_Talk, str], None], str]] = {
    "mode": ("auto|think|no_think", _Talk.set_mode, "whether to think; auto: the model picks"),
    "system": ("[TEXT]", _Talk.set_system, "what the model is told first; nothing without TEXT"),
    "tools": ("[FILE.json]", _Talk.set_tools, "tools to offer, a JSON list of schemas; none without a file"),
    "tool": ("TEXT", _Talk.answer_call, "the result of the model's call, by hand"),
    "clear": ("", _Talk.clear, "forget the conversation; mode, system and tools stay"),
    "save": ("FILE", _Talk.save, "write the messages, as JSON"),
    "help": ("", _Talk.help, "this list"),
}
