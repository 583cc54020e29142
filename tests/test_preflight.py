"""What is checked before a run that samples from servers begins: nothing is written by one that cannot."""

from io import StringIO

import pytest
from rich.console import Console
from stand_in_vllm import StandIn

from unbraid import preflight
from unbraid.doctor.servers import check_servers
from unbraid.errors import ServerError
from unbraid.policy import load_policy
from unbraid.prepare import load_tasks, longest_context
from unbraid.recipe import load_recipe
from unbraid.run import train

TASKS = "unbraid.lab.calls_world:train_set?world=0&count=12&known_share=0.5"
SMALL = ["learn.steps=1", "data.validation=2", f"tasks.train={TASKS}"]


def recipe(*overrides: str):
    return load_recipe(["calls"], [*SMALL, "sampler=vllm", *overrides])


def test_without_vllm_a_run_leaves_no_folder(tmp_path):
    with pytest.raises(ServerError, match="absent") as caught:
        train(recipe(f"sampler.python={tmp_path / 'absent'}"), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_what_cannot_fit_is_refused_with_a_table_and_a_cure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "find_servers", lambda recipe, policy: None)
    with pytest.raises(ServerError, match=r"not enough memory: host lacks .*sampler.memory") as caught:
        train(recipe("sampler.memory=100000"), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    assert "keys and values" in capsys.readouterr().err


def test_the_doctor_says_the_same(monkeypatch):
    asked = recipe("sampler.memory=100000", "sampler.python=absent")
    policy = load_policy(asked.model, asked.chat)
    tasks, shown = load_tasks(asked, policy), Console(file=StringIO(), width=120)
    found = {finding.check: finding for finding in check_servers(asked, policy, tasks, shown)}
    assert found["servers"].level == "error" and "absent" in found["servers"].message
    assert found["memory"].level == "error" and "sampler.memory" in found["memory"].advice


def test_servers_that_run_already_take_nothing_of_this_machine():
    asked = recipe('sampler.urls=["http://127.0.0.1:9"]', "sampler.memory=100000")
    policy = load_policy(asked.model, asked.chat)
    planned = preflight.memory_budget(asked, policy, load_tasks(asked, policy).train, longest_context(asked))
    assert not planned.problems and not any(row.who.startswith("server") for row in planned.rows)
    with pytest.raises(ServerError, match=r"sampler.urls: http://127.0.0.1:9/version: .* where vLLM answers"):
        preflight.find_servers(asked, policy)
    with StandIn(policy.model) as server:
        assert preflight.find_servers(recipe(f'sampler.urls=["{server.url}"]'), policy) is None


def test_without_servers_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr(preflight, "find_servers", lambda recipe, policy: pytest.fail("asked"))
    local = recipe("sampler=local")
    preflight.preflight(local, load_policy(local.model, local.chat), [], Console(quiet=True))
