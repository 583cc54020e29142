"""What training and servers take of a machine: against tensors that exist, and at the boundary."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from policies import sampled_batch, tiny_policy
from rich.console import Console
from transformers import LlamaConfig, Qwen3Config, Qwen3ForCausalLM

from unbraid.errors import ModelError, ServerError
from unbraid.learn.batch import collate
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.learn.objective import score_tokens
from unbraid.policy import AdapterConfig, ModelConfig, memory
from unbraid.policy.batch_shape import BatchShape, batch_shape, episode_shape
from unbraid.policy.memory import ModelShape, model_shape, training_memory
from unbraid.policy.policy import add_adapter
from unbraid.policy.routed_lora import routed
from unbraid.policy.routing import RoutingConfig
from unbraid.tokens import Delimiter, Role, RoleAutomaton
from unbraid.vllm.budget import ASLEEP, GIB, HOST, MARGIN, PROCESS, DeviceMemory, Servers, Trainer, budget, refuse

SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"


def qwen(*sizes: int, tied: bool = False) -> Qwen3Config:
    settings: dict[str, Any] = dict(zip(SIZES.split(), sizes, strict=True))
    return Qwen3Config(**settings, tie_word_embeddings=tied)


def small(layers: int) -> Qwen3Config:
    return qwen(97, 64, 160, layers, 8, 2, 16)


QWEN_8B = qwen(151936, 4096, 12288, 36, 32, 8, 128)
QWEN_1_7B = qwen(151936, 2048, 6144, 28, 16, 8, 128, tied=True)
PATH = ModelConfig(path="none")
HALF = ModelConfig(path="none", dtype="bfloat16")


@cache
def read_once(name: str, config: str) -> ModelShape:
    return model_shape({"8B": QWEN_8B, "1.7B": QWEN_1_7B}[name], ModelConfig.model_validate_json(config))


def read(name: str, config: ModelConfig) -> ModelShape:
    """The shape of a large model."""
    return read_once(name, config.model_dump_json())


def adapted(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"adapter": AdapterConfig(rank=4)})


def routed_by_role(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"adapter": AdapterConfig(rank=4, routing=RoutingConfig())})


def saved_by(forward: Callable[[], Any], apart_from: Iterable[torch.Tensor] = ()) -> list[tuple[tuple[int, ...], int]]:
    """Shapes and bytes of what autograd really keeps of a forward pass; every storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in apart_from}
    seen: dict[int, torch.Tensor] = {}  # tensors stay alive, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return [(tuple(t.shape), t.untyped_storage().nbytes()) for at, t in seen.items() if at not in own]


def saved_bytes(config: ModelConfig, layers: int, rows: int, tokens: int) -> int:
    shape = small(layers)
    shape._attn_implementation = config.attention
    model: Any = Qwen3ForCausalLM(shape).to(getattr(torch, config.dtype))
    if config.adapter:
        model = add_adapter(model, config.adapter, RoleAutomaton([Delimiter("call", 1, 2, Role.ACTION)]))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    seen = (torch.arange(tokens) < tokens - 3 * (torch.arange(rows)[:, None] > 0)).long()  # all rows but one are short
    ids, parameters = torch.zeros_like(seen), model.train().parameters()
    with routed(model, torch.zeros_like(ids)):
        kept = saved_by(lambda: model(ids, attention_mask=seen, use_cache=False, logits_to_keep=1), parameters)
    return sum(size for _, size in kept)


CONFIGS = {
    "all weights": PATH,
    "all weights, bfloat16": HALF,
    "adapter": adapted(PATH),
    "adapter, bfloat16": adapted(HALF),
    "eager": ModelConfig(path="none", attention="eager"),
    "routed": routed_by_role(PATH),
    "routed, bfloat16": routed_by_role(HALF),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_layer_keeps_what_autograd_saves(name: str, rows: int):
    config, tokens = CONFIGS[name], 40
    real = saved_bytes(config, 3, rows, tokens) - saved_bytes(config, 2, rows, tokens)
    expected = memory.layer_bytes(model_shape(small(3), config), BatchShape(rows, tokens, 8, 8))
    # Left out: a float32 of every norm, 48 bytes a token.
    assert real - 64 * rows * tokens <= expected <= real


def test_with_checkpointing_a_layer_keeps_its_input_only():
    config = ModelConfig(path="none", gradient_checkpointing=True)
    real = saved_bytes(config, 3, 3, 40) - saved_bytes(config, 2, 3, 40)
    assert real == 3 * 40 * 64 * 4
    fewer, more = (memory.activation_bytes(model_shape(small(n), config), BatchShape(3, 40, 8, 8)) for n in (2, 3))
    assert more - fewer == real


@pytest.mark.parametrize(("config", "model"), [(QWEN_8B, HALF), (QWEN_1_7B, PATH), (small(3), adapted(HALF))])
def test_weights_are_those_of_the_architecture(config: Qwen3Config, model: ModelConfig):
    assert config.head_dim and config.num_key_value_heads
    h, f, q = config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim
    k = config.num_key_value_heads * config.head_dim
    layer = h * (2 * q + 2 * k) + 3 * h * f + 2 * h + 2 * config.head_dim
    tables = config.vocab_size * h * (1 if config.tie_word_embeddings else 2)
    base = config.num_hidden_layers * layer + tables + h
    shape, e = model_shape(config, model), getattr(torch, model.dtype).itemsize
    if model.adapter is None:
        assert (shape.weights, shape.trained) == (base * e, base * e)
    else:  # r (in + out) of seven matrices, in float32 over whatever base
        lora = model.adapter.rank * (h + q + 2 * (h + k) + q + h + 3 * (h + f)) * config.num_hidden_layers
        assert (shape.weights, shape.trained) == (base * e + lora * 4, lora * 4)
    assert shape.largest == (config.vocab_size * h * e if model.adapter is None else 4 * 4 * f)
    assert shape.tied == config.tie_word_embeddings
    assert (shape.query, shape.key, shape.qk_norm) == (q, k, True)


def test_other_architectures_are_read_too():
    shape = model_shape(LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=99, vocab_size=50), PATH)
    assert (shape.head_dim, shape.kv_heads, shape.inner, shape.qk_norm) == (16, 4, 99, False)
    bare: Any = torch.nn.Linear(2, 2)
    bare.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_attention_heads=1))
    bare.get_output_embeddings = bare.get_input_embeddings = lambda: bare
    with pytest.raises(ModelError, match="num_hidden_layers"):
        model_shape(bare, PATH)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_of_a_step_is_that_of_real_tensors(adapter: bool, dtype: str):
    policy = tiny_policy(dtype=getattr(torch, dtype), adapter=adapter)
    trajectories, groups = sampled_batch(policy)
    policy.freeze_reference()
    config = LearnConfig(kl=0.1)
    optimiser = make_optimiser(policy, config)
    update(policy, trajectories, groups, optimiser, [], config, step=0, temperature=1.0)

    total = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    model = ModelConfig(path="none", dtype=dtype, adapter=AdapterConfig(rank=4) if adapter else None)  # pyright: ignore
    found = training_memory(model_shape(policy.model, model), batch_shape(4, 16, 20), kl=True)
    assert found.weights == total(policy.model.parameters())
    assert found.gradients == total(p.grad for p in policy.model.parameters() if p.grad is not None)
    assert found.reference == total(policy._start)
    moments = [t for state in optimiser.state.values() for key, t in state.items() if key.startswith("exp_avg")]
    assert found.moments == total(moments)
    assert training_memory(model_shape(policy.model, model), batch_shape(4, 16, 20)).reference == 0


def test_logits_are_the_largest_tensors_that_scoring_keeps():
    """Three of N V float32 are saved for the backward pass; at the most another three and the clamp's bytes join."""
    policy = tiny_policy()
    trajectories, _ = sampled_batch(policy)
    batch = collate(trajectories, [0.0] * len(trajectories), policy.format.modes.position)
    kept = saved_by(lambda: score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids))
    sampled, vocabulary = int(batch.sampled.sum()), policy.model.config.vocab_size
    assert sum(shape == (sampled, vocabulary) for shape, _ in kept) == 3
    shape = model_shape(policy.model, PATH)
    assert memory.logit_bytes(shape, BatchShape(1, sampled, sampled, sampled)) == sampled * vocabulary * 25


@pytest.mark.parametrize("config", [PATH, HALF, adapted(HALF), PATH.model_copy(update={"attention": "eager"})])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_less_never_needs_more(config: ModelConfig, device):
    shape = read("1.7B", config)
    form = replace(shape, checkpointing=True)

    need = lambda form, batch: training_memory(form, batch, device=device).total  # noqa: E731
    for new in (1, 64, 4096):
        for either in (shape, form):
            needs = [need(either, batch_shape(rows, new, 512)) for rows in (1, 2, 3, 8, 64)]
            assert needs == sorted(needs)
    needs = [need(shape, episode_shape(4, tokens)) for tokens in (2, 100, 5000)]
    assert needs == sorted(needs)
    assert need(form, batch_shape(8, 64, 512)) < need(shape, batch_shape(8, 64, 512))
    whole = training_memory(shape, batch_shape(8, 64, 512), kl=True)
    assert whole.total == whole.resident + whole.working
    assert sum(whole.always().values()) == whole.resident
    assert sum(whole.learning().values()) == whole.working


def test_smaller_settings_take_less_and_say_so():
    shape, batch = model_shape(small(3), PATH), batch_shape(8, 64, 64)
    found = dict(memory.smaller(shape, batch))
    assert list(found)[:3] == ["learn.micro_batch: 4", "learn.micro_batch: 2", "learn.micro_batch: 1"]
    assert "learn.micro_batch: 1, model.gradient_checkpointing: true" in found
    assert all(less.total < training_memory(shape, batch).total for less in found.values())
    assert found["learn.micro_batch: 2"] == training_memory(shape, replace(batch, rows=2))


def gpu(gib: float, index: int = 0, free: float | None = None) -> DeviceMemory:
    return DeviceMemory(f"cuda:{index}", int(gib * GIB), int((gib if free is None else free) * GIB))


host = DeviceMemory(HOST, 512 * GIB, 512 * GIB)


def trainer(always: float, learning: float, device: str = "cuda") -> Trainer:
    return Trainer(device, {"weights": int(always * GIB)}, {"activations": int(learning * GIB)})


def servers(memory: float, *devices: str, sleep: bool = False, weights: float = 4, tokens: int = 1000) -> Servers:
    """Keys and values of 1 MiB a token."""
    return Servers(devices or ("",), memory, sleep, int(weights * GIB), 32, 32, 128, 4, tokens)


def of(name: str, model: ModelConfig, memory: float, *devices: str, sleep: bool = False) -> Servers:
    s = read(name, model)
    return Servers(devices or ("",), memory, sleep, s.weights, s.layers, s.kv_heads, s.head_dim, s.itemsize, 4096)


def training(name: str, model: ModelConfig, rows: int, device: str = "cuda") -> tuple[Trainer, list]:
    shape, batch = read(name, model), batch_shape(rows, 1024, 1024, 512)
    found = training_memory(shape, batch, device="cuda")
    less = memory.smaller(shape, batch, device="cuda")
    return Trainer(device, found.always(), found.learning()), [
        (setting, Trainer(device, m.always(), m.learning())) for setting, m in less
    ]


def test_one_byte_decides():
    machine = [gpu(80), host]
    exact = budget(machine, trainer(30, 10), servers(0.5))
    assert exact.taken("cuda:0", "learning") == 80 * GIB and exact.taken("cuda:0", "sampling") == 70 * GIB
    refuse(exact)
    more = budget(machine, Trainer("cuda", {"weights": 30 * GIB}, {"activations": 10 * GIB + 1}), servers(0.5))
    (problem,) = more.problems
    assert "cuda:0 lacks" in problem and "while learning" in problem
    assert budget([replace(gpu(80), free=80 * GIB - 1), host], trainer(30, 10), servers(0.5)).problems


def test_one_byte_decides_inside_a_servers_share():
    needed = 4 * GIB + 1000 * (1 << 20) + MARGIN
    assert servers(0.5).least() == needed
    assert budget([DeviceMemory("cuda:0", 2 * needed, 2 * needed), host], trainer(1, 0), servers(0.5)).problems == ()
    tight = DeviceMemory("cuda:0", 2 * needed - 2, 2 * needed - 2)
    problem = budget([tight, host], trainer(1, 0), servers(0.5)).problems[0]
    assert "server 0 needs 7.0 GiB on cuda:0" in problem and "one sequence of 1000 tokens" in problem
    share = float(problem.partition("sampler.memory: ")[2].split(";")[0])
    assert budget([tight, host], trainer(1, 0), servers(share)).problems == ()


def test_sleep_makes_a_case_fit_that_shares_do_not():
    """1.7B in float32, all weights, on one GPU of 80 GB: learning wants nearly all of it."""
    learner, less = training("1.7B", PATH, 2)
    machine, served = [gpu(80), host], of("1.7B", HALF, 0.4)
    assert "sampler.sleep: true" in budget(machine, learner, served, less).problems[0]
    slept = budget(machine, learner, replace(served, sleep=True), less)
    assert slept.problems == ()
    # Awake while sampling, the residue while learning; the weights are in host memory then.
    assert slept.taken("cuda:0", "sampling") == sum(learner.always.values()) + int(0.4 * 80 * GIB)
    assert slept.taken("cuda:0", "learning") == sum((learner.always | learner.learning).values()) + ASLEEP
    assert slept.taken(HOST, "learning") - slept.taken(HOST, "sampling") == served.weights


@pytest.mark.parametrize("gib", [24, 80, 141])
@pytest.mark.parametrize(("name", "model"), [("1.7B", HALF), ("8B", HALF), ("8B", adapted(HALF))])
def test_advice_is_true(gib: int, name: str, model: ModelConfig):
    """Whatever is proposed is tried here again, by hand: it fits, and no share nearer to what was set does."""
    machine = [gpu(gib), host]
    (learner, less), served = training(name, model, 16), of(name, HALF, 0.4)
    found = budget(machine, learner, served, less)
    both = sum((learner.always | learner.learning).values()) + int(0.4 * gib * GIB)
    assert bool(found.problems) == (both > gib * GIB or served.least() > int(0.4 * gib * GIB))
    said = found.problems[0].partition("this would fit: ")[2] if found.problems else ""
    for advice in filter(None, said.split("; or ")):
        settings = dict(part.split(": ", 1) for part in advice.split(", "))
        own = ", ".join(f"{k}: {v}" for k, v in settings.items() if not k.startswith("sampler."))
        learner_then = dict(less).get(own, learner)
        memory = float(settings.get("sampler.memory", 0.4))
        then = replace(served, memory=memory, sleep="sampler.sleep" in settings)
        assert budget(machine, learner_then, then).problems == ()
        nearer = memory + math.copysign(0.01, 0.4 - memory)
        if "sampler.memory" in settings and abs(memory - 0.4) > 0.015:
            assert budget(machine, learner_then, replace(then, memory=round(nearer, 2))).problems


def test_the_8b_model_is_too_much_for_a_small_gpu_whatever_is_set():
    learner, less = training("8B", HALF, 16)
    found = budget([gpu(24), host], learner, of("8B", HALF, 0.4), less)
    assert "no setting tried makes it fit" in found.problems[0] and "model.adapter" in found.problems[0]
    with pytest.raises(ServerError, match=r"not enough memory: server 0 needs .* cuda:0 lacks") as raised:
        refuse(found)
    assert "\n" not in str(raised.value) and str(raised.value).count(" | ") == 1


def test_several_gpus_share_the_weights_and_leave_the_trainer_alone():
    machine = [gpu(24, i) for i in range(4)] + [host]
    wide = of("8B", HALF, 0.9, "2,3")
    found = budget(machine, trainer(20, 3), wide)
    assert found.problems == ()
    assert found.taken("cuda:1", "learning") == 0 and found.taken("cuda:3", "learning") == int(0.9 * 24 * GIB)
    assert wide.least(2) == math.ceil(wide.weights / 2) + wide.sequence_bytes() // 2 + MARGIN
    assert servers(0.5).sequence_bytes(64) == servers(0.5).sequence_bytes() // 32  # a head stays whole
    assert budget(machine, trainer(20, 3), of("8B", HALF, 0.7, "2")).problems
    beside = budget(machine, trainer(20, 3), of("1.7B", HALF, 0.4, "0"))
    assert 'sampler.devices: ["1"]' in beside.problems[0]


def test_devices_that_are_not_there():
    machine = [gpu(80, 0), gpu(80, 1), host]
    found = budget(machine, trainer(1, 1), servers(0.4, "1", "5"))
    assert "sampler.devices '5': there is no GPU 5 among those seen here (0, 1)" in found.problems[0]
    # With CUDA_VISIBLE_DEVICES=3 torch calls GPU 3 cuda:0, and the servers' settings do not.
    seen = [DeviceMemory("cuda:0", 80 * GIB, 80 * GIB, visible="3"), host]
    part = budget(seen, trainer(1, 1), servers(0.4, "3", "5"), partial=True)
    assert part.problems == () and "'5'" in part.notes[0]
    assert part.taken("cuda:0", "learning") == 2 * GIB + int(0.4 * 80 * GIB)
    # Where nothing is said vLLM takes the first, whoever trains there.
    assert budget(machine, trainer(70, 5), servers(0.4)).problems
    assert budget(machine, trainer(70, 5, "cuda:1"), servers(0.4)).problems == ()


def test_servers_on_the_cpu():
    # Trainer 3, and for each of two servers its processes, 4 of weights and 1 of keys and values.
    needed = 3 * GIB + 2 * (PROCESS["cpu"] + 5 * GIB)
    machine = [DeviceMemory(HOST, needed, needed)]
    assert budget(machine, trainer(2, 1, "cpu"), servers(1, "", "")).problems == ()
    over = budget([DeviceMemory(HOST, needed, needed - 1)], trainer(2, 1, "cpu"), servers(1, "", ""))
    assert "host lacks" in over.problems[0]
    tight = budget(machine, trainer(1, 1, "cpu"), servers(0.4, tokens=1000))
    assert "one sequence of 1000 tokens" in tight.problems[0] and "sampler.memory: 1" in tight.problems[0]
    asleep = budget(machine, trainer(2, 1, "cpu"), servers(1, sleep=True))
    assert "cannot sleep" in asleep.notes[0]
    assert asleep.taken(HOST, "learning") == 3 * GIB + PROCESS["cpu"] + 5 * GIB
    assert "is a share of a GPU: at most 0.95" in budget([gpu(80), host], trainer(1, 1), servers(4)).problems[0]
    # Given by URL they are elsewhere.
    found = budget([gpu(80), host], trainer(70, 10), replace(servers(0.4), devices=()))
    assert found.problems == () and {row.who for row in found.rows} == {"trainer"}


def test_the_table_tells_everything():
    out = StringIO()
    found = budget([gpu(80, free=79), host], trainer(30, 12), servers(0.5, sleep=True))
    Console(file=out, width=140).print(found.table())
    for said in ("trainer", "others", "asleep", "server 0", "left of 80.0 GiB", "sampling", "learning", "30.0 GiB"):
        assert said in out.getvalue()
    left = next(line for line in out.getvalue().splitlines() if "left of 80.0" in line)
    assert "9.0 GiB" in left and "35.0 GiB" in left  # 80 - 1 - 30 - 40 awake, 80 - 1 - 30 - 12 - 2 asleep
    crowded = budget([gpu(24), host], trainer(30, 10), servers(0.5))
    Console(file=out, width=140).print(crowded.table())
    assert "−" in out.getvalue()
