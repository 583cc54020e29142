"""Commands for a trained model in use: serve it, talk to it."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from unbraid.cli.console import console, errors

app = typer.Typer()

Checkpoint = Annotated[str, typer.Option(help="Folder in the run that holds the weights.")]


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or an exported one.")],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="To listen on.")] = 8000,
    local: Annotated[bool, typer.Option("--local", help="Without vLLM: the policy in this process.")] = False,
    name: Annotated[str, typer.Option(help="What clients ask for; default: the recipe's name.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Longest context; default: the recipe's.")] = None,
    flag: Annotated[list[str] | None, typer.Option(help="A flag of vLLM, as --flag=--max-num-seqs=64.")] = None,
    python: Annotated[str, typer.Option(help="Interpreter that has vLLM; default: .venv-vllm here.")] = "",
    slots: Annotated[int, typer.Option(min=1, help="Most requests decoded at a time with --local.")] = 16,
) -> None:
    """Serve a run's model to OpenAI clients: by vLLM where it is installed, else by the policy in this process."""
    from unbraid.errors import ServerError
    from unbraid.run import recipe_of
    from unbraid.serve.run_flags import is_routed, model_config
    from unbraid.vllm.flags import refused_on_cpu
    from unbraid.vllm.installation import find_vllm

    recipe = recipe_of(run)
    installation = None
    if not local:
        try:
            installation = find_vllm(python or recipe.sampler.python, need_plugin=is_routed(run))
            if installation.backend == "cpu" and (problem := refused_on_cpu(model_config(run, recipe))):
                raise ServerError(problem)
        except ServerError as problem:
            if python or flag:
                raise
            installation = None
            errors.print(f"{problem}\nserving with the policy in this process, for small models", highlight=False)
    if installation is None:
        from unbraid.serve.openai import serve_local

        return serve_local(_policy(run, "final"), name or recipe.name, host, port, slots, errors)
    _serve_vllm(run, recipe, installation, host, port, name, max_tokens, flag or [])


def _serve_vllm(
    run: Path, recipe: Any, installation: Any, host: str, port: int, name: str, max_tokens: int | None, flags: list[str]
) -> None:
    from unbraid.errors import ServerError
    from unbraid.serve.run_flags import serve_flags
    from unbraid.vllm.server import start_server

    plan = serve_flags(run, recipe, name=name, max_tokens=max_tokens, flags=flags)
    plan.write()
    for note in plan.notes:
        errors.print(f"note: {note}", highlight=False)
    environment = dict(plan.environment)
    if installation.backend == "cpu":
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    with (
        errors.status("starting vLLM") as status,
        _SigtermInterrupts(),
    ):
        log = run / "serve" / "server.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        server = start_server(
            installation, plan.arguments, log=log, environment=environment, host=host, port=port,
            announce=status.update if errors.is_terminal else lambda line: errors.print(line, highlight=False),
        )  # fmt: skip
    with server, suppress(KeyboardInterrupt), _SigtermInterrupts():
        errors.print(
            f"serving [bold]{plan.name}[/] on {server.url}/v1 by vLLM {installation.version}; Ctrl-C stops\n"
            f"  unbraid chat {server.url}/v1#{plan.name}\n  log {log}",
            highlight=False,
        )
        while server.alive():
            time.sleep(0.5)
        raise ServerError(server.died() or "the server ended")


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(metavar="RUN|URL", help="A run folder, an exported one, or http://host:port/v1[#MODEL].")
    ],
    mode: Annotated[str, typer.Option(help="auto, think or no_think.")] = "auto",
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    tools: Annotated[Path | None, typer.Option(help="Tools to offer, a JSON list of schemas.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy; default: the server's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the drawing.")] = None,
    checkpoint: Checkpoint = "final",
    key_env: Annotated[str, typer.Option(help="Environment variable that holds a server's key.")] = "",
) -> None:
    """Converse with a run or a server in the terminal: modes, tools by hand, tokens and seconds."""
    from unbraid.chat.types import Mode
    from unbraid.errors import ServerError
    from unbraid.serve.chat import MODES, ChatSettings, tools_of
    from unbraid.serve.chat import chat as converse
    from unbraid.serve.chat_clients import HttpClient, LocalClient
    from unbraid.serve.chat_completions import LocalModel

    if mode not in MODES:
        raise typer.BadParameter(f"--mode is one of {', '.join(MODES)}")
    settings = ChatSettings(Mode(mode), system, tools_of(tools) if tools else (), temperature, max_tokens, seed)
    if model.startswith(("http://", "https://")):
        key = os.environ.get(key_env, "").strip() if key_env else ""
        if key_env and not key:
            raise ServerError(f"the environment has no {key_env}: export it, or name another one")
        well = converse(HttpClient(model, key), console, settings)
    else:
        policy = _policy(Path(model), checkpoint)
        with LocalModel(policy, model, slots=1) as answering:
            well = converse(LocalClient(answering), console, settings)
    if not well:
        raise typer.Exit(1)


def _policy(run: Path, checkpoint: str) -> Any:
    """The policy of a run, with the weights of one of its folders."""
    with errors.status("loading"):
        from unbraid.run import policy_of

        return policy_of(run, checkpoint)


class _SigtermInterrupts:
    """SIGTERM ends a server as Ctrl-C does."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, _interrupt)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
