"""GRPO and AXPO on the whole mini family, evaluated as three benchmarks: the paper's table in miniature.

    python recipes/mini_cpu/family.py --out runs/family

Trains from the supervised checkpoint on all three members of the family (`mixed.toml`), evaluates every model on
`mini_distance`, `mini_count` and `mini_lookup`, keeps the records and writes the table into `docs/results.md`. What is
finished is not run again. The committed records were made by these commands, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from axpo.cli.benchmark_results import read_scores
from axpo.diagnostics.recorder import read_metrics
from axpo.reports.paper_table import build_paper_table, paper_markdown
from axpo.reports.runs import keep_records

HERE = Path(__file__).parent
RECIPE = HERE / "mixed.toml"
RECORDS = HERE / "records_family"
RESULTS = HERE.parents[1] / "docs" / "results.md"
START, END = "<!-- family:start -->", "<!-- family:end -->"
METHODS = {"grpo": ("SFT + GRPO", "0"), "axpo": ("SFT + AXPO", "0.25")}
"""Label and resampling budget."""
NUM_QUESTIONS = 128
"""Of each benchmark."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    jobs = [(method, seed) for seed in range(args.seeds) for method in METHODS]
    args.out.mkdir(parents=True, exist_ok=True)
    evaluate(args.out, "sft", "mini", "SFT")
    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(lambda job: train_and_evaluate(args.out, *job), jobs))
    for name in ("sft", *(f"{method}-{seed}" for method, seed in jobs)):
        keep(args.out, name)
    write_section()


def train_and_evaluate(out: Path, method: str, seed: int) -> None:
    """One model from the supervised checkpoint, and its evaluation."""
    label, budget = METHODS[method]
    folder = out / f"{method}-{seed}"
    is_finished = (folder / "metrics.jsonl").exists() and read_metrics(folder)[-1]["kind"] == "eval"
    if not is_finished:
        options = {"run.output_dir": folder, "run.seed": seed, "algorithm.resample_budget_frac": budget}
        options |= {"train.save_every": 40, "data.max_eval_rows": 24}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        run(["train", str(RECIPE), *words, *(["--resume"] if (folder / "checkpoints").exists() else [])], folder)
    evaluate(out, f"{method}-{seed}", str(folder), label)


def evaluate(out: Path, name: str, model: str, label: str) -> None:
    """`axpo eval` on the three benchmarks; finished parts are not run again."""
    folder = out / f"{name}-eval"
    words = ["--benchmarks", "mini_distance,mini_count,mini_lookup", "--limit", str(NUM_QUESTIONS)]
    run(["eval", str(RECIPE), *words, "--model", model, "--label", label, "--out", str(folder)], folder)


def run(words: list[str], folder: Path) -> None:
    """One command with one thread, its output beside its folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with folder.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "-m", "axpo.cli.main", *words]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)
    print(f"done: {words[0]} {folder.name}", flush=True)


def keep(out: Path, name: str) -> None:
    """Numbers, options and environment, without dialogues, pictures and folders of the machine."""
    if name != "sft":
        keep_records(out / name, RECORDS / name)
    source, target = out / f"{name}-eval", RECORDS / f"{name}-eval"
    target.mkdir(parents=True, exist_ok=True)
    (target / "summary.json").write_bytes((source / "summary.json").read_bytes())
    info = json.loads((source / "run.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in info.items() if key not in ("argv", "resumed")}
    (target / "run.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def write_section() -> None:
    """The table between the markers of the results page, at its end where they are missing."""
    folders = sorted(RECORDS.glob("*-eval"), key=lambda path: (not path.name.startswith("sft"), "axpo" in path.name))
    scores = [read_scores(folder) for folder in folders]
    commits = sorted({json.loads((folder / "run.json").read_text())["commit"][:10] for folder in folders})
    table = paper_markdown(build_paper_table([(of.manifest.label, of.summaries) for of in scores]))
    notes = (HERE / "family_notes.md").read_text(encoding="utf-8").strip()
    facts = f"Evaluated at commit {', '.join(commits)} on a CPU; records: `recipes/mini_cpu/records_family`."
    section = f"## The mini family in the paper's layout\n\n{notes}\n\n{facts}\n\n{table.strip()}"
    page = RESULTS.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    RESULTS.write_text(f"{before.rstrip()}\n\n{START}\n\n{section}\n\n{END}\n{after.lstrip()}", encoding="utf-8")


if __name__ == "__main__":
    main()
