"""Where tasks come from: files, the hub, functions; and what is said when they do not."""

import sys
from typing import Any

import pytest
from rows import rows_of

from unbraid.data import DataConfig, read_tasks
from unbraid.errors import DataError, MissingExtraError

ALL = DataConfig(no_call=1.0)


def test_sources_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        read_tasks(str(tmp_path / "absent.json"), ALL)
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"cannot read \.csv"):
        read_tasks(str(tmp_path / "rows.csv"), ALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="below this directory"):
        read_tasks(str(tmp_path / "empty"), ALL)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"unbraid\[data\]"):
        read_tasks("owner/name", ALL)


def test_hub_rows(monkeypatch):
    """The hub itself is out of reach in tests: what is asked of `datasets`, and what is made of its rows."""
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*arguments: object, **options: object) -> list[dict[str, Any]]:
            asked.append((arguments, options))
            if arguments[0] == "owner/absent":
                raise FileNotFoundError("no such data set\nsecond line")
            return rows_of("messages")

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    result = read_tasks("owner/name:small", DataConfig(no_call=1.0, split="test"))
    assert [t.id for t in result.tasks] == [f"owner/name:small:{i}" for i in ("0:2", "0:4", "1:1")]
    assert asked == [(("owner/name", "small"), {"split": "test"})]
    with pytest.raises(DataError, match=r"no such data set.*data\.split") as caught:
        read_tasks("owner/absent", ALL)
    assert "\n" not in str(caught.value)


WORLD = """
from unbraid.chat.types import Call
from unbraid.tasks import Task

def tasks(count=2, name="w", level=None):
    for i in range(count):
        yield Task(f"{name}{i}", ({"role": "user", "content": str(i)},), expected=(Call("f"),), level=str(level))

def odd():
    same = Task("a", ())
    return [same, same, "text", Task("b", ({"x": float("nan")},)), Task("c", ({"x": {1}},))]

def late():
    yield Task("a", ())
    raise KeyError("gone")

def nothing():
    return 3
"""


def test_functions_as_sources(tmp_path, monkeypatch):
    (tmp_path / "my_world.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = read_tasks("my_world:tasks?count=3&name=x%20y&level=true", DataConfig())
    assert [(t.id, t.level) for t in result.tasks] == [("x y0", "True"), ("x y1", "True"), ("x y2", "True")]
    assert len(read_tasks(f"{tmp_path / 'my_world.py'}:tasks", DataConfig()).tasks) == 2
    odd = read_tasks("my_world:odd", DataConfig())
    assert [t.id for t in odd.tasks] == ["a"]
    assert [(b.row, b.reason) for b in odd.bad] == [
        (1, "the task id is taken by an earlier task"),
        (2, "a str, not a Task"),
        (3, "values that JSON cannot hold"),
        (4, "values that JSON cannot hold"),
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("my_world:late", "KeyError: 'gone'"),
        ("my_world:nothing", "returned a int: return an iterable of Task"),
        ("my_world:tasks?size=3", "unexpected keyword argument 'size'"),
        ("my_world:tasks?count", "failed"),
        ("my_world:absent", "has no .absent."),
        ("no_such_world:tasks", "cannot import"),
    ],
)
def test_functions_that_fail(tmp_path, monkeypatch, source, words):
    (tmp_path / "my_world.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=words):
        read_tasks(source, DataConfig())
