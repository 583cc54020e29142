"""A base with more delimiters: ids, rows that start as words, and nothing else changed."""

import subprocess
import sys

import pytest
import torch
from tiny import TAGS, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from unbraid.chat.delimiters import single_id
from unbraid.errors import ModelError
from unbraid.policy.new_tokens import save_with_delimiters, with_delimiters

NEW = ["<search>", "</search>"]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path):
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_new_rows_start_as_words_and_all_else_stays(base, tmp_path):
    assert save_with_delimiters(str(base), tmp_path / "out", [*NEW, TAGS[0]]) == NEW
    tokenizer, before = AutoTokenizer.from_pretrained(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(base)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    old = AutoTokenizer.from_pretrained(base)
    ids = [single_id(tokenizer, text) for text in NEW]
    assert None not in ids and len(set(ids)) == 2
    for get in ("get_input_embeddings", "get_output_embeddings"):
        rows, known = getattr(after, get)().weight, getattr(before, get)().weight
        assert torch.equal(rows[: len(known)], known)
        for token, word in zip(ids, ("search", "end"), strict=True):
            like = known[old.encode(word, add_special_tokens=False)[0]]
            assert 0 < float((rows[token] - like).norm() / like.norm()) < 0.1
    text = "plain words"
    assert tokenizer.encode(text) == old.encode(text)


def test_a_base_that_has_them_is_used_as_it_is(base, tmp_path):
    with pytest.raises(ModelError, match="use it as it is"):
        save_with_delimiters(str(base), tmp_path / "out", list(TAGS))
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_to_do_next(base, tmp_path):
    command = [sys.executable, "-m", "unbraid.cli", "add-delimiters", str(base), *NEW, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "<search>, </search> added" in done.stdout and "model.path=" in done.stdout


def test_a_recipe_can_name_a_base_that_is_made_when_needed(base, tmp_path, monkeypatch):
    monkeypatch.setenv("UNBRAID_CACHE", str(tmp_path / "cache"))
    assert with_delimiters(str(base), ",".join(TAGS)) == str(base)
    made = with_delimiters(str(base), "<search>, </search>")
    assert made == with_delimiters(str(base), "<search>,</search>") != with_delimiters(str(base), "<sql>")
    assert single_id(AutoTokenizer.from_pretrained(made), "<search>") is not None
    assert sorted(path.suffix for path in (tmp_path / "cache" / "models").iterdir()) == ["", ""]
