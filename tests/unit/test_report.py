"""The HTML report: its numbers are the logged ones, hostile records stay text, missing parts are left out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from axpo.diagnostics.recorder import read_metrics, rollout_files
from axpo.errors import DataError
from axpo.reports.html import arm_colors, write_report
from axpo.reports.runs import load_arms
from axpo.reports.tables import difference, edge_means, final_table, write_verdict
from axpo.reports.trees import choose_groups
from synthetic_run import write_run

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, class_name: str) -> int:
        return sum(name == tag and class_name in (attrs.get("class") or "").split() for name, attrs in self.tags)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods, two seeds each."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("grpo", "axpo"):
        for seed in (0, 1):
            write_run(
                root / f"{method}-{seed}", method=method, seed=seed, num_steps=8, num_questions=4, eval_steps=(0, 8)
            )
    return sorted(root.iterdir())


@pytest.fixture(scope="module")
def source(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    write_report(runs, path)
    return path.read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_from_outside_and_runs_no_script(source: str) -> None:
    page = Page(source)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "img", "object", "base")]
    assert not [attrs for _, attrs in page.tags for name in attrs if name.startswith("on")]
    targets = [
        value or "" for _, attrs in page.tags for name, value in attrs.items() if name in ("href", "xlink:href", "src")
    ]
    assert all(target.startswith("#") for target in targets)
    assert not re.findall(r"url\((?!#|data:image/jpeg;base64,)", source)
    assert len(source) < 5_000_000


def test_runs_that_differ_in_their_seed_are_one_method(runs: list[Path]) -> None:
    arms = load_arms(runs)
    assert [(arm.label, arm.seeds) for arm in arms] == [("GRPO", (0, 1)), ("AXPO", (0, 1))]
    assert arm_colors(arms) == [("#d55e00", "#ff9a4d"), ("#0072b2", "#56b4e9")]


def test_the_final_table_shows_the_logged_evaluations(runs: list[Path], source: str) -> None:
    arms = load_arms(runs)
    start, grpo, axpo = final_table(arms)
    assert (start.label, grpo.label, axpo.label) == ("Start", "GRPO", "AXPO")
    for row, method in ((grpo, "grpo"), (axpo, "axpo")):
        logged = [read_metrics(run)[-1] for run in runs if run.name.startswith(method)]
        for name in ("pass@1", "pass@4", "tool_use_rate"):
            cell = row.cells[name]
            assert cell.estimate == pytest.approx(sum(record[f"eval/{name}"] for record in logged) / 2)
            assert cell.low is not None and cell.high is not None and cell.low <= cell.estimate <= cell.high
            assert f"{100 * cell.estimate:.1f} %" in source
    assert len(start.evaluations) == 4


def test_a_single_run_has_the_interval_it_logged(runs: list[Path]) -> None:
    [start, row] = final_table(load_arms(runs[:1]))
    logged = read_metrics(runs[0])[-1]
    for name in ("pass@1", "box_hit_rate", "tool_use_any"):
        cell = row.cells[name]
        assert (cell.estimate, cell.low, cell.high) == tuple(
            logged[f"eval/{name}{end}"] for end in ("", "_low", "_high")
        )
    assert start.step == 0


def test_the_verdict_follows_from_the_numbers(runs: list[Path], source: str) -> None:
    arms = load_arms(runs)
    rows = final_table(arms)
    first, second = write_verdict(arms, rows)
    by_label = {row.label: row.cells["pass@1"].estimate for row in rows}
    gap = difference(rows, "AXPO", "GRPO", "pass@1")
    assert by_label["AXPO"] is not None and by_label["GRPO"] is not None and gap.estimate is not None
    assert gap.estimate == pytest.approx(by_label["AXPO"] - by_label["GRPO"])
    assert f"{100 * by_label['AXPO']:.1f} %" in first and f"{100 * gap.estimate:+.1f}".replace("-", "−") in first
    assert second.startswith("Rollouts that call a tool: AXPO")
    assert first in Page(source).text


def test_equal_runs_are_not_told_apart(runs: list[Path], tmp_path: Path) -> None:
    axpo = next(run for run in runs if run.name == "axpo-0")
    twin = tmp_path / "twin"
    twin.mkdir()
    for name in ("metrics.jsonl", "rollouts", "images", "run.json"):
        (twin / name).symlink_to(axpo / name)
    config = (axpo / "config.toml").read_text().replace("resample_budget_frac = 0.25", "resample_budget_frac = 0.0")
    (twin / "config.toml").write_text(config)
    arms = load_arms([axpo, twin])
    assert "do not tell them apart" in write_verdict(arms, final_table(arms))[0]


def test_edges_are_means_over_the_first_and_last_steps(runs: list[Path]) -> None:
    [arm] = load_arms([run for run in runs if run.name == "axpo-1"])
    rates = [
        record["rollout/tool_use_rate"] for record in read_metrics(arm.runs[0].folder) if record["kind"] == "train"
    ]
    assert edge_means(arm, "rollout/tool_use_rate") == pytest.approx((sum(rates[:5]) / 5, sum(rates[-5:]) / 5))


def test_trees_show_every_sibling_and_every_continuation(runs: list[Path], source: str) -> None:
    arms = load_arms(runs)
    groups = choose_groups(arms, max_groups=6)
    assert groups[0].category == "recovered"
    page = Page(source)
    assert page.count("article", "group") == len(groups) == 6
    num_cards = sum(len(group.siblings) + len(group.continuations) for group in groups)
    assert page.count("details", "tile") == num_cards
    num_prefixes = sum(
        len({record.rollout.prefix.source_id for record in group.continuations if record.rollout.prefix})
        for group in groups
    )
    assert page.count("div", "prefix") == num_prefixes > 0
    for group in groups:
        assert group.siblings[0].question in page.text


def test_hostile_records_stay_text(tmp_path: Path) -> None:
    run = tmp_path / "<b>run"
    write_run(run, num_steps=2, num_questions=2, eval_steps=(2,), question=HOSTILE)
    path = rollout_files(run, "train")[1]
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["answer"] = HOSTILE
        record["segment_texts"] = [HOSTILE for _ in record["segment_texts"]]
        record["rollout"]["final_text"] = f"<answer>{HOSTILE}</answer>"
        for result in record["rollout"]["tool_results"]:
            result["failure"] = {"kind": "timeout", "message": HOSTILE}
            result["content"] = []
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = (run / "config.toml").read_text().replace("models/tiny", "</style><script>alert(2)</script>")
    (run / "config.toml").write_text(config)
    out = tmp_path / "report.html"
    write_report([run], out)
    page = Page(out.read_text())
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert HOSTILE in page.text and "<b>run" in page.text


def test_pictures_come_from_the_run_only(runs: list[Path], tmp_path: Path) -> None:
    from axpo.reports.pictures import PictureBook

    book = PictureBook()
    run = runs[0]
    secret = tmp_path / "secret.png"
    secret.write_bytes(next((run / "images").glob("*.png")).read_bytes())
    for name in (f"../../{tmp_path.name}/secret", "A" * 64, "0" * 63 + "/", "*" * 64):
        assert not book.add(run, name)
    sha256 = "0" * 64
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{sha256}.png").write_text("no picture")
    assert not book.add(tmp_path, sha256)
    assert book.entries == {}
    assert book.add(run, next((run / "images").glob("*.png")).stem)


def test_parts_that_a_run_does_not_have_are_left_out(tmp_path: Path) -> None:
    def report(name: str, config: str, *records: dict[str, object]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.toml").write_text(config)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        write_report([folder], tmp_path / f"{name}.html")
        return Page((tmp_path / f"{name}.html").read_text()).text

    empty = report("empty", "[run]\nseed = 3\n")
    assert "Nothing was evaluated yet" in empty and "Training curves" not in empty
    sft = report("sft", "", *({"kind": "train", "step": s, "train/loss": 2 / s} for s in (1, 2, 3)))
    assert "SFT: loss 2 at the first step, 0.667 at the last" in sft and "The gap between" not in sft
    plain_eval = report(
        "plain", "", {"kind": "eval", "step": 5, "eval/pass@1": 0.4375, "eval/pass@1_low": 0.4, "eval/pass@1_high": 0.5}
    )
    assert "43.8 %" in plain_eval and "40.0 – 50.0" in plain_eval


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(DataError, match="No run directory"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "config.toml").write_text("= broken")
    with pytest.raises(DataError, match=r"config\.toml: not readable TOML"):
        write_report([tmp_path], tmp_path / "report.html")


def test_reading_runs_loads_no_torch() -> None:
    code = "import sys, axpo.reports.html, axpo.reports.results; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
