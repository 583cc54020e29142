"""Stages of a long piece of work in a folder: each is done once for what it was made of, and done anew if that changes.

A stage has a folder of its own. Its record is written last, so that a stage that was killed counts as never begun; what
is worth keeping of it (tries of a model) keeps itself.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from unbraid.data.lines import write_whole
from unbraid.data.sources import SUFFIXES
from unbraid.errors import CheckpointError
from unbraid.label.tries import differences

RECORD, OPEN = "stage.json", "open"
"""A record, and what its books call the number of things that are still missing: such a stage is gone on with."""


@dataclass(frozen=True)
class Stage:
    """A finished stage: what it was made of, its books (JSON), and a hash of the files that it made."""

    folder: Path
    made_of: Mapping[str, Any]
    books: Mapping[str, Any]
    digest: str


def stage(
    folder: Path,
    made_of: Mapping[str, Any],
    files: Sequence[str],
    work: Callable[[Path], Mapping[str, Any]],
    say: Callable[[str], None] = lambda line: None,
) -> Stage:
    """The stage in `folder`, done now unless it is there already.

    Args:
        made_of: everything that its result depends on, as JSON.
        files: what `work` writes into the folder.
        work: does it, and returns the books.
        say: told why a finished stage is done anew.
    """
    made_of = json.loads(json.dumps(made_of))
    found = finished(folder)
    done = found and not found.books.get(OPEN)
    if found and done and found.made_of == made_of and all((folder / name).is_file() for name in files):
        return found
    if found:
        changed = ", ".join(differences(dict(found.made_of), made_of)[:3])
        say(f"{folder.name}: {'done anew' if done else 'gone on with'} ({changed or 'something is missing'})")
        (folder / RECORD).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    books = json.loads(json.dumps(work(folder)))
    made = Stage(folder, made_of, books, digest_of(folder / name for name in files))
    record = {"made_of": made_of, "books": books, "digest": made.digest}
    write_whole(folder / RECORD, [json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"])
    return made


def finished(folder: Path) -> Stage | None:
    """The finished stage in a folder; None if there is none.

    Raises:
        CheckpointError: its record cannot be read.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
        return Stage(folder, record["made_of"], record["books"], record["digest"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no record of a stage ({error}): delete it, and the stage is done anew"
        ) from error


def digest_of(paths: Any) -> str:
    """A hash of the contents of files, in this order."""
    digest = sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def source_mark(source: str) -> dict[str, str]:
    """What a source is, without the place where it lies: names and contents of files; of a hub's set, its name."""
    path = Path(source)
    if not path.exists():
        return {"source": source}
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()) if path.is_dir() else [path]
    names = [p.relative_to(path).as_posix() if path.is_dir() else p.name for p in files]
    return {
        "source": path.name,
        "names": sha256("\n".join(names).encode()).hexdigest()[:16],
        "content": digest_of(files),
    }
