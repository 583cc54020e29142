"""The report page: complete, self-contained, escaped, and readable."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from unbraid.chat.types import Mode
from unbraid.evaluate import Labels, Score, compare, score
from unbraid.report import (
    Colophon,
    Oracle,
    Report,
    RunView,
    Token,
    Transcript,
    save_headline,
    score_table,
    transcript,
    transcript_text,
    write_report,
)
from unbraid.report.figures import _apart, _levels, smoothed
from unbraid.report.page import PANELS, render
from unbraid.report.palette import HUES, INK, METHODS, MUTED, PAGE, ROLE_BACKGROUNDS, Hue, contrast, style_of
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tokens import Role

KNOWN = (1.0, 1.0, 0.88, 0.62, 0.42, 0.22)  # share of tasks per level that are right without thinking
THINKS = {
    "direct": (0, 0, 0, 0, 0, 0),
    "distilled": (1, 1, 1, 1, 1, 1),
    "plain": (0, 0, 0, 0, 0, 0),
    "autotool_published": (0, 0, 0, 0, 0.02, 0.01),
    "recommended": (0, 0.01, 0.05, 0.42, 0.99, 1),
}
LABELS = {
    "direct": "distilled model, forced not to think",
    "distilled": "supervised on thinking answers only",
    "plain": "GRPO without any entropy term",
    "autotool_published": "the paper's decoupled adaptive constraint (arXiv 2603.13348)",
    "recommended": "ours: mode entropy and centred advantages",
}


def response(method: str, level: int, index: int, rng: np.random.Generator) -> Trajectory:
    thinks = bool(rng.random() < THINKS[method][level])
    length = 4 + (19 + 10 * level if thinks else 8)
    return Trajectory(
        task_id=f"k{level}-{index}",
        sample=0,
        ids=np.arange(length),
        prompt_length=4,
        roles=np.where(np.arange(length) < 4, 0, np.where(np.arange(length) < length - 6, 1, 2)).astype(np.uint8),
        sampled=np.arange(length) >= 4,
        logprobs=-rng.exponential(0.1, length).astype(np.float32),
        entropies=np.zeros(length, dtype=np.float32),
        choice_probs=(0.5, 0.5),
        mode=Mode.THINK if thinks else Mode.NO_THINK,
        forced=Mode.AUTO,
        finish=Finish.STOP,
        level=str(level),
        source="calls",
        correct=bool(rng.random() < (0.985 if thinks else KNOWN[level])),
    )


def responses(method: str) -> list[Trajectory]:
    rng = np.random.default_rng(len(method))
    return [response(method, level, i, rng) for level in range(6) for i in range(60)]


def rows(name: str, steps: int = 60) -> list[dict[str, float | None]]:
    rng = np.random.default_rng(sum(name.encode()))
    t = np.arange(1, steps + 1)
    holds = name == "recommended"
    think = 0.38 + 0.05 * np.tanh(t / 20) if holds else 0.32 / (1 + np.exp((t - 11) / 3))
    think = np.clip(think + rng.normal(0, 0.025, steps) * (think > 0.01), 0, 1)
    mode_entropy = 0.47 * np.where(t > 36, np.clip((60 - t) / 24, 0.05, 1), 1) if holds else 0.66 * think / 0.32
    made: list[dict[str, float | None]] = []
    for i, step in enumerate(t):
        row: dict[str, float | None] = {
            "step": int(step),
            "think_rate": float(think[i]),
            "accuracy": float(np.clip(0.6 + 0.32 * think[i] * 2 + 0.05 * np.tanh(i / 9) + rng.normal(0, 0.03), 0, 1)),
            "tokens": float(8 + 50 * think[i] + rng.normal(0, 0.6)),
            "entropy/mode": float(max(0.0, mode_entropy[i] + rng.normal(0, 0.02))),
            "entropy/think": float(0.16 * np.exp(-i / 30) + 0.03 + rng.normal(0, 0.006)) if think[i] > 0.004 else None,
            "entropy/no_think": float(0.08 * np.exp(-i / 18) + 0.02 + rng.normal(0, 0.004)),
            "vote/group": float((0.03 if holds else -0.05 * np.exp(-i / 14)) + rng.normal(0, 0.012)),
            "seconds/rollout": 0.5,
        }
        if name == "autotool_published":
            row["constraint/decoupled/think/coefficient"] = 0.01 * 1.08 ** float(i)
            row["constraint/decoupled/think/target"] = 0.2
            row["constraint/decoupled/think/gate_open"] = float(np.clip(rng.normal(0.8, 0.1), 0, 1))
            row["constraint/decoupled/no_think/target"] = 0.1
        if holds:
            row["constraint/mode_entropy/all/coefficient"] = 0.05 + 0.2 * float(np.exp(-(((i - 20) / 14) ** 2)))
            row["constraint/mode_entropy/all/target"] = 0.45 if i < 36 else 0.45 * (59 - i) / 23
            row["constraint/mode_entropy/all/gate_open"] = float(np.clip(rng.normal(0.5, 0.1), 0, 1))
        made.append(row)
    return made


def calls_transcript(method: str, thinks: bool, correct: bool, forced: bool = False) -> Transcript:
    prompt = "<tools> t6 t0 t2 <ask> i2b e7 r0 r1 <go>"
    thought = "use t2 ; start at e7 ; take r0 of e7 , this gives e2 ; take r1 of e2 , this gives e8 ; so value e8"
    call = "t2 ( p2 = e8 )" if correct else "t2 ( p2 = e5 )"
    rng = np.random.default_rng(5)
    tokens = [Token(f"{word} ", Role.PROMPT, False) for word in prompt.split()]
    opening = "<think>" if thinks else "<no_think>"
    tokens.append(Token(f"{opening} ", Role.REASONING, not forced, None if forced else -0.61))
    for word in f"{thought} </think>".split() if thinks else []:
        tokens.append(Token(f"{word} ", Role.REASONING, True, -float(rng.exponential(0.05))))
    tokens += [Token(f"{word} ", Role.ACTION, True, -float(rng.exponential(0.2))) for word in call.split()]
    tokens.append(Token("<eos>", Role.ACTION, True, -0.0001))
    mode = Mode.THINK if thinks else Mode.NO_THINK
    return Transcript(
        method=method,
        task="k2-17",
        level="2",
        mode=mode,
        forced=mode if forced else Mode.AUTO,
        correct=correct,
        reward={(True, True): 0.5, (False, True): 1.0, (True, False): -0.5, (False, False): -1.0}[thinks, correct],
        reward_parts={"format": 0.0, "answer": 0.5 if thinks else 1.0},
        reason="" if correct else "wrong_arguments",
        finish="stop",
        tokens=tuple(tokens),
        note="chain not seen in pre-training" if thinks else "",
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report()


def build_report() -> Report:
    by_method = {method: responses(method) for method in THINKS}
    scores = [
        score(
            sampled,
            Labels(method, "final", "tag", 340_000),
            Mode.NO_THINK if method == "direct" else Mode.AUTO,
            0.0,
        )
        for method, sampled in by_method.items()
    ]
    warning = {
        "step": 6,
        "level": "warning",
        "message": "predicted vote is against thinking and thinking is rare: collapse ahead",
    }
    views = [RunView(name, LABELS[name], rows(name)) for name in ("plain", "autotool_published", "recommended")]
    notes = ([warning], [warning | {"step": 9}], [{"step": 1, "level": "info", "message": "start"}])
    return Report(
        title="An agent that thinks only when it pays",
        summary=[
            "Three ways to train the same warmed-up model, on 360 held-out calls of known difficulty. Plain GRPO stops "
            "thinking within twenty steps; the published constraint slows this down and does not prevent it here; the "
            "recommended configuration keeps thinking where it pays.",
        ],
        scores=scores,
        runs=[replace(view, notes=said) for view, said in zip(views, notes, strict=True)],
        comparisons=[
            compare(by_method[first], by_method["recommended"], (first, "recommended"))
            for first in ("plain", "autotool_published", "distilled")
        ],
        transcripts=[
            calls_transcript("recommended", True, True),
            calls_transcript("recommended", False, True),
            calls_transcript("plain", False, False),
            calls_transcript("distilled", True, True, forced=True),
        ],
        oracle=Oracle(accuracy=0.99, tokens=25.7),
        labels=LABELS,
        colophon=Colophon(
            commands=["make quickstart", "unbraid quickstart --seed 0"],
            seeds={"base": 0, "rl": 0},
            versions={"unbraid": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
            seconds={"warm-up": 41.2, "plain": 61.0, "autotool_published": 63.5, "recommended": 70.9, "evaluation": 24},
            notes=["2 CPU cores, float32"],
        ),
    )


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render(report)


class Page(HTMLParser):
    """What a browser would see: elements, text, unclosed tags."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr", "wbr"})

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_the_page_is_whole_and_asks_nobody_for_anything(report: Report, tmp_path: Path):
    write_report(tmp_path / "report.html", report)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.open
    assert page.count("script") == page.count("img") == page.count("iframe") == 0
    assert page.count("svg") == 4 + len(PANELS)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for method, words in LABELS.items():
        assert method in page.text
        assert words in page.text
    assert ("viewport" in html, "prefers-color-scheme: dark" in html) == (True, True)
    assert len(html) < 1_000_000


def test_the_page_shows_the_numbers_of_the_scores(report: Report, html: str):
    text = Page(html).text
    for s in report.headline:
        assert f"{100 * s.accuracy.value:.1f}" in text
        assert f"{s.tokens.value:.1f}" in text
    assert "collapse ahead" in text
    assert "computed, not run" in text
    assert "make quickstart" in text


def test_equal_reports_give_equal_pages(html: str):
    assert html == render(build_report())


def test_every_svg_is_well_formed_and_takes_its_colours_from_the_theme(html: str):
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(svg.replace("xlink:href", "href"))
        left = set(re.findall(r"#[0-9a-f]{6}\b", svg)) - {"#000000", "#ffffff"}
        assert not left
        assert all(name in html for name in re.findall(r"var\((--\w+)\)", svg))


def test_text_with_html_in_it_is_shown_and_not_run(report: Report):
    attack = "<script>alert(1)</script>\"'&<b onmouseover=x>"
    token = Token(attack, Role.ACTION, True, -0.1)
    shown = replace(report.transcripts[0], task=attack, note=attack, reason=attack, method=attack, tokens=(token,))
    shown = replace(shown, reward_parts={attack: 1.0})
    labels = replace(report.scores[0].labels, method=attack, checkpoint=attack, template=attack)
    levels = {attack: report.scores[0].accuracy}
    warning = {"step": 1, "level": "warning", "message": attack}
    bad = replace(
        report,
        title=attack,
        summary=[attack],
        scores=[replace(report.scores[0], labels=labels, accuracy_by_level=levels)],
        runs=[RunView(attack, attack, [{"step": 1, "think_rate": 0.5}], [warning])],
        transcripts=[shown],
        comparisons=[replace(report.comparisons[0], first=attack)],
        labels={attack: attack},
        oracle=Oracle(0.5, 10, attack),
        colophon=Colophon([attack], {attack: attack}, {attack: attack}, {attack: 1}, [attack]),
    )
    page = Page(render(bad))
    assert page.count("script") == page.count("b") == 0
    assert page.text.count(attack) > 12


def test_nothing_to_show_is_no_error(report: Report, tmp_path: Path):
    page = Page(render(Report(title="Nothing", summary=[])))
    assert (page.count("svg"), page.count("section"), page.count("h1")) == (0, 0, 1)
    assert Page(render(replace(report, transcripts=(), runs=(), comparisons=(), oracle=None))).count("article") == 0
    write_report(tmp_path / "a.html", replace(report, scores=report.scores[:1], runs=report.runs[:1]))


def test_absent_null_and_single_values_are_drawn_or_named():
    gaps = [{"step": 1, "think_rate": None}, {"step": 2, "think_rate": float("nan")}, {"step": 3}]
    runs = [RunView("plain", "", gaps), RunView("recommended", "", [{"step": 1, "think_rate": 0.5, "accuracy": "?"}])]
    page = Page(render(Report(title="Gaps", summary=[], runs=runs)))
    assert page.count("svg") == 1
    assert "not drawn: Accuracy, Response length" in page.text
    assert runs[0].series("think_rate") == ([], [])


def test_targets_belong_to_the_entropy_that_they_constrain(report: Report):
    targets = {panel.name: [key for run in report.runs for key in panel.targets(run)] for panel in PANELS}
    assert {name: keys for name, keys in targets.items() if keys} == {
        "entropy-mode": ["constraint/mode_entropy/all/target"],
        "entropy-think": ["constraint/decoupled/think/target"],
        "entropy-no-think": ["constraint/decoupled/no_think/target"],
    }


def test_headline_prefers_greedy_in_auto_mode(report: Report):
    one = report.scores[1]
    scores = [replace(one, temperature=1.0), replace(one, mode=Mode.THINK), one, replace(one, temperature=1.0)]
    assert replace(report, scores=scores).headline == [one]
    assert replace(report, scores=scores[:2]).headline == [scores[1]]


def test_levels_are_in_natural_order(report: Report):
    one = report.scores[0]
    by_level = dict.fromkeys(["k10", "hard", "k9", "easy", "2", "10"], one.accuracy)
    assert _levels([replace(one, accuracy_by_level=by_level)], "accuracy") == ["2", "10", "easy", "hard", "k9", "k10"]


def test_texts_are_moved_apart_and_stay_inside():
    placed = _apart([5, 5, 5, 90], [10, 10, 20, 10], 0, 100)
    edges = sorted((y - h / 2, y + h / 2) for y, h in zip(placed, [10, 10, 20, 10], strict=True))
    assert edges[0][0] >= 0
    assert edges[-1][1] <= 100
    assert all(below[1] <= above[0] + 1e-9 for below, above in pairwise(edges))


def test_smoothing_keeps_constants_ends_and_onsets():
    steps = np.arange(100.0)
    np.testing.assert_allclose(smoothed(steps, np.full(100, 0.3)), 0.3)
    assert smoothed(np.array([7.0]), np.array([2.0])).tolist() == [2.0]
    step = smoothed(steps, (steps >= 50).astype(float))
    assert step[49] + step[50] == pytest.approx(1.0)


def lab(colour: str, deficiency: np.ndarray) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(deficiency @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}


@pytest.mark.parametrize("theme", Hue._fields)
def test_colours_can_be_read_and_told_apart(theme: str):
    page, ink = getattr(PAGE, theme), getattr(INK, theme)
    for hue in (*HUES.values(), MUTED, INK):
        assert contrast(getattr(hue, theme), page) >= 4.5
    for hue in ROLE_BACKGROUNDS.values():
        assert contrast(ink, getattr(hue, theme)) >= 7
    for vision, matrix in VISION.items():
        trained = [lab(getattr(METHODS[m].hue, theme), matrix) for m in ("plain", "autotool_published", "recommended")]
        apart = min(float(np.linalg.norm(a - b)) for a, b in combinations(trained, 2))
        assert apart > 20, (vision, apart)


def test_contrast_has_the_known_extremes_and_styles_do_not_depend_on_order():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    assert style_of("something new") == style_of("something new")
    assert style_of("plain", "green").hue == HUES["green"]
    assert len({(s.marker, s.line, s.colour) for s in METHODS.values()}) == len(METHODS)


def test_a_transcript_keeps_every_character_of_its_text():
    text = "<think> nach München 🚀 </think> f ( ) "
    data = text.encode()

    def decode(ids: object) -> str:
        return bytes(ids).decode(errors="replace")  # pyright: ignore[reportArgumentType]

    n = len(data)
    trajectory = replace(
        response("plain", 0, 0, np.random.default_rng(0)),
        ids=np.frombuffer(data, dtype=np.uint8).astype(np.int64),
        prompt_length=0,
        roles=np.full(n, Role.REASONING, dtype=np.uint8),
        sampled=np.arange(n) >= 7,
        logprobs=np.full(n, -0.5, dtype=np.float32),
    )
    shown = transcript(trajectory, decode, "plain")
    assert "".join(token.text for token in shown.tokens) == text
    assert [token.logprob for token in shown.tokens[6:8]] == [None, -0.5]
    assert (shown.mode, shown.finish, shown.response_tokens) == (trajectory.mode, "stop", n)

    def spaced(ids: object) -> str:
        return " ".join(f"w{i}" for i in ids)  # pyright: ignore[reportGeneralTypeIssues]

    words = transcript(replace(trajectory, ids=np.arange(n)), spaced, "plain")
    assert "".join(token.text for token in words.tokens) == spaced(range(n))


def test_long_prompts_are_folded_and_many_warnings_counted(report: Report):
    short = report.transcripts[0]
    prompt = tuple(Token(f"p{i} ", Role.PROMPT, False) for i in range(1000))
    warnings = [{"step": i, "level": "warning", "message": f"warning {i}"} for i in range(9)]
    run = RunView("plain", "", [], warnings)
    page = Page(
        render(Report("Long", [], transcripts=[short, replace(short, tokens=prompt + short.tokens)], runs=[run]))
    )
    assert page.count("details") == 1
    assert "prompt, 1010 tokens" in page.text
    assert "warning 2" in page.text
    assert "warning 3" not in page.text
    assert "and 6 more warnings" in page.text


def test_forced_and_sampled_tokens_look_different(report: Report):
    page = Page(render(replace(report, transcripts=[calls_transcript("distilled", True, True, forced=True)])))
    forced = [a for _, a in page.elements if "forced" in (a.get("class") or "") and a.get("title")]
    sampled = [
        a for _, a in page.elements if a.get("class") == "token" and (a.get("title") or "").startswith("log-prob")
    ]
    assert [a["title"] for a in forced] == ["forced: not drawn by the model"]
    assert len(sampled) == 36


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_headline_picture_for_the_readme(report: Report, tmp_path: Path, suffix: str):
    save_headline(tmp_path / f"a.{suffix}", report)
    save_headline(tmp_path / f"b.{suffix}", report)
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert data == (tmp_path / f"b.{suffix}").read_bytes()
    assert data.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_the_terminal_shows_the_same_numbers(report: Report):
    console = Console(file=io.StringIO(), width=130, record=True)
    console.print(score_table(report))
    console.print(score_table(report, everything=True))
    console.print(transcript_text(calls_transcript("[plain]", True, True, forced=True)))
    text = console.export_text()
    for s in report.headline:
        assert f"{100 * s.accuracy.value:.1f}" in text
    assert "oracle" in text
    assert "[plain]" in text
    assert "so value e8 </think> t2 ( p2 = e8 )" in text


def test_scores_read_back_from_json_make_the_same_page(report: Report, html: str):
    again = replace(report, scores=[Score.from_json(s.to_json()) for s in report.scores])
    assert render(again) == html
