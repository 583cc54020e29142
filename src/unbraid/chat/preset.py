"""Presets: how the two modes are spelled. Data only; any recipe can bring its own three strings."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from unbraid.errors import ChatError


class Preset(BaseModel):
    """The texts that open, continue and skip thinking.

    A response is `think` + thought + `after_thought` + answer, or `no_think` + answer. The last word of `think`
    opens the thinking span and the first word of `after_thought` closes it: both must be single token ids.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    think: str = Field(min_length=1, description="What a thinking response starts with.")
    after_thought: str = Field(min_length=1, description="What stands between the thought and the answer.")
    no_think: str = Field(min_length=1, description="What a response without thinking starts with.")

    @field_validator("think", "after_thought", "no_think")
    @classmethod
    def _has_a_word(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("holds only white space: name a tag, such as <think>")
        return text

    @property
    def open(self) -> str:
        """The delimiter that opens the thinking span."""
        return self.think.split()[-1]

    @property
    def close(self) -> str:
        """The delimiter that closes the thinking span."""
        return self.after_thought.split()[0]


PRESETS: dict[str, Preset] = {
    # Source: arXiv 2603.13348, section on the auto-thinking template (tags); the block after the tag is a Choice.
    "tag": Preset(think="[think]\n<think>\n", after_thought="\n</think>\n\n", no_think="[no_think]\n"),
    # Source: chat template of Qwen3; the servers that know `enable_thinking` write the same empty block.
    "think-block": Preset(think="<think>\n", after_thought="\n</think>\n\n", no_think="<think>\n\n</think>\n\n"),
}


def preset(spec: str | Preset) -> Preset:
    """A preset by name; one that is given whole is returned as it is."""
    if isinstance(spec, Preset):
        return spec
    if spec not in PRESETS:
        raise ChatError(
            f"chat.preset: '{spec}' is unknown; use one of {', '.join(PRESETS)}, or give think, after_thought, no_think"
        )
    return PRESETS[spec]
