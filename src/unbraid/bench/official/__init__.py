"""Official checkers, as they are, in a process of their own: one JSON question a line in, one verdict a line out.

Their code stays in the clone that the user names, runs in an interpreter that has what it needs, and is not changed.
The modules beside this one run there: they know the standard library and the clone, and nothing of us.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from unbraid.errors import DataError

HERE = Path(__file__).parent


class Checker:
    """A checker that runs. Use it as a context manager; safe in threads.

    Args:
        checker: module here that knows the clone, such as `api_bank`. clone: the user's clone.
        python: interpreter that has what the clone needs; empty = this one.

    Raises:
        DataError: it does not start; the message says what it said.
    """

    def __init__(self, checker: str, clone: str | Path, python: str = ""):
        self._where = f"the official checker in {clone}"
        if not Path(clone).is_dir():
            raise DataError(f"{clone}: no such folder; give the folder of your clone")
        command = [python or sys.executable, "-u", str(HERE / "answering.py"), checker, str(Path(clone).resolve())]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as problem:
            raise DataError(f"{self._where} does not start ({problem}): check --python") from problem
        self._lock = Lock()
        ready = self._answer()
        if "ready" not in ready:
            self.close()
            raise DataError(f"{self._where} does not start: {ready.get('error', ready)}")

    def ask(self, question: Mapping[str, Any]) -> str:
        """`right`, or why it is not.

        Raises:
            DataError: the checker failed: no answer can be judged.
        """
        with self._lock:
            try:
                assert self._process.stdin
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
            except OSError as problem:
                raise DataError(f"{self._where} has gone ({problem}): run it again, it goes on") from problem
            verdict = self._answer()
        if "error" in verdict:
            raise DataError(f"{self._where}: {verdict['error']}")
        return "right" if verdict["right"] else str(verdict["reason"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout and self._process.stderr
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().splitlines()
            return {"error": f"it ended: {said[-1] if said else 'it said nothing'}"}
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        self.close()
