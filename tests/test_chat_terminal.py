"""`unbraid chat`: scripted conversations, with made-up answers and with a policy, and a pseudo terminal."""

import codecs
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from conversing import SECONDS, Made, call, converse
from policies import calls_tasks, tiny_policy
from web_serving import running

from unbraid.chat.types import Mode
from unbraid.errors import DataError, ServerError
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_chat import CHAT
from unbraid.policy import ModelConfig, load_policy
from unbraid.serve.chat import tools_of
from unbraid.serve.chat_clients import HttpClient, LocalClient
from unbraid.serve.chat_completions import LocalModel
from unbraid.serve.openai import openai_app

TASK = calls_tasks(18)[-1]
QUERY = str(TASK.messages[0]["content"])


# -- what is said and kept ----------------------------------------------------------------------------------------


def test_one_answer_as_plain_text():
    client = Made([
        {"role": "assistant", "content": ""}, {"reasoning": "\nHm"}, {"reasoning": "m."}, {"content": "\n\n"},
        {"content": "Par"}, {"content": "is [b] :smile: is far longer than forty characters."}, {"finish": "stop"},
    ])  # fmt: skip
    assert converse(client, "  Where? ", "") == (
        True,
        "Hmm.\n\nParis [b] :smile: is far longer than forty characters.\n7 tokens · think, its own choice · ? s\n",
    )
    assert client.asked == [{"messages": [{"role": "user", "content": "Where?"}]}] and client.closed == 1


def test_the_next_question_has_what_was_said_before():
    client = Made([{"reasoning": "Hm"}, {"content": " Yes. "}], [{"content": "No."}])
    converse(client, "a", "b", mode=Mode.THINK, system="Be brief.", temperature=0.5, max_tokens=9, seed=3)
    assert client.asked[1] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "Yes.", "reasoning": "Hm"},
            {"role": "user", "content": "b"},
        ],
        "chat_template_kwargs": {"enable_thinking": True},
        "temperature": 0.5, "max_tokens": 9, "seed": 3,
    }  # fmt: skip


def test_commands(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"name": "add", "parameters": {}}, {"type": "function", "function": {"name": "sub"}}]))
    client = Made(*([{"content": "x"}] for _ in range(4)))
    well, out = converse(
        client, "/mode no_think", f"/tools {path}", "/system S", "a", "/mode auto", "/tools", "/system", "b",
        "/clear", "c", f"/save {tmp_path / 'saved.json'}", "/help", "/quit", "never",
    )  # fmt: skip
    assert well
    first, second, third = client.asked
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert [tool["function"]["name"] for tool in first["tools"]] == ["add", "sub"]
    assert first["messages"][0] == {"role": "system", "content": "S"}
    assert second.keys() == {"messages"} and second["messages"][0] == {"role": "user", "content": "a"}
    assert third["messages"] == [{"role": "user", "content": "c"}]
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved == [{"role": "user", "content": "c"}, {"role": "assistant", "content": "x"}]
    assert "7 tokens · no_think · ? s\n" in out and "tools: add, sub\n" in out and "/mode auto|think|no_think" in out


def test_calls_are_answered_by_hand():
    client = Made(
        [{"content": "Wait."}, {"tool_calls": [call("add", '{"a"')]}, {"tool_calls": [call("", ': "ü"}')]},
         {"tool_calls": [call("sub", "", 1, "c1")]}],
        [{"content": "Done."}],
        [{"content": "Fine."}],
    )  # fmt: skip
    well, out = converse(client, "go", "/tool 3", "/tool 4 [x]", "/tool 5", "next", tools=({"function": {}},))
    assert not well and "error: no call waits for a result" in out
    assert 'Wait.\n→ add {"a": "ü"}\n→ sub {}\n' in out and "add: 3\nsub: 4 [x]\nDone.\n" in out
    assert client.asked[1]["messages"][1:] == [
        {"role": "assistant", "content": "Wait.", "tool_calls": [
            {"id": "c0", "type": "function", "function": {"name": "add", "arguments": '{"a": "ü"}'}},
            {"id": "c1", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "c0", "name": "add", "content": "3"},
        {"role": "tool", "tool_call_id": "c1", "name": "sub", "content": "4 [x]"},
    ]  # fmt: skip
    assert client.asked[2]["messages"][-1] == {"role": "user", "content": "next"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/nix", "no command /nix"),
        ("/mode deep", "not 'deep'"),
        ("/tools nowhere.json", "nowhere.json cannot be read"),
        ("/tool x", "no call waits"),
        ("/save", "name of a file"),
        ("/save nowhere/x", "No such file"),
        (f"/save {__file__}", "exists"),
    ],
)
def test_mistakes_are_one_line_and_the_conversation_goes_on(line, told):
    client = Made([{"content": "x"}])
    well, out = converse(client, line, "a")
    assert not well and len(client.asked) == 1
    first, *rest = out.splitlines()
    assert first.startswith("error: ") and told in first and rest == ["x", "7 tokens · no_think, its own choice · ? s"]


@pytest.mark.parametrize("text", ["{", "3", '{"name": "x"}', "[3]", '[{"title": "x"}]', "\x00", "[" * 100_000])
def test_files_that_hold_no_tools(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match=r"t\.json") as caught:
        tools_of(tmp_path / "t.json")
    assert "\n" not in str(caught.value)


def test_errors_are_one_line_and_nothing_of_the_question_is_kept():
    client = Made([ServerError("busy\nnow")], [{"reasoning": "Hm"}, OSError("gone")], [{"content": "x"}])
    well, out = converse(client, "a", "b", "c")
    assert not well and client.closed == 3
    assert out.splitlines()[:3] == ["error: busy now", "Hm", "error: gone"]
    assert client.asked[2]["messages"] == [{"role": "user", "content": "c"}]


def test_ctrl_c_ends_an_answer_only():
    client = Made([{"content": "Once upon"}, KeyboardInterrupt()], [{"content": "x"}])
    well, out = converse(client, "a", KeyboardInterrupt(), "b", interactive=True)
    assert well and client.closed == 2
    assert "Once upon\nstopped; this question and its answer are forgotten\n\nCtrl-D leaves\n" in out
    assert client.asked[1]["messages"] == [{"role": "user", "content": "b"}]
    with pytest.raises(KeyboardInterrupt):
        converse(Made([KeyboardInterrupt()]), "a")
    with pytest.raises(KeyboardInterrupt):
        converse(Made(), KeyboardInterrupt())


def test_a_terminal_gets_colours_by_role_and_no_commands_of_the_model():
    answer = [{"reasoning": "think\x1b]0;"}, {"content": "say\x9b2J\ud800"}, {"tool_calls": [call("f", "{}\x07")]}]
    _, out = converse(Made(answer, [{"content": "x"}]), "a", "/tool r", colour=True, interactive=True)
    assert "\x1b[2;33mthink�]0;" in out and "say�2J�" in out and "\x1b[1;34m→ f {}�" in out
    assert "\x1b[32mf: r" in out and "answers a call" in out
    assert not re.search("\x1b\\]|\x9b|\x07", out)


def test_input_that_is_no_text_ends_it():
    bad = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    assert converse(Made(), bad) == (False, "error: the input is not utf-8\n")


# -- a policy, here and behind a server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return load_policy(ModelConfig(path=str(base_path(0)), device="cpu"), CHAT)


def test_the_same_conversation_here_and_over_http(base):
    lines = (QUERY, "/mode think", QUERY, "/mode no_think", QUERY, "/tool e1", "e1 " * 300, "/clear", "i1c e2")
    settings: dict[str, Any] = {"tools": TASK.tools, "seed": 2, "max_tokens": 80}
    with LocalModel(base, "calls-0") as model:
        here = converse(LocalClient(model), *lines, **settings)
    with running(openai_app(base, "calls-0")) as url:
        there = converse(HttpClient(url), *lines, **settings)
        assert HttpClient(f"{url}/v1/#x").name == "x" and HttpClient(f"{url}/v1").name == "calls-0"
        well, out = converse(HttpClient(f"{url}/v1#x"), "a")
        assert not well and "status 404: the model \"x\" does not exist: this server has 'calls-0'" in out
    told = [line for line in here[1].splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "leaves none for an answer" in told[0]
    assert re.sub(r"http://\S+: status 400: ", "", there[1]) == here[1] and not here[0] and not there[0]
    assert here[1].count("→ t") == 5 and "tokens · think · " in here[1] and "tokens · no_think · " in here[1]


def test_ctrl_c_frees_the_slot_of_a_policy_here():
    policy = tiny_policy()
    policy.format.stop_ids = (-1,)
    with LocalModel(policy, "tiny", slots=1) as model:
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), 2))
        timer.start()
        well, out = converse(LocalClient(model), "i1c e2", interactive=True, max_tokens=30_000)
        assert well and "stopped; this question" in out
        well, out = converse(LocalClient(model), "i1c e2", interactive=True, max_tokens=3)
        assert well and "3 tokens · " in out


def test_a_policy_that_fails_is_one_line(base, monkeypatch):
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory\nadvice")

    with LocalModel(base, "calls-0") as model, monkeypatch.context() as patch:
        patch.setattr(base.model, "forward", broken)
        assert converse(LocalClient(model), "i1c e2") == (
            False, "error: the model failed: RuntimeError: out of memory\n",
        )  # fmt: skip


# -- a real terminal ----------------------------------------------------------------------------------------------

TALK = """
import sys, time
from rich.console import Console
from unbraid.serve.chat import chat

class Slow:
    name = "slow"
    def chunks(self, asked):
        yield {"choices": [{"delta": {"content": "begun "}}]}
        if asked["messages"][-1]["content"] == "wait":
            time.sleep(60)
        yield {"choices": [{"delta": {"content": f"ended {len(asked['messages'])}"}}]}

sys.exit(0 if chat(Slow(), Console()) else 1)
"""


class Terminal:
    """A program in a pseudo terminal."""

    def __init__(self, code: str):
        self.pid, self.file = pty.fork()
        if not self.pid:
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [sys.executable, "-c", code])
        self.seen, self.decoder = "", codecs.getincrementaldecoder("utf-8")()

    def expect(self, text: str, seconds: float = 60) -> None:
        """Read until `text` has appeared behind what was expected before."""
        until = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < until, (text, self.seen)
            if select.select([self.file], [], [], 0.1)[0]:
                self.seen += self.decoder.decode(os.read(self.file, 65536))
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())


def test_ctrl_c_and_ctrl_d_at_a_terminal():
    terminal = Terminal(TALK)
    terminal.expect("slow: /help lists the commands")
    terminal.expect("› ")
    terminal.type("hello\r")
    terminal.expect("begun ended 1")
    terminal.expect("its own choice")
    terminal.expect("› ")
    terminal.type("wait\r")
    terminal.expect("begun ")
    terminal.type("\x03")
    terminal.expect("stopped; this question")
    terminal.expect("› ")
    terminal.type("half a line")
    terminal.expect("half a line")
    time.sleep(1)  # Python's readline loses a signal that comes after its echo and before it waits for a key
    terminal.type("\x03")
    terminal.expect("Ctrl-D leaves")
    terminal.expect("› ")
    terminal.type("again\r")
    terminal.expect("begun ended 3")
    terminal.expect("› ")
    terminal.type("\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    os.close(terminal.file)


def test_a_pipe_is_one_message_a_line():
    found = subprocess.run(
        [sys.executable, "-c", TALK], input="a\n\nb\n/nix\n", capture_output=True, text=True, timeout=120
    )
    facts = "no_think, its own choice · ? s"
    assert SECONDS.sub("? s", found.stdout).splitlines() == [
        "begun ended 1", facts, "begun ended 3", facts, "error: there is no command /nix: /help lists them",
    ]  # fmt: skip
    assert (found.returncode, found.stderr) == (1, "")
