"""`learn.constraint` in TRL: a GRPOTrainer whose loss has entropy constraints by mode and role.

    loss = TRL's loss − Σ_c bonus_c,    bonus as in `Constraint.bonus`, over the responses of the whole optimiser step

TRL sums the losses of micro-batches and averages gradients over processes, so each loss takes its share of the mean
over N responses, N = B · micro-batches · (responses per sequence). β learns once per optimiser step, from the counts of
all processes. In evaluation the loss is TRL's.

Overridden, all of TRL 1.16 (`release` refuses another): `_generate_and_score_completions` (adds what a loss has to know
of the whole batch), `_get_per_token_logps_and_entropies` (keeps what it returns), `_compute_loss`, `_save_checkpoint`
and `_load_optimizer_and_scheduler` (where TRL saves and restores its own adaptive coefficient).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.grpo_trainer import GRPOTrainer

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.errors import CheckpointError, ModelError
from unbraid.learn.batch import TokenBatch
from unbraid.learn.constraint import Constraint, ConstraintConfig
from unbraid.learn.objective import Scores, spread_scores
from unbraid.trl.rows import batch_of, count

STATE_FILE = "unbraid_constraints.pt"
"""In every checkpoint of TRL's: the constraints, with their optimisers."""
RESPONSES, SHARE = "unbraid_responses", "unbraid_think_share"
"""What is added to a batch of TRL's: responses per sequence, and the share that thinks of the free choices of mode."""
_SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
"""Settings of models that do more to logits than multiply hidden states by the head."""


class ConstrainedGRPOTrainer(GRPOTrainer):
    """TRL's trainer with entropy constraints. Without constraints its loss is TRL's, bit for bit.

    Args:
        constraints: what a recipe says under `constraints`.
        chat: how modes and calls are written; roles and modes are read by it.

    Everything else goes to `GRPOTrainer`.

    Raises:
        ModelError: TRL's own entropy bonus is on too, or the model gives no choice of mode to constrain.
        ChatError: the tokenizer does not fit `chat`.
    """

    def __init__(
        self, *args: Any, constraints: Sequence[ConstraintConfig] = (), chat: ChatConfig | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.constraints = [Constraint(config) for config in constraints]
        self.format = ChatFormat.build(self._tokenizer, chat)
        self._scored: tuple[Tensor, Tensor | None, Tensor | None] | None = None
        if self.constraints and self._entropy_bonus_enabled:
            raise ModelError("entropy_coef or use_adaptive_entropy beside constraints: leave TRL's own bonus off")
        self._reads_choices = any(c.config.measure != "response" for c in self.constraints)
        config = self._causal().config.get_text_config()
        scaled = [name for name in _SCALES if getattr(config, name, None) not in (None, 1.0)]
        if self._reads_choices and (scaled or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            why = f"the model's {scaled[0]}" if scaled else "FSDP or DeepSpeed, which shard its output layer,"
            raise ModelError(f"a constraint on the choice of mode cannot be had with {why}: train with unbraid")

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        if self.constraints:
            here = count(output, self.format)
            device = output["completion_ids"].device
            sums = torch.tensor([here.sequences, here.responses, here.free, here.think], device=device)
            total: Any = self.accelerator.reduce(sums, reduction="sum")
            sequences, responses, free, think = total.tolist()
            output[RESPONSES] = torch.tensor(responses / sequences)
            # TRL's samplers give no choice probabilities; the observed modes estimate them, as `think_share` says.
            output[SHARE] = torch.tensor(think / free if free else math.nan)
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self._scored = found
        return found

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        if not (self.constraints and model.training):
            return super()._compute_loss(model, inputs)
        with self._hidden_states() as hidden:
            loss = super()._compute_loss(model, inputs)
        batch = batch_of(inputs, self.format, float(inputs[SHARE]))
        scores = self._scores(batch, hidden)
        responses = len(batch) * self.current_gradient_accumulation_steps * float(inputs[RESPONSES])
        for constraint in self.constraints:
            loss = loss - constraint.bonus(batch, scores, responses).to(loss.dtype)
        if self.accelerator.sync_gradients:
            self._learn()
        return loss

    def _learn(self) -> None:
        """One step of every coefficient, at the last micro-batch of an optimiser step; logged beside TRL's metrics."""
        progress = (self.state.global_step + 1) / max(self.state.max_steps, 1)
        for constraint in self.constraints:
            for name, value in constraint.update(min(progress, 1.0)).items():
                self._metrics["train"][name].append(value)

    def _scores(self, batch: TokenBatch, hidden: list[Tensor]) -> Scores:
        """What TRL's forward pass said of the completions."""
        assert self._scored is not None
        (logprobs, entropies, _), self._scored = self._scored, None
        assert entropies is not None
        pair = logprobs.new_zeros((int(batch.choice.sum()), 2))
        if self._reads_choices:
            head = self._causal().get_output_embeddings()
            # The state at the token before says what a completion's token is to be.
            states = hidden[-1][:, -batch.choice.shape[1] - 1 : -1][batch.choice]
            ids = list(self.format.modes.choice_ids)
            weight, bias = head.weight[ids], head.bias[ids] if head.bias is not None else None
            pair = torch.nn.functional.linear(states.to(weight.dtype), weight, bias).float() / self.temperature
        return spread_scores(batch, logprobs[batch.sampled], entropies[batch.sampled], pair)

    @contextmanager
    def _hidden_states(self) -> Iterator[list[Tensor]]:
        """Within, what the model's body returns is kept, last layer only, if a constraint reads it."""
        kept: list[Tensor] = []
        if not self._reads_choices:
            yield kept
            return
        causal = self._causal()
        handle = getattr(causal, causal.base_model_prefix).register_forward_hook(
            lambda _, __, output: kept.append(output.last_hidden_state)
        )
        try:
            yield kept
        finally:
            handle.remove()

    def _causal(self) -> Any:
        """The causal language model under adapters and wrappers."""
        model: Any = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.constraints and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            torch.save({c.config.name: c.state_dict() for c in self.constraints}, folder / STATE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.constraints:
            return
        path = Path(checkpoint) / STATE_FILE
        try:
            saved = torch.load(path, weights_only=True)
            for constraint in self.constraints:
                constraint.load_state_dict(saved[constraint.config.name])
        except (OSError, KeyError) as error:
            raise CheckpointError(
                f"{path} does not hold these constraints ({type(error).__name__}: {error}): resume with those that "
                "the checkpoint was written with"
            ) from error
