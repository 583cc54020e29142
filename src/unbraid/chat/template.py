"""The saved chat template: any Hugging Face template, plus `mode=` and `enable_thinking=`.

The template is wrapped as text, never parsed. A header works out the forced prefix and hides `enable_thinking`
from the template inside (one that reacts to it, as Qwen3's does, would force the mode a second time); a footer
prints the prefix. White space at the seams follows the settings of `apply_chat_template` (`trim_blocks`,
`lstrip_blocks`), which the other engines that run chat templates share.
"""

import json

from unbraid.chat.preset import Preset

_BEGIN = "{# unbraid: modes #}"
_TEMPLATE = "{# unbraid: template #}\n"
_FOOTER = "{{ unbraid_prefix }}"

_HEADER = (
    _BEGIN
    + "{% set unbraid_mode = mode if mode is defined and mode is not none"
    + " else ('think' if enable_thinking else 'no_think')"
    + " if enable_thinking is defined and enable_thinking is not none else 'auto' %}"
    + "{% if unbraid_mode not in ['auto', 'think', 'no_think'] %}"
    + "{{ raise_exception('mode must be auto, think or no_think') }}{% endif %}"
    + "{% set unbraid_prefix = {'auto': '', 'think': THINK, 'no_think': NO_THINK}[unbraid_mode]"
    + " if add_generation_prompt else '' %}"
    + "{% set enable_thinking = unbraid_undefined %}"
    + _TEMPLATE
)


def wrap(template: str, preset: Preset) -> str:
    """`template` with modes. Wrapping twice is wrapping once, with the latest preset."""
    # Jinja drops one newline at the end of a template; inside the wrapper it would no longer be the end.
    inside = unwrap(template).removesuffix("\n")
    header = _HEADER.replace("NO_THINK", _literal(preset.no_think)).replace("THINK", _literal(preset.think))
    return header + inside + _FOOTER


def unwrap(template: str) -> str:
    """The template inside; one that is not wrapped is returned as it is."""
    if not template.startswith(_BEGIN):
        return template
    return template.partition(_TEMPLATE)[2].removesuffix(_FOOTER)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
