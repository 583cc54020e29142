"""The code of docs/trl.md runs as it stands, but for the model's name and the number of steps."""

import re
from pathlib import Path

import pytest
from trl_worlds import OFF, chat_model, chat_tokenizer

PAGE = Path(__file__).parents[1] / "docs" / "trl.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chat_model().save_pretrained(tmp_path / "model")
    chat_tokenizer().save_pretrained(str(tmp_path / "model"))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    small = {
        '"Qwen/Qwen3-1.7B"': repr(str(tmp_path / "model")),
        "max_steps=200": f"max_steps=1, **{OFF!r}",
        "max_completion_length=512": "max_completion_length=8",
    }
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        for text, other in small.items():
            block = block.replace(text, other)
        exec(compile(block, str(PAGE), "exec"), names)
    assert sorted(p.name for p in Path("runs/trl-sft/final").iterdir() if p.is_dir()) == ["action", "reasoning"]
