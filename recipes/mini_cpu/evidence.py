"""Runs GRPO, AXPO and GRPO at matched rollouts over several seeds, and keeps the records that `docs/results.md` needs.

    python recipes/mini_cpu/evidence.py --out runs/evidence --records recipes/mini_cpu/records

A finished run is not run again; an interrupted one is resumed. Records are the configuration, the environment, the
metrics of every step and the outcome of every held-out question (without pictures and tokens).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from family import write_section

from axpo.diagnostics.recorder import read_metrics
from axpo.reports.results import write_results
from axpo.reports.runs import keep_records

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
START, END = "<!-- results:start -->", "<!-- results:end -->"
METHODS = {
    "grpo": ("grpo.toml", {}),
    "axpo": ("axpo.toml", {}),
    "grpo_n10": ("grpo.toml", {"rollout.group_size": 10}),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--records", type=Path, default=HERE / "records")
    parser.add_argument("--results", type=Path, default=HERE.parents[1] / "docs" / "results.md")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pages-only", action="store_true", help="run nothing, write the pages from the kept records")
    args = parser.parse_args()
    jobs = [("sft", "eval", "axpo.toml", {})]
    jobs += [
        (f"{method}-{seed}", "train", recipe, {**options, "run.seed": seed})
        for seed in range(args.seeds)
        for method, (recipe, options) in METHODS.items()
    ]
    if not args.pages_only:
        with ThreadPoolExecutor(args.processes) as pool:
            list(pool.map(lambda job: run(args.out, *job), jobs))
        for name, *_ in jobs:
            keep_records(args.out / name, args.records / name)
    notes = (HERE / "results_notes.md").read_text(encoding="utf-8")
    write_results([args.records / name for name, *_ in jobs], args.results, notes=notes)
    write_section()
    copy_table(args.results, README)


def run(out: Path, name: str, command: str, recipe: str, options: dict[str, object]) -> None:
    """One run to its end, one thread."""
    folder = out / name
    if is_finished(folder, command):
        return
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    words += ["--out", str(folder)] if command == "eval" else ["--run.output_dir", str(folder)]
    words += ["--resume"] if command == "train" and (folder / "checkpoints").exists() else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.log").open("ab") as log:
        line = [sys.executable, "-m", "axpo.cli.main", command, str(HERE / recipe), *words]
        subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)
    print(f"done: {name}", flush=True)


def copy_table(results: Path, readme: Path) -> None:
    """Put the final table of the results page between the README's markers."""
    section = results.read_text(encoding="utf-8").split("## Held-out questions after training\n", 1)[1]
    table = section.split("\n## ", 1)[0].strip()
    before, rest = readme.read_text(encoding="utf-8").split(START, 1)
    after = rest.split(END, 1)[1]
    readme.write_text(f"{before}{START}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def is_finished(folder: Path, command: str) -> bool:
    """True when the last evaluation was recorded."""
    records = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
    return any(record["kind"] == "eval" and (command == "eval" or record["step"] > 0) for record in records)


if __name__ == "__main__":
    main()
