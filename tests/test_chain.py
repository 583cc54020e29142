"""From rows to a model that others load, by the commands that a user types: every link is made of the one before it.

data build → warm-up → train → serve by vLLM → BFCL's own harness → compare → export → stock transformers. The model is
tiny and knows nothing, so no score is expected of it: only that nothing is lost or mixed up on the way. It needs the
environments of `make setup-vllm` and `make setup-bfcl`.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from safetensors.torch import load_file

from unbraid.bench.bfcl.agreement import ast_tasks
from unbraid.bench.bfcl.installation import Installation, find_bfcl
from unbraid.bench.bfcl.run import read_answers
from unbraid.bench.bfcl.served import Server, of_run
from unbraid.bench.compare import compare_runs
from unbraid.bench.score import BenchmarkScore, read_entries, read_score
from unbraid.chat import Mode, Reading
from unbraid.data import DataConfig, read_tasks
from unbraid.lab.public_rows import toolace_rows, xlam_rows
from unbraid.learn.log import read_metrics, read_rollouts
from unbraid.tasks import Reward, Task
from unbraid.vllm.installation import find_vllm

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("UNBRAID_DATA", Path(__file__).parents[2] / "shared" / "data"))
REAL = {"toolrl": "toolrl/rlla_sft.json", "glaive": "glaive/glaive_toolcall_en_demo.json"}
ROWS = 60
CATEGORIES = ("simple_python", "multiple", "parallel", "irrelevance", "live_simple")
EACH = 21
FLAGS = ("--enforce-eager", "--max-model-len=8192")
STOCK = Path(__file__).with_name("stock_loading.py")


def brevity(task: Task, reading: Reading) -> Reward:
    """Shorter is better: differs within every group, as the rewards of a model that knows nothing do not."""
    return Reward(-len(reading.content + reading.thought) / 100, {}, False, "measured")


def unbraid(work: Path, *words: str) -> str:
    """What a command prints, run in `work` as a process."""
    done = subprocess.run(
        [sys.executable, "-m", "unbraid", *words], cwd=work, capture_output=True, text=True, timeout=900,
        env={**os.environ, "COLUMNS": "150"},
    )  # fmt: skip
    assert done.returncode == 0, f"unbraid {' '.join(words)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_from_rows_to_a_model_that_others_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    harness, vllm = find_bfcl(), find_vllm(os.environ.get("UNBRAID_VLLM_PYTHON", "")).python
    monkeypatch.setenv("UNBRAID_BFCL_PYTHON", str(harness.python.absolute()))
    build_set(tmp_path, harness)
    train_two(tmp_path)
    with of_run(tmp_path / "mine", python=str(vllm), flags=FLAGS) as server:
        assert server.by == "vllm"
        said = chat_with(server, harness)
        ask_bfcl(tmp_path, "--url", f"{server.url}#{server.model}", "--out", "mine")
    ask_bfcl(tmp_path, "plain", "--local")
    check_record(tmp_path / "mine", harness, {"server": "vllm"}, "the server's")
    check_record(tmp_path / "plain", harness, {"server": "unbraid"}, "think-block, hermes")
    check_comparison(tmp_path)
    check_export(tmp_path, said)


def write_rows(folder: Path) -> list[str]:
    """Real rows where they are, made-up ones of the public sets' formats elsewhere; the `--source` flags of them."""
    folder.mkdir()
    rows: dict[str, Any] = {"toolace": list(toolace_rows(ROWS)), "xlam": list(xlam_rows(ROWS))}
    if all((DATA / name).is_file() for name in REAL.values()):
        rows = {name: json.loads((DATA / file).read_text())[:ROWS] for name, file in REAL.items()}
    for name, of in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(of, ensure_ascii=False))
    return [word for name in rows for word in ("--source", f"{name}=rows/{name}.json")]


def build_set(work: Path, harness: Installation) -> None:
    """A base, and a set that it labelled (it is never right: gold answers are what is left), audited against BFCL."""
    sources = write_rows(work / "rows")
    unbraid(work, "lab", "chat-model", "rows", "--out", "base", "--hidden", "64", "--vocab-size", "2048")
    recipe = ["rows-small", "model.path=base", "rollout.max_new_tokens=16"]
    sizes = ["--warmup", "32", "--rl", "12", "--tries", "2", "--fallback", "gold", "--cut", ""]
    said = unbraid(
        work, "data", "build", *recipe, *sources, *sizes, "--benchmark", f"bfcl={harness.data}", "--out", "set"
    )
    assert "overlap bfcl" in said
    warmup, rl = (read_tasks(str(work / "set" / f"{name}.jsonl"), DataConfig(no_call=1.0)) for name in ("warmup", "rl"))
    assert (len(warmup.tasks), len(rl.tasks)) == (32, 12) and not warmup.skipped and not rl.skipped
    assert {t.id for t in warmup.tasks}.isdisjoint(t.id for t in rl.tasks) and all(t.answers for t in warmup.tasks)


def train_two(work: Path) -> None:
    """Warm-up and RL on the set, and another method from the same warm-up."""
    common = [
        "tasks.train=set/rl.jsonl", "data.validation=2", f"reward.function={__file__}:brevity",
        "rollout.prompts=2", "rollout.samples=4", "rollout.max_new_tokens=48", "learn.steps=2",
        "evaluate.modes=[auto]", "evaluate.limit=2",
    ]  # fmt: skip
    warmup = [
        "tasks.warmup=set/warmup.jsonl",
        "warmup.steps=60",
        "warmup.batch_examples=4",
        "warmup.learning_rate=0.01",
    ]
    unbraid(work, "train", "rows-small", "recommended", "model.path=base", *common, *warmup, "--out", "mine")
    unbraid(work, "train", "rows-small", "plain", "model.path=mine/start", *common, "warmup=null", "--out", "plain")
    ids = {t.id for t in read_tasks(str(work / "set" / "rl.jsonl"), DataConfig(no_call=1.0)).tasks}
    for name in ("mine", "plain"):
        first, second = read_metrics(work / name)
        assert first["grad_norm"] > 0 and second["grad_norm"] > 0
        drawn = [t for path in sorted((work / name / "rollouts").iterdir()) for t in read_rollouts(path)]
        assert len(drawn) == 2 * 2 * 4 and {t.task_id for t in drawn} <= ids
    weights = {where: load_file(work / where / "model.safetensors") for where in ("base", "mine/start", "mine/final")}
    names = weights["base"].keys()
    for before, after in (("base", "mine/start"), ("mine/start", "mine/final")):
        assert any(not weights[before][name].equal(weights[after][name]) for name in names)


def chat_with(server: Server, harness: Installation) -> dict[str, Any]:
    """What vLLM answers to one of BFCL's questions, with the ids of prompt and answer and their log-probs."""
    task = next(task for task in ast_tasks(harness) if task.extra["id"] == "multiple_0")
    messages: Any = list(task.messages)
    tools: Any = [dict(tool) for tool in task.tools]
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model=server.model, messages=messages, tools=tools, temperature=0, max_tokens=24, logprobs=True,
            extra_body={"return_token_ids": True},
        )  # fmt: skip
    choice = answer.choices[0]
    logprobs = [one.logprob for one in choice.logprobs.content]
    assert len(choice.token_ids) == len(logprobs) > 0
    return {
        "messages": messages, "tools": tools, "prompt": answer.prompt_token_ids, "drawn": choice.token_ids,
        "logprob": logprobs[-1],
    }  # fmt: skip


def ask_bfcl(work: Path, *how: str) -> None:
    wanted = [f"--limit={EACH}", "--max-tokens=48", *(f"--categories={name}" for name in CATEGORIES)]
    assert "entries" in unbraid(work, "bench", "bfcl", *how, *wanted)


def record_of(run: Path) -> tuple[Path, BenchmarkScore]:
    (folder,) = (run / "benchmarks" / "bfcl").iterdir()
    return folder, read_score(folder)


def check_record(run: Path, harness: Installation, served: dict[str, str], template: str) -> None:
    """Every entry once, with the server's tokens and the official verdict; and how all of it was asked."""
    folder, score = record_of(run)
    entries, answers = {e.id: e for e in read_entries(folder)}, read_answers(folder / "answers.jsonl")
    assert Counter(e.category for e in entries.values()) == dict.fromkeys(CATEGORIES, EACH)
    assert sorted(answer["id"] for answer in answers) == sorted(entries) and score.accuracy.n == len(entries) >= 100
    for answer in answers:
        (reply,) = answer["replies"]
        assert entries[answer["id"]].tokens == reply["completion_tokens"] > 0 and reply["prompt_tokens"] > 50
    official = [json.loads(p.read_text().splitlines()[0]) for p in (folder / "official").rglob("BFCL_*_score.json")]
    assert len(official) == len(CATEGORIES) and sum(one["total_count"] for one in official) == len(entries)
    assert sum(one["correct_count"] for one in official) == sum(e.score for e in entries.values())
    assert score.accuracy.value == pytest.approx(np.mean([e.score for e in entries.values()]))
    assert score.tokens.value == pytest.approx(np.mean([e.tokens for e in entries.values()]))
    setting = score.setting
    assert (setting.mode, setting.decoding, setting.other, setting.template) == (Mode.AUTO, "greedy", served, template)
    assert setting.version == f"bfcl-eval {harness.version}" and "its files as published" in setting.checker
    assert {"unbraid", "bfcl_eval"} <= setting.versions.keys() and setting.command.startswith("unbraid bench bfcl ")


def check_comparison(work: Path) -> None:
    """Pairs of all entries, the differences those of the two records, and what was asked otherwise."""
    said = unbraid(work, "compare", "plain", "mine", "--out", "comparison.html")
    assert "bfcl" in said and "own evaluation" in said
    own, bench = compare_runs([str(work / "plain"), str(work / "mine")]).sections
    assert own.title == "own evaluation" and bench.title == "bfcl" and bench.asked == "auto, greedy"
    first, second = bench.rows
    scores = [record_of(work / name)[1] for name in ("plain", "mine")]
    assert first.difference is None and second.difference and second.difference.common == EACH * len(CATEGORIES)
    assert second.difference.accuracy.value == pytest.approx(scores[1].accuracy.value - scores[0].accuracy.value)
    assert second.difference.tokens.value == pytest.approx(scores[1].tokens.value - scores[0].tokens.value)
    assert "asked otherwise" in second.note and "server unbraid" in second.note
    page = (work / "comparison.html").read_text(encoding="utf-8")
    assert all(setting.version in page for setting in (score.setting for score in scores))


def check_export(work: Path, said: dict[str, Any]) -> None:
    """Stock transformers make the prompt that vLLM was given, and the token that it drew, of the exported folder."""
    unbraid(work, "export", "mine")
    folder, (_, score) = work / "mine" / "export", record_of(work / "mine")
    card = (folder / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in card.splitlines() if line.startswith("| bfcl ")]
    assert f"{100 * score.accuracy.value:.1f}" in line
    asked = {
        "folders": {"whole": [str(folder), ""]}, "messages": said["messages"], "tools": said["tools"],
        "ids": said["prompt"] + said["drawn"][:-1], "response": said["drawn"],
    }  # fmt: skip
    (work / "work.json").write_text(json.dumps(asked))
    subprocess.run([sys.executable, str(STOCK), str(work)], check=True, timeout=300)
    stock = json.loads((work / "stock.json").read_text())["whole"]
    assert stock["rendered"]["auto"] == said["prompt"]
    logits = np.array(stock["logits"][""])
    logp = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    assert logp[said["drawn"][-1]] == pytest.approx(said["logprob"], abs=1e-3)
    assert logp.max() - logp[said["drawn"][-1]] < 1e-3
