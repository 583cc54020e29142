"""What the site has beside the pages in this folder: the README, the numbers, and the reference of every public part.

MkDocs calls the functions named on_…; nothing else here is for others.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"index.md": "README.md", "numbers.md": "benchmarks/README.md", "contributing.md": "AGENTS.md"}
"""Page → the file of the project that it is."""
REFERENCE = (
    *("recipe", "run", "prepare", "tokens", "chat", "tasks", "data", "label", "policy", "rollout", "learn", "evaluate"),
    *("interference", "report", "serve", "vllm", "doctor", "cost", "bench", "export", "trl", "plugins", "errors"),
)
"""Parts of the package, in the order in which somebody meets them."""
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_config(config: Any) -> Any:
    """Put the pages of the reference into the navigation."""
    pages = [{f"unbraid.{part}": f"reference/{part}.md"} for part in parts()]
    config.nav = [
        {key: pages} if value == "REFERENCE" else {key: value} for one in config.nav for key, value in one.items()
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    for page, source in ELSEWHERE.items():
        text = moved((ROOT / source).read_text(encoding="utf-8"), (ROOT / source).parent)
        files.append(File.generated(config, page, content=text))
    for part in parts():
        files.append(File.generated(config, f"reference/{part}.md", content=reference(part)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of this folder, to files that are pages here under another name, or that are none."""
    source = page.file.src_uri
    if source in ELSEWHERE or source.startswith("reference/"):
        return markdown
    return moved(markdown, (ROOT / "docs" / source).parent, "../" * source.count("/"))


def parts() -> list[str]:
    """The parts of the reference that there are."""
    package = ROOT / "src" / "unbraid"
    return [part for part in REFERENCE if (package / part).is_dir() or (package / f"{part}.py").is_file()]


def reference(part: str) -> str:
    """The page of a part: its own docstring and members, then those of its public modules."""
    folder = ROOT / "src" / "unbraid" / part
    names = [f"unbraid.{part}"]
    packages = {names[0]} if any(folder.glob("[!_]*.py")) else set()
    if folder.is_dir():
        modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
        inner = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
        names += [f"unbraid.{part}.{name}" for name in (*modules, *inner)]
    # A package only hands on what its modules hold: its docstring is enough.
    blocks = "\n\n".join(
        f"::: {name}\n    options: {{show_submodules: false, members: {'false' if name in packages else 'null'}}}"
        for name in names
    )
    return f"# unbraid.{part}\n\n{blocks}\n"


def moved(text: str, base: Path, up: str = "") -> str:
    """The text with its links to files of the project turned into links to pages; to other files, into their names.

    Args:
        base: folder that links are relative to. up: from the page to the site's root.
    """
    pages = {(ROOT / source).resolve(): page for page, source in ELSEWHERE.items()}

    def link(match: re.Match[str]) -> str:
        opens, target, anchor, closes = match[1], match[2], match[3] or "", match[4]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (base / target).resolve()
        if path.is_dir() and path / "README.md" in pages:
            path = path / "README.md"
        if path in pages:
            return f"{opens}{up}{pages[path]}{anchor}{closes}"
        if (ROOT / "docs") in path.parents:
            return f"{opens}{up}{path.relative_to(ROOT / 'docs').as_posix()}{anchor}{closes}"
        return f"{opens}{up}contributing.md{closes}" if path.exists() else match[0]

    return LINK.sub(link, text)
