"""A few rows of every format, with what makes real ones hard: unicode, Python types, history, no arguments."""

import copy
import json
from pathlib import Path
from typing import Any

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city – now",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"name": "clock", "description": "", "parameters": {}}

INSTRUCTION = """You are a helpful multi-turn assistant.

**Available Tools**
In your response, you can use the following tools:
1. Name: Get Weather
Description: Weather of a city.
On two lines.
Parameters: {"city": {"description": "Name, e.g. \\"Zürich\\"", "type": "str", "default": ""}, \
"days": {"description": "Days", "type": "int, optional", "default": "3"}, \
"where": {"description": "", "type": "Tuple[float, float]", "default": ""}}
2. Name: Clock
Description: The time.
Parameters: {}

**Steps for Each Turn**
1. **Think:** as you like.
"""
HISTORY = """**Dialogue Records History**
<user> What time is it? </user>

<think> I should use the appropriate tool with proper parameters to respond to the user's need. </think>
<tool_call>
{"name": "Clock", "parameters": {}}
</tool_call>
<obs> [{"name": "Clock", "results": "<b>12:00</b>"}] </obs>

<think> I should directly respond to the user's need. </think>
<response> Noon. </response>

<user> And the weather in Zürich and 東京? </user>
"""
OUTPUT = """<think> Two cities. The <tool_call> tags hold both. </think>
<tool_call>
{"name": "Get Weather", "parameters": {"city": "Zürich", "where": [47.4, 8.5]}}
{"name": "Get Weather", "parameters": {"city": "\\u6771\\u4eac", "days": 1}}
</tool_call>"""

TOOLRL: list[dict[str, Any]] = [
    {"instruction": INSTRUCTION, "input": HISTORY, "output": OUTPUT},
    {
        "instruction": INSTRUCTION,
        "input": "**Dialogue Records History**\n<user> Hello 😀 </user>",
        "output": "<think> No tool. </think>\n<response> Hello! </response>",
    },
]
TOOLRL_VERL: list[dict[str, Any]] = [
    {
        "data_source": "rlla",
        "prompt": [{"role": "system", "content": r["instruction"]}, {"role": "user", "content": r["input"]}],
        "reward_model": {"style": "rule", "ground_truth": r["output"]},
    }
    for r in TOOLRL
]
SHAREGPT: list[dict[str, Any]] = [
    {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Weather in Zürich?"},
            {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Zürich"}}'},
            {"from": "observation", "value": '{"sky": "blue"}'},
            {"from": "gpt", "value": "Blue."},
            {"from": "human", "value": "Lima and the time?"},
            {
                "from": "function_call",
                "value": '<think>Two.</think>{"name": "get_weather", "arguments": {"city": "Lima"}}',
            },
            {"from": "function_call", "value": '{"name": "clock", "arguments": "{}"}'},
            {"from": "observation", "value": "[]"},
            {"from": "gpt", "value": "Nothing."},
        ],
        "tools": json.dumps([WEATHER, CLOCK], ensure_ascii=False),
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi!"}], "tools": "[]"},
]
MESSAGES: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Weather in Lima?"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Lima, then.",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Lima"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "grey"},
            {"role": "assistant", "content": "Grey."},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "Time, and Lima?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "Both."},
                    {"type": "tool_call", "value": '{"name": "clock", "arguments": {}}'},
                    {"type": "tool_call", "value": '{"name": "get_weather", "arguments": {"city": "Lima"}}'},
                ],
            },
        ],
        "tools": json.dumps([{"type": "function", "function": t} for t in (WEATHER, CLOCK)]),
    },
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "toolrl": TOOLRL,
    "toolrl-verl": TOOLRL_VERL,
    "sharegpt": SHAREGPT,
    "messages": MESSAGES,
}


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a format, to change at will."""
    return copy.deepcopy(ROWS[name])


def call_row(arguments: str = '{"city": "Lima"}') -> dict[str, Any]:
    """A ShareGPT row with one question and one call."""
    row = rows_of("sharegpt")[0]
    row["conversations"] = row["conversations"][:2]
    row["conversations"][1]["value"] = f'{{"name": "get_weather", "arguments": {arguments}}}'
    return row


def write(path: Path, rows: Any) -> Path:
    """A JSON file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def mixed(tmp_path: Path, calls: int, silent: int) -> str:
    """A file of `calls` questions that need a call, then `silent` that need none."""
    rows = []
    for i in range(calls + silent):
        row = call_row() if i < calls else rows_of("sharegpt")[0]
        row["conversations"] = row["conversations"][:2]
        row["conversations"][0]["value"] = f"question {i}"
        if i >= calls:
            row["conversations"][1] = {"from": "gpt", "value": "no"}
        rows.append(row)
    return str(write(tmp_path / "rows.json", rows))
