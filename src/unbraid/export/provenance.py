"""Where an exported model comes from: versions, commit, the recipe, and what its sources hold."""

import hashlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import unbraid
from unbraid.bench.score import package_versions
from unbraid.plugins import names_code
from unbraid.recipe import Recipe

_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """One source of tasks. what: what of it is trained or tested on. state: its fingerprint, or why it has none."""

    what: str
    name: str
    state: str
    hub: bool


@dataclass(frozen=True)
class Provenance:
    """versions: package → version, of the export. commit: of unbraid's source, if that is what runs."""

    recipe: str
    seed: int
    versions: dict[str, str]
    commit: str
    sources: tuple[Source, ...]


def provenance_of(recipe: Recipe) -> Provenance:
    """Look everything up; files are read whole."""
    tasks = recipe.tasks
    named = {"train": tasks.train, "warm-up": tasks.warmup, "validation": tasks.validation, "test": tasks.test}
    sources = tuple(_source(what, name) for what, name in named.items() if name)
    return Provenance(recipe.fingerprint(), recipe.seed, package_versions(), commit(), sources)


def commit() -> str:
    """The commit of the checkout that unbraid runs from, marked if files differ from it; "" where it was installed."""
    package = Path(unbraid.__file__).parent
    try:
        top = _git(package, "rev-parse", "--show-toplevel")
        if Path(top) / "src" / "unbraid" != package:
            return ""
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git(package, "rev-parse", "HEAD") + (", with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def is_hub_name(name: str) -> bool:
    """Whether a model or a source is named as on the hub, and is nothing on this machine."""
    return bool(_HUB.fullmatch(name)) and not names_code(name) and not Path(name).exists()


def _source(what: str, name: str) -> Source:
    if names_code(name):
        return Source(what, name, "made by a function", False)
    path = Path(name)
    if path.exists():
        return Source(what, name, f"sha256 {_digest(path)}", False)
    if is_hub_name(name):
        return Source(what, name.partition(":")[0], "on the hub; its revision was not recorded", True)
    return Source(what, name, "not on this machine any more", False)


def _digest(path: Path) -> str:
    """Of a file, or of all files below a folder with their names."""
    found = hashlib.sha256()
    for file, name in _files(path):
        found.update(name.encode() + b"\0")
        with file.open("rb") as opened:
            while piece := opened.read(1 << 20):
                found.update(piece)
    return found.hexdigest()[:16]


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_file():
        yield path, ""
        return
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        yield file, file.relative_to(path).as_posix()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
