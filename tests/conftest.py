"""What all tests share: one thread each, no network, repeatable examples, and skips that nobody can overlook."""

import os
from collections.abc import Iterable
from pathlib import Path

# Set before any test imports the library in question; the processes that tests start inherit them.
os.environ.update(
    OMP_NUM_THREADS="1",  # several workers share the cores, and float sums depend on the thread count
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
)

import pytest
from hypothesis import settings

SKIPS = Path(__file__).parent / "skips.txt"
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
DIFFERENCES = pytest.StashKey[list[str]]()

settings.register_profile("default", deadline=None)  # a busy machine is not a failure
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if IN_CI else "default")


def read_skips(lines: Iterable[str]) -> dict[str, str]:
    """The committed list as {test id: reason}; blank lines and comments are left out."""
    entries = (line.strip().partition(" | ") for line in lines if line.strip() and not line.startswith("#"))
    return {test: reason for test, _, reason in entries}


def compare_skips(expected: dict[str, str], found: dict[str, str], ran: set[str]) -> list[str]:
    """Differences between the list and one run, a line each.

    A listed test counts as not skipped only if it ran: another selection of tests is not a difference.
    """
    new = [f"skipped but not listed: {t} | {r}" for t, r in sorted(found.items()) if expected.get(t) != r]
    return new + [f"listed but not skipped: {t}" for t in sorted(expected) if t in ran and t not in found]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hold the skips of this run against the list; in CI a difference fails the run."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or hasattr(session.config, "workerinput"):  # a worker of pytest-xdist: its parent knows all
        return
    reports = {kind: terminal.stats.get(kind, []) for kind in ("passed", "failed", "error", "skipped")}
    found = {r.nodeid: str(r.longrepr[2]).removeprefix("Skipped: ") for r in reports["skipped"]}
    ran = {r.nodeid for kind in ("passed", "failed", "error") for r in reports[kind]}
    session.config.stash[DIFFERENCES] = compare_skips(read_skips(SKIPS.read_text().splitlines()), found, ran)
    if session.config.stash[DIFFERENCES] and IN_CI:
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what differs, and what to do about it."""
    for line in config.stash.get(DIFFERENCES, []):
        terminalreporter.write_line(f"tests/skips.txt: {line}", red=IN_CI, yellow=not IN_CI)
    if config.stash.get(DIFFERENCES, []) and IN_CI:
        terminalreporter.write_line("CI fails on these: make the test run, or correct tests/skips.txt", red=True)
