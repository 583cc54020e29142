"""Routed LoRA in TRL's trainers and in transformers' generate: every call finds the same routes in its ids."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from trl.trainer.sft_trainer import SFTTrainer
from trl_worlds import (
    CHAT,
    chat_format,
    chat_model,
    chat_tokenizer,
    conversations,
    grpo_config,
    lengths,
    prompts,
    sft_config,
)

from unbraid.chat.types import Answer, Call, Mode
from unbraid.errors import ModelError
from unbraid.learn.constraint import Adaptive, ConstraintConfig
from unbraid.policy import AdapterConfig
from unbraid.policy.routed_lora import routed
from unbraid.policy.routing import RoutingConfig
from unbraid.policy.saving import load_model
from unbraid.tokens import Router
from unbraid.trl import ConstrainedGRPOTrainer, RoutedModel, route_model

ANSWERS = (
    Answer(Mode.THINK, "So I should look it up.", (Call("add", {"a": 1}),)),
    Answer(Mode.NO_THINK, "", (Call("get_weather", {"city": "Paris"}), Call("add", {"b": 2})), "Sunny"),
)


def routed_chat_model(size: float = 0.2, **routing: Any) -> RoutedModel:
    """Adapters of some size: fresh ones add nothing, and any routes would do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = route_model(chat_model(), chat_format(), AdapterConfig(rank=4, routing=RoutingConfig(**routing)))
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data = torch.randn(weight.shape, generator=generator) * size
    return model.eval()


def rows() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Ids padded on the left, their mask, and by provenance what the model wrote: (2, T)."""
    format = chat_format()
    prompt = format.prompt_ids([{"role": "user", "content": "Write <tool_call> and <think> as I do"}])
    made = [[prompt, format.response_ids(answer)] for answer in ANSWERS]
    width = max(len(before) + len(after) for before, after in made)
    gaps = [width - len(before) - len(after) for before, after in made]
    pad = chat_tokenizer().pad_token_id
    ids = torch.tensor([[pad] * gap + before + after for gap, (before, after) in zip(gaps, made, strict=True)])
    written = np.array([[False] * (width - len(after)) + [True] * len(after) for _, after in made])
    return ids, (torch.arange(width) >= torch.tensor(gaps)[:, None]).long(), written


@pytest.mark.parametrize("routing", [{}, {"context": None}, {"boundary": "shifted"}])
def test_a_call_is_routed_as_by_provenance(routing: dict[str, Any]):
    model = routed_chat_model(**routing)
    ids, mask, written = rows()
    expected = model.routing.router.route(ids.numpy(), written)
    assert {0, 1} <= set(expected.ravel().tolist())
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=mask).logits
        with routed(model, expected):
            known = model(input_ids=ids, attention_mask=mask).logits
        with routed(model, np.zeros_like(expected)):
            other = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(own, known)
    assert (own - other).abs().max() > 1e-2


@pytest.mark.parametrize("routing", [{}, {"context": None}, {"boundary": "shifted"}])
def test_generation_equals_whole_calls(routing: dict[str, Any]):
    model = routed_chat_model(**routing)
    ids, mask, written = rows()
    start = int(written.argmax(1).max()) + 3
    drawn = ids[:, start:].clone()
    script = iter(drawn.T)

    def scripted(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The answers as they are, whatever the model says."""
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter(1, next(script)[:, None], 0.0)

    found = model.generate(
        input_ids=ids[:, :start], attention_mask=mask[:, :start], max_new_tokens=drawn.shape[1], do_sample=False,
        logits_processor=[scripted], output_logits=True, return_dict_in_generate=True, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(found.sequences, ids)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits[:, start - 1 : -1]
    torch.testing.assert_close(torch.stack(found.logits, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_other_kinds_of_generation(kind: dict[str, int]):
    """Beams that change places, and guesses that are taken back, are routed as without any memory of the past."""
    model = routed_chat_model(size=0.5)
    ids, mask, _ = rows()
    call = model.routing.router.automaton.delimiters[1]
    start = int((ids[1] == call.open).nonzero()[-1]) + 1  # within a call, which the model goes on with
    asked = {
        "input_ids": ids[1:, :start], "attention_mask": mask[1:, :start], "max_new_tokens": 12, "do_sample": False,
        "sequence_bias": {(call.close,): 1.0}, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    found = model.generate(**asked, **kind)
    beams = {name: value for name, value in kind.items() if name == "num_beams"}
    assert torch.equal(found, model.generate(**asked, **beams, use_cache=False))
    routes = model.routing.router.route(found.numpy(), np.arange(found.shape[1])[None] >= start - 1)
    assert len(set(found[0, start:].tolist())) > 2 and routes[0, start] == 1


def test_routes_of_turns_results_and_forced_modes():
    format, model = chat_format(), routed_chat_model()
    template: Any = chat_tokenizer(modes=True)
    messages = [
        {"role": "user", "content": "Tomorrow?"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\n<tool_call>\n1\n</tool_call>"},
        {"role": "tool", "content": "<tool_call> </tool_call> <think>"},
    ]
    ids = template.apply_chat_template(messages, add_generation_prompt=True, mode="think", return_dict=False)
    text = template.apply_chat_template(messages, add_generation_prompt=True, mode="think", tokenize=False)
    turns = text.split("<|im_start|>assistant\n")
    written: list[bool] = []
    for number, turn in enumerate(turns):
        own, _, rest = turn.partition("<|im_end|>") if number else ("", "", turn)
        closed = "<|im_end|>" if number and "<|im_end|>" in turn else ""
        written += [True] * len(format.encode(own + closed)) + [False] * len(format.encode(rest))
        written += [False] * len(format.encode("<|im_start|>assistant\n")) if number + 1 < len(turns) else []
    seen: list[np.ndarray] = []
    inner: Any = model.get_base_model()
    inner.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(np.asarray(model.routing.routes)[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    assert np.array_equal(seen[0], _loop(format, ids, written))


def _loop(format: Any, ids: list[int], written: list[bool]) -> np.ndarray:
    """Routes by one loop, with the delimiters of this format."""
    think, call = format.automaton.delimiters
    inside, routes = None, []
    for at, (token, mine) in enumerate(zip(ids, written, strict=True)):
        if not mine:
            inside = None
        elif inside is None:
            inside = next((d for d in (think, call) if d.open == token), None)
        elif token == inside.close:
            inside = None
        writes = at + 1 == len(ids) or written[at + 1]
        routes.append(int(writes and inside is call))
    return np.array(routes)


def trained(folder: Path, model: Any, resume: str | None = None, **settings: Any) -> Any:
    trainer = SFTTrainer(
        model=model, args=sft_config(folder, **settings), train_dataset=conversations(),
        processing_class=chat_tokenizer(),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_supervised_training_resumes_and_recomputes(tmp_path: Path):
    """A run with gradient checkpointing equals one that is stopped, had none until then, and goes on with it."""
    before = {name: p.detach().clone() for name, p in routed_chat_model().named_parameters()}
    whole = trained(tmp_path / "whole", routed_chat_model(), max_steps=2, gradient_checkpointing=True)
    stopped = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "gradient_checkpointing": False}
    trained(tmp_path / "part", routed_chat_model(), **stopped)
    folder = tmp_path / "part" / "checkpoint-1"
    rest = trained(tmp_path / "part", routed_chat_model(), str(folder), max_steps=2, gradient_checkpointing=True)
    for (name, one), two in zip(whole.model.named_parameters(), rest.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0, msg=name)
        assert torch.equal(two, before[name]) == (".lora_" not in name)
        assert two.requires_grad == (".lora_" in name)
    rest.save_model(str(tmp_path / "saved"))
    assert Router.load(tmp_path / "saved").to_json() == rest.model.routing.router.to_json()
    loaded = routed_chat_model(size=0.0)
    load_model(loaded, tmp_path / "saved")
    for one, two in zip(loaded.parameters(), rest.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    for name in ("reasoning", "action"):
        alone = peft.PeftModel.from_pretrained(chat_model(), str(tmp_path / "saved" / name))
        assert type(alone) is peft.PeftModelForCausalLM


def test_rl_with_constraints(tmp_path: Path):
    bias = {(chat_tokenizer().convert_tokens_to_ids("<tool_call>"),): 6.0}
    model = routed_chat_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = ConstrainedGRPOTrainer(
        model=model, reward_funcs=lengths, train_dataset=prompts(), processing_class=chat_tokenizer(), chat=CHAT,
        args=grpo_config(tmp_path, generation_kwargs={"sequence_bias": bias}, gradient_checkpointing=True),
        constraints=[ConstraintConfig(name="roles", group_by="role", coefficient=Adaptive(start=0.1))],
    )  # fmt: skip
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {".reasoning." in name for name in moved} == {True, False}
    assert all(".lora_" in name for name in moved)
    trainer.save_model(str(tmp_path / "saved"))
    assert sorted(p.name for p in (tmp_path / "saved").iterdir() if p.is_dir()) == ["action", "reasoning"]


def test_what_cannot_be_routed_is_refused(tmp_path: Path):
    model = routed_chat_model()
    ids = torch.tensor([chat_format().prompt_ids([{"role": "user", "content": "Tomorrow?"}])])
    past = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(ModelError, match="decodes in `generate` only, and without prefill_chunk_size"):
        model(input_ids=ids[:, :1], past_key_values=past)
    assert model.routing.routes is None  # an error leaves nothing bound
    with pytest.raises(ModelError, match="not inputs_embeds"):
        model(inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ModelError, match="packing=False"):
        model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None] % 5)
    text = Dataset.from_list([{"text": "What is the weather in Paris"}] * 4)
    config = sft_config(tmp_path)
    trainer = SFTTrainer(model=model, args=config, train_dataset=text, processing_class=chat_tokenizer())
    with pytest.raises(ModelError, match="holds no turn of the model's"):
        trainer.train()
    with pytest.raises(ModelError, match="cannot be merged"):
        model.merge_adapter()
    with pytest.raises(ModelError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ModelError, match="isolation strict"):
        routed_chat_model(isolation="strict")
