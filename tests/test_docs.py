"""README and docs/: Python runs, commands parse, what pages link to and name exists, and the site is whole."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import transformers
import typer
import yaml
from tiny import CHATML, SEARCH_TAGS, tiny_tokenizer

from unbraid.cli.main import app
from unbraid.data import FORMATS
from unbraid.recipe import shipped_recipes
from unbraid.tasks.services import SERVICES
from unbraid.tasks.services.intents import INTENTS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "*Not run by the tests: "
"""What stands in the line above a block of Python that needs what a test has not; it says what that is."""
MOST_NOT_RUN = 2
SLOW = {"README.md"}
ELSEWHERE = {"docs/trl.md": "tests/test_trl_docs.py"}
"""Pages whose Python another test runs."""
ROWS = "unbraid.tasks.sql:shop_tasks?count=12&calls=chat"


def python_blocks(text: str) -> tuple[list[str], int]:
    """The blocks of a page that run, and how many say that they do not."""
    found, left_out = [], 0
    for match in FENCE.finditer(text):
        if match[1] == "python":
            above = text[: match.start()].rstrip().rpartition("\n")[2]
            if above.startswith(NOT_RUN):
                left_out += 1
            else:
                found.append(match[2])
    return found, left_out


# -- Python -------------------------------------------------------------------------------------------------------


class Weather(BaseHTTPRequestHandler):
    """A server that answers every chat request with one call."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        body = json.dumps(
            {"id": "x", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [choice]}
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Where somebody serves a model."""
    found = HTTPServer(("127.0.0.1", 0), Weather)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny chat model."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), tiny_tokenizer(CHATML, SEARCH_TAGS)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def as_shipped() -> Iterator[None]:
    """Examples may register formats, services and intents of their own."""
    tables: list[Any] = [FORMATS, SERVICES, INTENTS]
    kept = [(table, dict(table)) for table in tables]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


def stand_ins(base: Path, server: str) -> dict[str, str]:
    """What of a page is replaced: a real model by a tiny one, many steps by one, a server by one that is there."""
    small = (
        "data.validation=2 data.max_prompt_tokens=4000 warmup=null model.device=cpu rollout.prompts=1 "
        "rollout.samples=2 rollout.max_new_tokens=8 learn.steps=1 evaluate.every=0 evaluate.limit=1 "
        "evaluate.modes=[auto]"
    )
    settings = ", ".join(f'"{setting}"' for setting in (f"tasks.train={ROWS}", *small.split()))
    return {
        '["model.path=Qwen/Qwen3-1.7B", "tasks.train=rows.jsonl"]': f'["model.path={base}", {settings}]',
        "Qwen/Qwen3-1.7B": str(base),
        "http://127.0.0.1:8000": server,
    }


WITH_PYTHON = [name for name, text in TEXTS.items() if python_blocks(text)[0] and name not in ELSEWHERE]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in WITH_PYTHON])
def test_python_on_the_page_runs(name, base, server, as_shipped, tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(DOCS)
    built = tmp_path / "pubtool"  # what `unbraid data build` writes
    built.mkdir()
    (built / "README.md").write_text("---\nconfigs:\n- config_name: warmup\n  data_files: warmup.jsonl\n---\n")
    (built / "warmup.jsonl").write_text('{"id": "one"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNBRAID_CACHE", str(tmp_path / "cache"))
    space: dict[str, Any] = {"__name__": "example", "tools": []}
    for block in python_blocks(TEXTS[name])[0]:
        for real, stand_in in stand_ins(base, server).items():
            block = block.replace(real, stand_in)
        exec(compile(block, name, "exec"), space)


def test_few_blocks_are_not_run():
    assert sum(python_blocks(text)[1] for text in TEXTS.values()) <= MOST_NOT_RUN
    assert len(WITH_PYTHON) >= 8
    for name, test in ELSEWHERE.items():
        assert name in TEXTS and Path(name).name in (ROOT / test).read_text(encoding="utf-8")


# -- commands -----------------------------------------------------------------------------------------------------

GROUP = typer.main.get_command(app)
PLACE = re.compile(r"[A-Z][A-Z_]*(\.\.\.)?|…|\.\.\.|\[.*")
"""Stands for what a user fills in."""


def commands(text: str) -> Iterator[str]:
    """Lines that begin with `unbraid`, in blocks or between backticks; explanations and continuations put right."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        line = line.strip().removeprefix("$ ")
        if line.startswith("unbraid "):
            told = re.search(r"\s{3,}|\s+# ", line) or re.compile(r"\s{2,}").search(line, 40)
            yield line[: told.start() if told else None].rstrip(" &")
    yield from re.findall(r"`(unbraid [^`\n]+)`", text)


def problem_of(command: str) -> str:
    """What is wrong with a command line; empty if nothing is."""
    try:
        words = [word for word in shlex.split(command)[1:] if word not in ("|", ">")]
    except ValueError as error:
        return str(error)
    group: Any = GROUP
    while hasattr(group, "commands"):
        if not words or PLACE.fullmatch(words[0]):
            return ""
        if words[0] not in group.commands:
            return f"there is no '{words[0]}'"
        group, words = group.commands[words[0]], words[1:]
    given = [word for word in words if word not in ("…", "...")]
    numbers = {name for option in group.params for name in option.opts if "int" in str(option.bare_type())}
    given = ["1" if PLACE.fullmatch(w) and i and given[i - 1] in numbers else w for i, w in enumerate(given)]
    known = {name for option in group.params for name in (*option.opts, *option.secondary_opts)}
    wrong = [w.partition("=")[0] for w in given if w.startswith("--") and w.partition("=")[0] not in {*known, "--help"}]
    if wrong:
        return f"there is no {', '.join(wrong)}"
    if "…" not in words and "..." not in words:
        try:
            group.make_context(group.name, list(given), resilient_parsing=False)
        except Exception as error:  # whatever the parser raises
            if "does not exist" not in str(error):
                return str(getattr(error, "message", error))
    if any("RECIPE" in str(option.metavar) for option in group.params):
        options = {name: option for option in group.params for name in option.opts}
        skip, layers = False, []
        for word in given:
            if word.startswith("--"):
                skip = "=" not in word and word in options and not getattr(options[word], "is_flag", False)
            elif skip:
                skip = False
            elif "=" not in word and not PLACE.fullmatch(word) and not word.endswith(".yaml"):
                layers.append(word)
        unknown = set(layers) - set(shipped_recipes())
        return f"no recipe {', '.join(sorted(unknown))}" if unknown else ""
    return ""


@pytest.mark.parametrize("name", TEXTS)
def test_commands_on_the_page_parse(name):
    found = {command: problem_of(command) for command in commands(TEXTS[name])}
    assert {command: problem for command, problem in found.items() if problem} == {}


def test_commands_are_found_and_can_be_wrong():
    assert sum(len(list(commands(text))) for text in TEXTS.values()) > 80
    for wrong in (
        "unbraid tran rows", "unbraid train --resumed rows", "unbraid train rowz", "unbraid doctor 'rows",
        "unbraid data inspekt rows.jsonl", "unbraid cost rows --fill much",
    ):  # fmt: skip
        assert problem_of(wrong), wrong
    for right in ("unbraid train rows model.path=… --resume", "unbraid serve RUN --port 8000", "unbraid recipes"):
        assert problem_of(right) == "", right


# -- links and paths ----------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor of a heading, as MkDocs and GitHub make it of plain ones."""
    text = re.sub(r"<[^>]*>|[`*]|\[([^\]]*)\]\([^)]*\)", lambda m: m[1] or "", heading)
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text.strip().lower()))


def anchors(text: str) -> set[str]:
    """Anchors of a page: headings, and those that are written."""
    plain = FENCE.sub("", text)
    return {slug(h) for h in re.findall(r"^#+ (.*)$", plain, re.MULTILINE)} | set(re.findall(r'id="([^"]+)"', plain))


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[name])):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        file = file / "README.md" if file.is_dir() else file
        if not file.is_file() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_exist(name):
    """`path/to/file.py` in the text is a file of the project, from its root, the package or the page."""
    places = (ROOT, ROOT / "src" / "unbraid", PAGES[name].parent, ROOT / "benchmarks")
    named = re.findall(r"(?:`|python )((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md))(?:`| |$)", TEXTS[name], re.MULTILINE)
    ours = [path for path in named if any((place / path.split("/")[0]).is_dir() for place in places)]
    assert [path for path in ours if not any((place / path).is_file() for place in places)] == []


def test_quoted_messages_are_said_somewhere():
    """Troubleshooting quotes messages: each is in the source, so that a search for it leads to what says it."""
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    whole = re.sub(r'"\s+f?"', "", source)
    quoted = re.findall(r"“([^”]+)”", TEXTS["docs/troubleshooting.md"])
    assert len(quoted) > 20
    assert [text for text in quoted if text not in whole] == []


# -- the site -----------------------------------------------------------------------------------------------------


def navigation() -> list[str]:
    """Pages of the navigation, in order."""

    def visit(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from visit(inner)

    return list(visit(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_the_navigation_has_every_page_once():
    made = {"index.md", "numbers.md", "contributing.md", "REFERENCE"}
    listed = navigation()
    assert len(listed) == len(set(listed))
    assert set(listed) - made == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    loads = re.compile(r'(?:<script[^>]*\bsrc|<link[^>]*\bhref|<img[^>]*\bsrc)="(https?:)?//')
    assert [str(page) for page in pages if loads.search(page.read_text(encoding="utf-8"))] == []
