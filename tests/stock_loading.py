"""Loads exported folders with stock transformers and PEFT, and nothing of unbraid: `test_export.py` starts it.

stock_loading.py WORK      WORK/work.json says which folders; ids, logits and what the cards' code says go to stock.json
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def main() -> None:
    work = Path(sys.argv[1])
    asked = json.loads((work / "work.json").read_text())
    found = {}
    for name, (folder, base) in asked["folders"].items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rendered = {
            mode: tokenizer.apply_chat_template(
                asked["messages"], tools=asked["tools"], add_generation_prompt=True, mode=mode, return_dict=False
            )
            for mode in ("auto", "think", "no_think")
        }
        parts = ["reasoning", "action"] if name == "routed" else [""]
        logits = {}
        for part in parts:
            model = AutoModelForCausalLM.from_pretrained(base or folder)
            if base:
                model = PeftModel.from_pretrained(model, folder, subfolder=part or None)
            with torch.no_grad():
                logits[part] = model(torch.tensor([asked["ids"]])).logits[0, -1].tolist()
        card = (Path(folder) / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        os.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code.replace("max_new_tokens=512", "max_new_tokens=4"), {})
        settings = GenerationConfig.from_pretrained(folder)
        read = tokenizer.parse_response(asked["response"], prefix=asked["ids"])
        found[name] = {
            "rendered": rendered, "logits": logits, "said": said.getvalue(), "eos": settings.eos_token_id, "read": read,
        }  # fmt: skip
    assert not any(name.split(".")[0] == "unbraid" for name in sys.modules)
    (work / "stock.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
