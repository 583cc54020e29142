"""Where BFCL's harness is: an environment of its own, made by `make setup-bfcl`, and errands that are run in it.

bfcl-eval pins numpy, tree-sitter and more against what unbraid needs, so nothing of it is ever imported here.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbraid.errors import ServerError
from unbraid.vllm.installation import clean_environment

VERSION = "2026.3.23"
"""Of bfcl-eval. Another version has other questions or answers: its scores are not comparable."""
DEFAULT = Path(".venv-bfcl")
"""What `make setup-bfcl` makes, in the current folder."""
VARIABLE = "UNBRAID_BFCL_PYTHON"
HOW = "make setup-bfcl, or see docs/bfcl.md"
_INSIDE = Path(__file__).parent / "inside"

# Runs in the other interpreter: metadata and hashes only, no import of the harness.
_PROBE = """
import base64, hashlib, json, sys
from importlib.metadata import PackageNotFoundError, distribution, distributions
try:
    package = distribution("bfcl-eval")
except PackageNotFoundError:
    print("null")
    raise SystemExit
changed, data = [], ""
for file in package.files:
    path = package.locate_file(file)
    if str(file) == "bfcl_eval/utils.py":
        data = str(path.parent / "data")
    if file.hash and file.suffix in (".py", ".json"):
        try:
            digest = hashlib.new(file.hash.mode, path.read_bytes()).digest()
        except OSError:
            digest = b""
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
versions = {one.metadata["Name"]: one.version for one in distributions()}
print(json.dumps({"version": package.version, "changed": changed, "data": data, "versions": versions}))
"""


@dataclass(frozen=True)
class Installation:
    """An interpreter that has the harness. data: the folder of its questions. versions: of packages that it uses."""

    python: Path
    version: str
    data: Path
    versions: Mapping[str, str]


def find_bfcl(python: str = "") -> Installation:
    """The interpreter that has the harness, checked: its version, and every file of it against the package's own list.

    Args:
        python: an interpreter or an environment's folder; empty takes UNBRAID_BFCL_PYTHON, or `.venv-bfcl` here.

    Raises:
        ServerError: there is none, it has another version, or files of it were changed.
    """
    named = python or os.environ.get(VARIABLE, "")
    path = Path(named).expanduser() if named else DEFAULT
    path = path / "bin" / "python" if path.is_dir() else path
    if not path.is_file():
        raise ServerError(f"{path}: no interpreter with BFCL's harness is there: {HOW}")
    path = path.absolute()
    result = subprocess.run([str(path), "-c", _PROBE], capture_output=True, text=True, env=clean_environment(path))
    try:
        found = json.loads(result.stdout)
    except ValueError as problem:
        said = (result.stderr.strip().splitlines() or ["nothing"])[-1][:200]
        raise ServerError(f"{path} is no Python that works (it said: {said}): {HOW}") from problem
    if found is None or found["version"] != VERSION:
        has = f"bfcl-eval {found['version']}" if found else "no bfcl-eval"
        raise ServerError(f"{path} has {has} and not {VERSION}: {HOW}")
    if found["changed"]:
        raise ServerError(
            f"{path}: {len(found['changed'])} files of bfcl-eval are not as published, {found['changed'][0]} among "
            f"them, so its scores would be others: remove the environment, then {HOW}"
        )
    versions = {name: found["versions"][name] for name in ("bfcl_eval", "openai", "numpy") if name in found["versions"]}
    return Installation(path, VERSION, Path(found["data"]), versions)


def errand(
    installation: Installation,
    name: str,
    plan: Mapping[str, Any],
    folder: Path | None = None,
    calls: Iterable[Mapping[str, Any]] = (),
    tell: Callable[[dict[str, Any]], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Run an errand of `inside/` in the harness and wait for it: the lines that it tells.

    Args:
        plan: what the errand needs to know; it may hold a key, so its file is nobody else's to read and soon gone.
        folder: where the harness puts its results, scores and locks; None: somewhere temporary.
        calls: lines for the errand `check`. tell: called with every line as it comes.

    Raises:
        ServerError: the errand failed; with the last line that it said.
    """
    with tempfile.TemporaryDirectory(prefix="unbraid-bfcl-") as temporary:
        scratch = Path(temporary)
        project = scratch if folder is None else folder
        project.mkdir(parents=True, exist_ok=True)
        log = project / "harness.log"
        (scratch / "calls.jsonl").write_text("".join(json.dumps(line) + "\n" for line in calls), encoding="utf-8")
        whole = {**plan, "errand": name, "log": str(log.absolute()), "calls": str(scratch / "calls.jsonl")}
        (scratch / "plan.json").write_text(json.dumps(whole), encoding="utf-8")
        # Straight to this machine, whatever proxy the environment names.
        here = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1,localhost")))
        more = {"BFCL_PROJECT_ROOT": str(project.absolute()), "NO_PROXY": here, "no_proxy": here}
        environment = clean_environment(installation.python, more)
        command = [str(installation.python), str(_INSIDE), str(scratch / "plan.json")]
        lines = []
        with (
            (scratch / "errors").open("w+", encoding="utf-8", errors="replace") as said,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL, text=True, env=environment
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for text in process.stdout:
                    line = json.loads(text)
                    lines.append(line)
                    tell(line)
            except BaseException:
                process.terminate()
                raise
            status = process.wait()
            said.seek(0)
            last = (said.read().strip().splitlines() or ["nothing"])[-1][:300]
        if status:
            raise ServerError(f"BFCL's harness failed at '{name}' (status {status}, it said: {last}); its log: {log}")
    return lines
