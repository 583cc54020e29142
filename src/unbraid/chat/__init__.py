"""Conversations as tokens: modes, tool-call formats, rendering, reading back, comparing."""

from unbraid.chat.calls import CALL_FORMATS, CallFormat, call_format
from unbraid.chat.delimiters import add_delimiters
from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.modes import ModePrefixes
from unbraid.chat.preset import PRESETS, Preset
from unbraid.chat.types import Answer, Call, Mode, Problem, Reading

__all__ = [
    "CALL_FORMATS",
    "PRESETS",
    "Answer",
    "Call",
    "CallFormat",
    "ChatConfig",
    "ChatFormat",
    "Mode",
    "ModePrefixes",
    "Preset",
    "Problem",
    "Reading",
    "add_delimiters",
    "call_format",
]
