"""The page of results: each number is the one that follows from the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.diagnostics.recorder import read_metrics
from axpo.reports.results import main, write_results
from axpo.reports.runs import keep_records
from synthetic_run import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    for method in ("grpo", "axpo"):
        for seed in (0, 1):
            write_run(
                root / f"{method}-{seed}", method=method, seed=seed, num_steps=10, num_questions=4, eval_steps=(10,)
            )
    return sorted(root.iterdir())


def cells(text: str, heading: str, label: str) -> list[str]:
    """The row of the table under a heading that starts with `label`."""
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    return next(row for row in rows if row[0] == label)


def test_tables_hold_the_means_over_the_runs(runs: list[Path], tmp_path: Path) -> None:
    write_results(runs, tmp_path / "results.md", notes="Built to show a gap.")
    text = (tmp_path / "results.md").read_text()
    records = {run.name: read_metrics(run) for run in runs}

    def mean(method: str, key: str) -> float:
        return sum(records[f"{method}-{seed}"][-1][key] for seed in (0, 1)) / 2

    final = cells(text, "Held-out questions after training", "AXPO")
    assert final[1:3] == ["2", "10"]
    assert final[3].startswith(f"{100 * mean('axpo', 'eval/pass@1'):.1f} % [")
    assert final[5].startswith(f"{100 * mean('axpo', 'eval/tool_use_rate'):.1f} % [")
    gap = mean("axpo", "eval/pass@1") - mean("grpo", "eval/pass@1")
    assert cells(text, "Differences", "AXPO − GRPO")[1].startswith(f"{100 * gap:+.1f} [".replace("-", "−"))
    seed_row = cells(text, "Every run", "GRPO")
    assert seed_row[1:3] == ["0", f"{100 * records['grpo-0'][-1]['eval/pass@1']:.1f} %"]
    train = [record for name in ("axpo-0", "axpo-1") for record in records[name] if record["kind"] == "train"]
    early = [record["rollout/tool_use_rate"] for record in train if record["step"] <= 2]
    curve = next(line for line in text.splitlines() if line.startswith("| tool use | AXPO"))
    assert curve.split("|")[3].strip() == f"{100 * sum(early) / len(early):.1f} %"
    rollouts = sum(record["rollout/count"] + record["resample/used"] for record in train) / len(train)
    assert cells(text, "Cost", "AXPO")[1] == f"{rollouts:.1f}"
    assert "Built to show a gap." in text and "- Seeds: 0, 1" in text and "- Samples per question: 4" in text


def test_other_group_sizes_are_methods_of_their_own(runs: list[Path], tmp_path: Path) -> None:
    write_run(tmp_path / "grpo-n10", method="grpo", seed=0, num_steps=2, num_questions=4, eval_steps=(2,))
    config = tmp_path / "grpo-n10/config.toml"
    config.write_text(config.read_text().replace("group_size = 8", "group_size = 10"))
    write_results([*runs, tmp_path / "grpo-n10"], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert cells(text, "Differences", "AXPO, N = 8 − GRPO, N = 10")[0]
    assert cells(text, "Held-out questions after training", "GRPO, N = 10")[1] == "1"


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "out.md"), str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_kept_records_give_the_same_page_as_the_runs(runs: list[Path], tmp_path: Path) -> None:
    for run in runs:
        keep_records(run, tmp_path / "kept" / run.name)
    assert not list((tmp_path / "kept").rglob("rollouts"))
    write_results(runs, tmp_path / "all.md")
    write_results(sorted((tmp_path / "kept").iterdir()), tmp_path / "kept.md")
    assert (tmp_path / "kept.md").read_text() == (tmp_path / "all.md").read_text()
