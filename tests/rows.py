"""A few rows of every format, with what makes real ones hard: unicode, Python types, history, no arguments."""
# ruff: noqa: E501 -- rows are written as they are found

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
XLAM: list[dict[str, Any]] = [
    {
        "id": 1,
        "query": "Where can I find live giveaways for beta access in Zürich?",
        "answers": '[{"name": "live_giveaways_by_type", "arguments": {"type": "beta"}}, \
{"name": "near", "arguments": {"where": [47.4, 8.5]}}]',
        "tools": json.dumps(
            [
                {
                    "name": "live_giveaways_by_type",
                    "description": "Live giveaways",
                    "parameters": {"type": {"description": "Type", "type": "str", "default": "game"}},
                },
                {"name": "near", "description": "", "parameters": {"where": {"type": "Tuple[float, float]"},
                 "limit": {"type": "int, optional"}}},
            ]
        ),
    },
    {"id": 2, "query": "Tell me a joke.", "answers": "[]", "tools": json.dumps([CLOCK])},
]  # fmt: skip
TOOLACE_SYSTEM = """You are an expert in composing functions. You are given a question and a set of possible functions. \

Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out. If the given question lacks the parameters required by the function,
also point it out. You should only return the function call in tools call sections.
Today is 2024-03-01, Friday.
Here is a list of functions in JSON format that you can invoke:
[{"name": "Market Trends API", "description": "Get trends", "parameters": {"type": "dict", "properties": {"trend_type": \
{"type": "string"}, "country": {"type": "string"}, "limits": {"type": "array", "items": {"type": "int"}}}, "required": \
["trend_type"]}, "required": null}, {"name": "League Teams (U17).list", "description": "", "arguments": {"type": "dict", \
"properties": {"from": {"type": "string"}, "live": {"type": "boolean"}, "filter": {"type": "dict"}}}}].
Should you decide to return the function call(s).
Put it in the format of [func1(params_name=params_value, params_name2=params_value2...), func2(params)]

NO other text MUST be included."""
TOOLACE: list[dict[str, Any]] = [
    {
        "system": TOOLACE_SYSTEM,
        "conversations": [
            {"from": "user", "value": "Markets, and the teams?"},
            {
                "from": "assistant",
                "value": '[Market Trends API(trend_type="MARKET, (INDEXES)", limits=[1, -2]), '
                "League Teams (U17).list(from='a=\"b\"', live=True, filter={'x': (1, None)})]",
            },
            {"from": "tool", "value": '[{"name": "Market Trends API", "results": {"trends": [1]}}]'},
            {"from": "assistant", "value": "[1] is the trend."},
        ],
    },
    {
        "system": TOOLACE_SYSTEM,
        "conversations": [
            {"from": "user", "value": "Trends?"},
            {"from": "assistant", "value": "Which type of trends do you need?"},
        ],
    },
]
HERMES_SYSTEM = """You are a function calling AI model. You are provided with function signatures within <tools> </tools> \
XML tags. You may call one or more functions to assist with the user query. Don't make assumptions about what values to \
plug into functions.
<tools>
[{'type': 'function', 'function': {'name': 'get_weather', 'description': "The weather's state", 'parameters': {'type': \
'object', 'properties': {'city': {'type': 'string'}, 'now': {'type': 'boolean'}}, 'required': ['city']}}}]
</tools>
For each function call return a json object with function name and arguments within <tool_call> </tool_call> tags:
<tool_call>
{'arguments': <args-dict>, 'name': <function-name>}
</tool_call>
"""
HERMES: list[dict[str, Any]] = [
    {
        "id": "a",
        "conversations": [
            {"from": "system", "value": HERMES_SYSTEM},
            {"from": "human", "value": "Weather in Zürich and 東京?"},
            {
                "from": "gpt",
                "value": "Two calls.\n<tool_call>\n{'arguments': {'city': 'Zürich', 'now': True}, 'name': 'get_weather'}\n"
                '</tool_call>\n<tool_call>\\n{"name": "get_weather", "arguments": {"city": "東京"}}\\n</tool_call>',
            },
            {
                "from": "tool",
                "value": "<tool_response>\n{'sky': 'blue'}\n</tool_response>\n<tool_response>\nrain\n</tool_response>",
            },
            {"from": "gpt", "value": "<think>Both are there.</think>Blue, and rain."},
        ],
        "category": "Weather",
    },
    {
        "id": "b",
        "conversations": [
            {"from": "system", "value": "You are a helpful assistant that answers in JSON."},
            {"from": "human", "value": "A movie?"},
            {"from": "gpt", "value": '{"title": "M"}'},
        ],
        "tools": None,
    },
]
VERL: list[dict[str, Any]] = [
    *TOOLRL_VERL,
    {
        "data_source": "tool-n1",
        "prompt": [{"role": "system", "content": HERMES_SYSTEM}, {"role": "user", "content": "Lima?"}],
        "reward_model": {"style": "rule", "ground_truth": '[{"name": "get_weather", "arguments": {"city": "Lima"}}]'},
        "extra_info": {"split": "train", "index": 3},
    },
    {
        "prompt": [{"role": "user", "content": "Time in Lima?"}],
        "reward_model": {
            "ground_truth": "<think>A clock.</think><tool_call>{'name': 'clock', 'arguments': {}}</tool_call>"
        },
        "extra_info": {"tools": json.dumps([CLOCK])},
    },
    {
        "prompt": [{"role": "user", "content": "Who wrote it?"}],
        "reward_model": {"ground_truth": {"target": ["She"]}},
    },
]
API_BANK: list[dict[str, Any]] = [
    {
        "file": "a-level-1-1.jsonl",
        "id": 2,
        "instruction": "\nGenerate an API request in the format of [ApiName(key1='value1', ...)].\nThe current year is 2023.\n"
        "Input: \nUser: User's utterence\nAI: AI's response\n\nExpected output:\nAPI-Request: [ApiName(key1='value1')]\n\n"
        'API descriptions:\n{"name": "Ask", "description": "", "input_parameters": {"what": {"type": "str"}, "days": '
        '{"type": "list"}}, "output_parameters": {"r": {"type": "str"}}}\n{"name": "Wait", "description": "", '
        '"input_parameters": {}, "output_parameters": {}}',
        "input": "User: Please ask.\nOn two lines.\nAI: Sure.\nAPI-Request: [Wait()]->[{'ok': True}]\nAI: Waited.\n"
        "User: Now, ask!\nGenerate API Request:\n",
        "expected_output": "API-Request: [Ask(what='why, (then)?', days=['a', 'b'])]",
    },
    {
        "file": "a-level-1-1.jsonl",
        "id": 3,
        "instruction": 'API descriptions:\n{"name": "Wait", "input_parameters": {}}',
        "input": "User: Wait.\nAPI-Request: [Wait()]->success\nGenerate AI Response:\n",
        "expected_output": "I waited.",
    },
]
API_BANK_TOOLRL: list[dict[str, Any]] = [
    {
        "system": "You are helpful.\n\n**Available Tools**\nIn your response:\n1. Name: Ask\nDescription: Asks.\n"
        "Parameters: {'what': {'type': 'str', 'description': \"One's question\"}}\n\n**Steps for Each Turn**\n1. x",
        "user": "**Dialogue Records History**\n<user>Ask why.</user>\n<response>Sure.</response>\n\n<user> One call.</user>\n",
        "answer": [{"name": "Ask", "parameters": {"what": "why"}}],
        "other": {"file": "a-level-1-1.jsonl", "id": 0},
    }
]
_AREA = {
    "name": "geo.area",
    "description": "",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "integer"},
            "unit": {"type": "string"},
            "at": {"type": "tuple", "items": {"type": "float"}},
            "style": {"type": "HashMap"},
        },
        "required": ["base"],
    },
}
BFCL: list[dict[str, Any]] = [
    {
        "id": "live_simple_0-0-0",
        "question": [[{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Area, twice?"}]],
        "function": [_AREA],
        "ground_truth": [
            {
                "geo.area": {
                    "base": [10],
                    "unit": ["", "m"],
                    "at": [[1.5, 2]],
                    "style": [{"a": ["x", "y"], "b": ["", 1]}],
                }
            },
            {"geo.area": {"base": [3, 3.0], "unit": [""]}},
        ],
    },
    {"id": "irrelevance_7", "question": [[{"role": "user", "content": "Why?"}]], "function": [_AREA]},
    {"id": "live_relevance_0-0-0", "question": [[{"role": "user", "content": "Hm?"}]], "function": [_AREA]},
]
ACEBENCH: list[dict[str, Any]] = [
    {
        "id": "normal_multi_turn_user_adjust_0_1",
        "question": 'user: Plan it.\nOn two lines.\nsystem: [plan_trip(to="Oslo", days=2)]\nsystem: Planned.\nuser: Two more?\n',
        "function": [
            {
                "name": "plan_trip",
                "parameters": {"type": "object", "properties": {"to": {"type": "string"}, "days": {"type": "integer"}}},
            }
        ],
        "time": "Today is Friday.",
        "ground_truth": {"plan_trip_1": {"to": "Lima", "days": 1}, "plan_trip_2": {"to": "Rome", "days": 3}},
    },
    {
        "id": "special_irrelevant_0",
        "question": "user: Sing!\n",
        "function": [{"name": "clock", "parameters": {}}],
        "time": "",
        "ground_truth": "Due to the limitations of the function, I cannot solve this problem.",
    },
]
BFCL_AGENTIC: list[dict[str, Any]] = [
    {
        "id": "multi_turn_base_0",
        "question": [[{"role": "user", "content": "Move it."}], [{"role": "user", "content": "Sort it."}]],
        "involved_classes": ["GorillaFileSystem"],
        "initial_config": {},
    }
]
HOTPOTQA: list[dict[str, Any]] = [
    {"question": "Who?", "answer": "She", "supporting_facts": [["A", 0]], "context": [["A", ["x"]]], "level": "easy"}
]
API_BANK_DIALOGUE: list[dict[str, Any]] = [
    {"role": "User", "text": "Hello"},
    {"role": "API", "api_name": "Ask", "param_dict": {"what": "why"}, "result": {}},
]
# As unbraid writes tasks: nested for its own folders, texts of JSON for the hub.
_CALLS = [{"name": "get_weather", "arguments": {"city": "Zürich"}}]
_NESTED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Weather in Zürich?"}],
    "tools": [{"type": "function", "function": WEATHER}],
    "expected": _CALLS,
    "answers": [
        {"mode": m, "thought": t, "calls": _CALLS, "content": ""} for m, t in (("think", "A."), ("no_think", ""))
    ],
    "extra": {"needs_thinking": True, "right": {"no_think": 0.0, "think": 0.5}, "kind": "single"},
}
_FLAT = {"level": "medium", "source": "rows.json"}
TASK_ROWS: list[dict[str, Any]] = [
    {"id": "xlam/a.json:0:1", **_NESTED, **_FLAT},
    {"id": "xlam/a.json:1:1", **{key: json.dumps(value) for key, value in _NESTED.items()}, **_FLAT},
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "tasks": TASK_ROWS, "toolrl": TOOLRL, "api-bank": API_BANK, "api-bank-toolrl": API_BANK_TOOLRL, "xlam": XLAM,
    "verl": VERL, "acebench": ACEBENCH, "bfcl": BFCL, "bfcl-agentic": BFCL_AGENTIC, "hotpotqa": HOTPOTQA,
    "toolace": TOOLACE, "hermes": HERMES, "sharegpt": SHAREGPT, "messages": MESSAGES,
    "api-bank-dialogue": API_BANK_DIALOGUE,
}  # fmt: skip


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
