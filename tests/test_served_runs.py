"""Whole runs that sample from servers which run already."""

from pathlib import Path
from typing import Any

import pytest
from stand_in_vllm import StandIn, Trouble

from unbraid.lab.base_model import word_model
from unbraid.lab.calls_chat import calls_tokenizer
from unbraid.learn.log import read_metrics, read_notes
from unbraid.recipe import Recipe, load_recipe
from unbraid.run import train


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbraid.rollout.fleet.PAUSE", 0.005)


def recipe(base: Path, *more: str) -> Recipe:
    budget = (
        f"model.path={base}",
        "tasks.train=unbraid.lab.calls_world:train_set?world=0&known_share=0.66&count=24",
        "tasks.validation=unbraid.lab.calls_world:held_out?world=0&split=dev&per_level=1",
        "tasks.test=unbraid.lab.calls_world:held_out?world=0&split=test&per_level=1",
        "warmup=null", "rollout.prompts=3", "rollout.samples=3", "rollout.max_new_tokens=8", "learn.steps=2",
        "learn.learning_rate=1e-2", "evaluate.every=2", "evaluate.modes=[auto]", "evaluate.samples=1",
        "evaluate.limit=3", "evaluate.temperatures=[0.0]", "checkpoint.every=1", "checkpoint.keep=2",
        "sampler.engine=vllm", f"reward.function={Path(__file__).with_name('served_runs.py')}:by_words",
    )  # fmt: skip
    return load_recipe(["calls"], [*budget, *more])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    calls_tokenizer().save_pretrained(folder)
    return folder


def tiny_llama() -> Any:
    return word_model(calls_tokenizer().get_vocab(), 32, 0)


class Killed(Exception):
    """Stands for a process that ends between two lines."""


@pytest.mark.parametrize("adapter", ["", "model.adapter={rank: 4}"], ids=["full", "lora"])
def test_a_run_trains_from_servers_and_goes_on_after_it_was_killed(tmp_path, base, adapter):
    def kill(stage: str, done: int, total: int, metrics: dict[str, Any]) -> None:
        if (stage, done) == ("train", 2):
            raise Killed

    with StandIn(tiny_llama()) as server:
        run = recipe(base, f"sampler.urls=[{server.url}/]", *([adapter] if adapter else []))
        with pytest.raises(Killed):
            train(run, tmp_path / "run", progress=kill)
        assert not (tmp_path / "run/servers/weights").exists()
        scores = train(run, tmp_path / "run", resume=True)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2] and len(scores) == 1
    for row in rows:
        assert row["seconds/sync"] > 0 and row["seconds/sync_probe"] > 0
        assert row["entropy"] > 0.1  # the trainer's: servers tell none
        assert 0 < row["sync/gap_mean"] < 3e-5 and 0 < row["sampler_gap/mean"] < 3e-5
    assert not [note for note in read_notes(tmp_path / "run") if "server" in note["message"]]
    # Weights went out for each step, for the step that was taken again, and for what was evaluated in between.
    loading = "/v1/load_lora_adapter" if adapter else "/update_weights"
    assert len(server.bodies(loading)) in (5, 6)


def test_a_run_says_what_became_of_a_server(tmp_path, base):
    with StandIn(tiny_llama()) as one, StandIn(tiny_llama(), Trouble("die", after=12)) as two:
        train(recipe(base, f"sampler.urls=[{one.url}, {two.url}]", "sampler.retries=5"), tmp_path / "run")
    (note,) = [note for note in read_notes(tmp_path / "run") if "is lost" in note["message"]]
    assert two.url in note["message"] and note["level"] == "warning"
