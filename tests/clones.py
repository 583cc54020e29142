"""Small stand-ins for the repositories whose own evaluators judge: same layout, same functions, same files."""

import json
from pathlib import Path
from typing import Any

TOOL_MANAGER = '''
class AddAgenda:
    """Right if more than half of the words are, and the database says the same."""
    def call(self, token, content, time):
        return {"input": {"content": content, "time": time}, "output": "success", "exception": None}
    def check_api_call_correctness(self, response, groundtruth):
        mine, gold = (set(r["input"]["content"].split(" ")) for r in (response, groundtruth))
        same = response["input"]["time"] == groundtruth["input"]["time"]
        return len(mine & gold) / len(mine | gold) > 0.5 and same and response["output"] == groundtruth["output"]
class Calculator:
    def call(self, formula):
        return {"input": {"formula": formula}, "output": eval(formula), "exception": None}
    def check_api_call_correctness(self, response, groundtruth):
        return response["output"] == groundtruth["output"]
class ToolManager:
    def __init__(self):
        print("the clone may print")
        self.tools = {"AddAgenda": AddAgenda(), "Calculator": Calculator()}
    def api_call(self, tool_name, **kwargs):
        assert all(isinstance(value, str) for value in kwargs.values())
        return self.init_tool(tool_name).call(**kwargs)
    def init_tool(self, tool_name):
        return self.tools[tool_name]
'''

EVAL_MAIN = """
import ast
import re
import pandas as pd
from openpyxl import Workbook
from openpyxl.styles import Alignment

def save_score_as_json(name, data, folder=None):
    raise AssertionError("nothing is written into the clone")
convert_result_to_excel = save_score_as_json

def decoded(text):
    calls = ast.parse("".join(text.split()), mode="eval").body.elts
    return [{c.func.id: {k.arg: ast.literal_eval(k.value) for k in c.keywords}} for c in calls]

def normal(model_result, prompt, possible_answer, category):
    result, correct = [], 0
    for one, row, answer in zip(model_result, prompt, possible_answer):
        gold = answer["ground_truth"]
        try:
            made = decoded(one["result"])
        except Exception as problem:
            result.append({"id": row["id"], "valid": False, "error_type": "wrong_output_format"})
            continue
        if one["result"] == "[get_weather(city='crash')]" or "broken" in row["question"]:
            raise KeyError("an answer that nobody expected")
        several = gold if isinstance(gold, list) else [gold]
        wanted = [[{re.sub("_[0-9]+$", "", k): v} for k, v in g.items()] for g in several]
        strip = lambda x: str(x).replace(" ", "").lower()
        if any(strip(made) == strip(w) for w in wanted):
            correct += 1
        else:
            result.append({"id": row["id"], "valid": False, "error_type": "value_error"})
    save_score_as_json("x", [{"accuracy": correct / len(model_result)}, *result], OUTPUT_PATH)
    convert_result_to_excel("x")
    return correct / len(model_result)

def normal_single_turn_eval(model_result, prompt, possible_answer, test_category, model_name, paths):
    return normal(model_result, prompt, possible_answer, test_category)

def normal_multi_turn_eval(model_result, prompt, possible_answer, test_category, model_name, paths):
    return normal(model_result, prompt, possible_answer, test_category)

def special_eval(model_result, prompt, possible_answer, category, model_name):
    text, gold = model_result[0]["result"], possible_answer[0]["ground_truth"]
    if "incomplete" in category:
        said = "Missing necessary parameters" in text
        fine = said and all(n in text and all(v in text for v in vs) for n, vs in gold.items())
    elif "error" in category:
        fine = all("There is incorrect value" in text and all(v in text for v in vs) for vs in gold.values())
    else:
        fine = "the limitations of the function" in text
    save_score_as_json("x", [{}, *([] if fine else [{"error_type": "error_detection"}])])
    return float(fine)
"""


def api_bank_clone(folder: Path) -> Path:
    """A clone with two APIs and one dialogue of three calls, and its rows (`rows.json`)."""
    samples = folder / "lv1-lv2-samples" / "level-1-given-desc"
    samples.mkdir(parents=True)
    (folder / "tool_manager.py").write_text(TOOL_MANAGER)
    (folder / "api_call_extraction.py").write_text("")
    agenda = {"token": "t1", "content": "dinner with the whole team", "time": "2023-03-01 19:00:00"}
    gold = [
        ("AddAgenda", agenda, "success"),
        ("Calculator", {"formula": "2*3"}, 6),
        ("Calculator", {"formula": "1+1"}, 2),
    ]
    tools = [
        {"name": "AddAgenda", "description": "Adds.", "input_parameters": {k: {"type": "str"} for k in agenda}},
        {"name": "Calculator", "description": "Counts.", "input_parameters": {"formula": {"type": "str"}}},
    ]
    history: list[dict[str, Any]] = [{"role": "User", "text": "Dinner with the whole team on March 1st at 7 pm."}]
    rows, said = [], "User: Dinner with the whole team on March 1st at 7 pm.\n"
    described = "\n".join(json.dumps(tool) for tool in tools)
    for number, (name, arguments, output) in enumerate(gold):
        written = ", ".join(f"{k}='{v}'" for k, v in arguments.items())
        rows.append(
            {
                "file": "Dinner-level-1-1.jsonl",
                "id": 2 * number,
                "instruction": f"Generate an API request.\nThe current year is 2023.\n\nAPI descriptions:\n{described}",
                "input": f"{said}Generate API Request:\n",
                "expected_output": f"API-Request: [{name}({written})]",
            }
        )
        result = {"api_name": name, "input": arguments, "output": output, "exception": None}
        history.append({"role": "API", "api_name": name, "param_dict": arguments, "result": result})
        history.append({"role": "AI", "text": "Done."})
        said += f"API-Request: [{name}({written})]->{output}\nAI: Done.\n"
    (samples / "Dinner-level-1-1.jsonl").write_text("\n".join(map(json.dumps, history)))
    (folder / "level-1-api.json").write_text(json.dumps(rows))
    return folder


def _function(name: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": kind, "description": key} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"name": name, "description": f"Does {name}.", "parameters": schema}


def acebench_clone(folder: Path) -> Path:
    """A clone with its evaluation, its prompts, and a few rows of seven categories."""
    data, answers = folder / "data_all" / "data_en", folder / "data_all" / "data_en" / "possible_answer"
    answers.mkdir(parents=True)
    (folder / "model_inference").mkdir()
    kinds = [f'SYSTEM_PROMPT_FOR_{k}_DATA_EN = """{k}: [Name(key=value)] {{{f}}}\n{{function}}"""' for k, f in
             (("NORMAL", "time"), ("SPECIAL", "time"), ("PREFERENCE", "profile"))]  # fmt: skip
    kinds += ['USER_PROMPT_EN = """Conversation history 1..t:\n{question}"""']
    (folder / "model_inference" / "prompt_en.py").write_text("\n".join(kinds))
    (folder / "eval_main.py").write_text(EVAL_MAIN)
    weather, mail = _function("get_weather", city="string"), _function("send_mail", to="string", text="string")
    for category, rows in {
        "normal_single_turn_single_function": [({"get_weather": {"city": "New York"}}, "In New York?")] * 3,
        "normal_single_turn_parallel_function": [
            ({"get_weather_1": {"city": "Rome"}, "get_weather_2": {"city": "Oslo"}}, "Rome and Oslo?")
        ] * 2,
        "normal_multi_turn_user_switch": [({"get_weather": {"city": "Rome"}}, "Rome?")] * 4,
        "normal_preference": [([{"send_mail": {"to": "a", "text": text}} for text in "bc"], "Mail")],
        "special_incomplete": [({"send_mail": ["to", "text"]}, "Send a mail.")] * 2,
        "special_error_param": [({"city": ["R0me"]}, "Weather in R0me?")],
        "special_irrelevant": [("Due to the limitations of the function, I cannot solve this problem.", "Cook!")],
        "agent_multi_step": [({}, "Do it.")],
    }.items():  # fmt: skip
        asked, gold = [], []
        for number, (answer, question) in enumerate(rows):
            place = f"{number // 2}_{number % 2}" if "multi_turn" in category else str(number)
            row = {
                "id": f"{category}_{place}",
                "question": f"user: {question} ({number})",
                "function": [weather, mail],
                "time": "",
            }
            row |= {"profile": "Likes rain."} if "preference" in category else {}
            asked.append(row)
            gold.append({"id": row["id"], "ground_truth": answer})
        (data / f"data_{category}.json").write_text("\n".join(map(json.dumps, asked)))
        (answers / f"data_{category}.json").write_text("\n".join(map(json.dumps, gold)))
    return folder
