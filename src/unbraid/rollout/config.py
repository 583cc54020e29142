"""How a training batch is sampled."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unbraid.chat.history import History


class EnvironmentConfig(BaseModel):
    """What an agent acts in, and what one episode may use up. Unpublished for AutoTool; defaults are choices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """search, sql, services, functions, mcp, or `module:Class` of your own; `?key=value&…` are its arguments."""
    history: History = "as_served"
    """How the past is shown: rendered anew as a server does (earlier thinking is gone), or `keep` as sampled."""
    reward: Literal["own", "by_mode"] = "own"
    """The environment's own reward, or the asymmetric pairs of `reward` for what it judged right and wrong."""
    turns: int = Field(default=8, ge=1)
    """Most responses of an episode."""
    calls: int = Field(default=16, ge=0)
    """Most tool calls of an episode; later ones are answered with an error."""
    tokens: int = Field(default=4096, ge=2)
    """Longest context in tokens: prompt, responses and observations."""
    seconds: float = Field(default=600.0, gt=0)
    """Longest an episode may take, tools included. Ends depend on the clock then, and are marked so."""
    tool_seconds: float = Field(default=30.0, gt=0)
    """Longest a call may take, where the tool itself says nothing else."""
    tool_chars: int = Field(default=4000, ge=1)
    """Longest tool result in characters; the rest is cut off and that is said."""


class RolloutConfig(BaseModel):
    """One step's sampling. Unpublished for AutoTool; defaults follow its closest peers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: int = Field(default=32, ge=1)
    """Prompts per step."""
    samples: int = Field(default=8, ge=2)
    """Responses per prompt: the group that advantages compare."""
    temperature: float = Field(default=1.0, gt=0)
    """Log-probs, ratios and entropies are all of softmax(logits / temperature), in sampler and trainer alike."""
    max_new_tokens: int = Field(default=512, ge=2)
    """Budget of a response in tokens, stop token included."""
    max_batch: int = Field(default=512, ge=1)
    """Most rows that the local sampler decodes together."""

    @model_validator(mode="before")
    @classmethod
    def _no_truncated_sampling(cls, data: Any) -> Any:
        for key in ("top_p", "top_k", "min_p"):
            if isinstance(data, dict) and key in data:
                raise ValueError(
                    f"{key} is refused in RL: tokens outside the cut have probability 0 for the sampler and not for "
                    "the trainer, which biases every ratio; remove it and lower rollout.temperature instead"
                )
        return data


class SamplerConfig(BaseModel):
    """Where responses are drawn. `sampler: vllm` is short for `sampler: {engine: vllm}`. All of it is choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["local", "vllm"] = "local"
    """The policy's own weights in this process, or vLLM servers beside it."""
    urls: tuple[str, ...] = ()
    """Servers that run already, as `http://host:port`; empty starts one for every entry of `devices`."""
    devices: tuple[str, ...] = ("",)
    """GPUs of each server that is started, as CUDA_VISIBLE_DEVICES takes them; several share one model (tensor
    parallel). "" leaves the choice to vLLM."""
    python: str = ""
    """Interpreter that has vLLM; empty looks for `.venv-vllm` here, then for vLLM beside unbraid."""
    memory: float = Field(default=0.4, gt=0)
    """Of a server that is started: its share of a GPU's memory; on a CPU, GiB of keys and values."""
    sleep: bool = False
    """Servers give their GPU memory back while the trainer learns."""
    ahead: bool = False
    """Draw a step's batch while the step before learns, with weights one update older; truncated importance weights
    make up for it (docs/speed.md). The local engine draws first and learns then: the same effect, no time saved."""
    seconds: float = Field(default=600.0, gt=0)
    """Longest wait for one response, before it is drawn again."""
    retries: int = Field(default=3, ge=0)
    """Further attempts at a response, on another server where there is one."""
    seeded: bool = False
    """Give every response a seed of its own: draws can be repeated, up to what batching does to the last digits. Costs
    vLLM a kernel for every row and token, and turns its chunked prefill off on CPUs, where 0.32 dies of both."""
    flags: tuple[str, ...] = ()
    """Further flags of `vllm serve`, such as `--max-num-seqs=64`."""
    max_gap: float | None = Field(default=None, gt=0)
    """Largest mean |Δ log-prob| between server and trainer, in nats, that is taken for rounding; None goes by dtype."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"engine": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _awake_while_learning(self) -> Self:
        if self.ahead and self.sleep:
            raise ValueError("ahead draws while the trainer learns, and sleep stops servers then: set one of them")
        return self
