"""The rules that keep the code in one piece. Each is a function from source text to violations, tried on bad source."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import SKIPS, compare_skips, read_skips

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unbraid"
CODE = sorted(path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# A part may import those in the lines above its own, and itself.
TIERS = (
    ("errors",),
    ("plugins", "ranks", "tokens"),
    ("chat",),
    ("tasks",),
    ("data",),
    ("policy", "vllm"),
    ("rollout",),
    ("learn",),
    ("evaluate",),
    ("interference", "trl"),
    ("report", "serve"),
    ("recipe",),
    ("prepare",),
    ("preflight",),
    ("label",),
    ("run",),
    ("bench",),
    ("export",),
    ("doctor",),
    ("lab",),
    ("cost",),
    ("cli",),
    ("__main__",),
)
TIER = {part: tier for tier, parts in enumerate(TIERS) for part in parts}
MAX_LINES = 400
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
MACHINE_PATH = re.compile(r"(?<![\w.~$}>:/-])/(?:work|root|tmp|home/\w+|Users/\w+|opt|mnt)/[\w.]")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.(?:org|com)|anaconda\.org)\b"
)


def imported_modules(source: str, package: str) -> list[str]:
    """Dotted names that `source`, a module of `package`, imports at any depth (type-checking blocks included)."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def import_violations(source: str, module: str, package: str) -> list[str]:
    """Imports of `module` (dotted) that point the wrong way, or at a part that has no place in the order."""
    own = [*module.split("."), ""][1]
    found = []
    for name in imported_modules(source, package):
        if not name.startswith("unbraid."):
            continue
        part = name.split(".")[1]
        if part.startswith("__") and part not in TIER:  # the package's own __version__
            continue
        if part not in TIER:
            found.append(f"{module} imports {name}, which has no place in TIERS")
        elif own and part != own and TIER.get(own, -1) <= TIER[part]:
            found.append(f"{module} imports {name}: imports point the other way")
    return found


def foreign_imports(source: str, package: str, allowed: set[str]) -> list[str]:
    """Imports of anything but the standard library and `allowed` (dotted names, with all below them)."""
    return [
        name
        for name in imported_modules(source, package)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)
    ]


def shape_violations(path: Path, source: str) -> list[str]:
    """Files that grew too long, and names that say nothing."""
    found = []
    lines = len(source.splitlines())
    if lines > MAX_LINES:
        found.append(f"{path} has {lines} lines, {MAX_LINES} are enough: split it where its topics part")
    if VAGUE_NAMES & {path.stem, *path.parent.parts}:
        found.append(f"{path}: name it after what it does")
    return found


def text_violations(path: Path, text: str) -> list[str]:
    """Paths of somebody's machine and hosts of package registries; both belong to whoever installs."""
    return [
        f"{path}:{number}: {match.group()!r} belongs to a machine, not to the project"
        for number, line in enumerate(text.splitlines(), 1)
        for match in (MACHINE_PATH.search(line), REGISTRY_HOST.search(line))
        if match
    ]


def missing_docstrings(path: Path, source: str) -> list[str]:
    """The module, and its public functions and classes, that have no docstring. Overloads share the one below them."""
    tree = ast.parse(source)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and "overload" not in map(ast.unparse, node.decorator_list)
    ]
    named = [(path.stem, tree), *((node.name, node) for node in public)] if tree.body else []
    return [f"{path}: {name} has no docstring" for name, node in named if not ast.get_docstring(node)]


def dotted(path: Path) -> tuple[str, str]:
    """(module, package) of a file under src."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = ".".join(parts[:-1])
    return (package if parts[-1] == "__init__" else ".".join(parts)), package


def tracked_files() -> list[Path]:
    """Text files that belong to the project: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    paths = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    return [path for path in paths if b"\0" not in path.read_bytes()[:8192]]


def show(violations: Iterable[str]) -> None:
    """Fail with all violations, one a line."""
    found = list(violations)
    assert not found, "\n" + "\n".join(found)


def test_imports_point_one_way():
    show(v for path in PACKAGE.rglob("*.py") for v in import_violations(path.read_text(), *dotted(path)))


def test_every_part_has_a_place_in_the_order():
    parts = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert parts - {"__init__"} <= set(TIER)


def test_tokens_need_numpy_only():
    files = (PACKAGE / "tokens").rglob("*.py")
    show(v for path in files for v in foreign_imports(path.read_text(), dotted(path)[1], {"numpy", "unbraid.tokens"}))


def test_tokens_load_without_torch():
    code = "import sys, unbraid.tokens; print(*({'torch', 'transformers', 'pydantic'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_files_stay_short_and_well_named():
    show(v for path in CODE for v in shape_violations(path.relative_to(ROOT), path.read_text()))


def test_nothing_belongs_to_one_machine():
    files = tracked_files()
    assert len(files) > len(CODE)
    show(v for path in files for v in text_violations(path.relative_to(ROOT), path.read_text(errors="replace")))


def test_public_names_are_documented():
    show(v for path in PACKAGE.rglob("*.py") for v in missing_docstrings(path.relative_to(ROOT), path.read_text()))


def test_listed_skips_exist():
    for test in read_skips(SKIPS.read_text().splitlines()):
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), f"tests/skips.txt: there is no {file}"
        if name:
            function = name.split("[")[0].split("::")[-1]
            assert f"def {function}(" in (ROOT / file).read_text(), f"tests/skips.txt: there is no {test}"


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from unbraid.tokens import Role", 0),
        ("from unbraid.learn.batch import collate", 0),
        ("from . import objective\nfrom .batch import collate\nfrom ..tokens import Role", 0),
        ("from unbraid import __version__, errors", 0),
        ("import unbraid.report", 1),
        ("from unbraid import recipe", 1),
        ("from ..evaluate.metrics import accuracy", 1),
        ("from .. import cli, tasks", 1),
        ("def late():\n    from unbraid.run import train", 1),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from unbraid.recipe import Recipe", 1),
        ("from unbraid.toolbox import anything", 1),
    ],
)
def test_import_rule_can_fail(source, wrong):
    assert len(import_violations(source, "unbraid.learn.objective", "unbraid.learn")) == wrong


def test_import_rule_on_one_tier():
    assert import_violations("from unbraid.interference import angles", "unbraid.evaluate.metrics", "unbraid.evaluate")
    assert not import_violations("from unbraid.tasks import Task", "unbraid.data.readers", "unbraid.data")
    assert import_violations("from unbraid.data import readers", "unbraid.tasks.task", "unbraid.tasks")
    assert not import_violations("import unbraid.cli", "unbraid.__main__", "unbraid")


def test_foreign_import_rule_can_fail():
    allowed = {"numpy", "unbraid.tokens"}
    good = "import os.path\nfrom numpy.typing import NDArray\nfrom .roles import Role"
    bad = "import torch\nfrom unbraid.errors import DataError\nfrom ..chat import modes\nimport numpy_financial"
    assert foreign_imports(good, "unbraid.tokens", allowed) == []
    assert len(foreign_imports(bad, "unbraid.tokens", allowed)) == 4


def test_shape_rule_can_fail():
    assert shape_violations(Path("src/unbraid/chat/modes.py"), "x = 1\n" * MAX_LINES) == []
    assert shape_violations(Path("src/unbraid/chat/modes.py"), "x = 1\n" * (MAX_LINES + 1))
    assert shape_violations(Path("src/unbraid/chat/utils.py"), "")
    assert shape_violations(Path("src/unbraid/common/modes.py"), "")


@pytest.mark.parametrize("text", ["/" + "tmp/run", "cd '/" + "home/me/x'", "https://" + "pypi" + ".org/simple"])
def test_machine_rule_can_fail(text):
    assert len(text_violations(Path("README.md"), f"first\n{text}\n")) == 1


@pytest.mark.parametrize("text", ["a/work/b", "../tmp/x", "https://host/opt/x", "tmp_path / 'tmp'", "and/or"])
def test_machine_rule_passes_what_is_no_machine_path(text):
    assert text_violations(Path("README.md"), text) == []


def test_docstring_rule_can_fail():
    path = Path("bad.py")
    assert missing_docstrings(path, '"""Doc."""\ndef f():\n    """Doc."""\ndef _g(): ...\n') == []
    assert len(missing_docstrings(path, "def f(): ...\nclass C: ...\nasync def h(): ...\n")) == 4
    assert missing_docstrings(path, "") == []


def test_skip_comparison_can_fail():
    listed = read_skips(["# comment", "", "tests/a.py::test_x | no GPU here", "tests/a.py::test_y[1] | no data"])
    assert listed == {"tests/a.py::test_x": "no GPU here", "tests/a.py::test_y[1]": "no data"}
    assert compare_skips(listed, listed, set()) == []
    assert compare_skips(listed, {}, set()) == []  # another selection of tests
    assert len(compare_skips(listed, {}, {"tests/a.py::test_x"})) == 1
    assert len(compare_skips(listed, listed | {"tests/b.py::test_z": "new"}, set())) == 1
    assert len(compare_skips(listed, listed | {"tests/a.py::test_x": "another reason"}, set())) == 1
