"""Official MathVision verdicts on published outputs: how many come out the same from the raw responses.

    python benchmarks/mathvision_verdicts.py OUTPUTS GOLD.jsonl [--disagreements FILE.jsonl]

OUTPUTS is a folder with the published `*.jsonl` (`id`, `response`, `model_answer`, `correct`) and `*_result.json`, GOLD
the published questions (`tests/fixtures/mathvision_golds.jsonl` will do). Prints one JSON object a file: `agreement` of
the official-compatible scorer on `response`, target at least 0.995; `extraction_agreement`: answers read the same as
`model_answer`; `tables_equal`: the subject and level tables from the published verdicts; `strict_agreement`: the
default scorer against the official verdict; seconds of either. `--disagreements` writes the items on which the first
disagrees.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axpo.benchmarks.scorers import mathvision, mathvision_official
from axpo.types import Content, Message, Problem

NUM_TAIL_CHARS = 160


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--disagreements", type=Path)
    args = parser.parse_args()
    problems = {str(row["id"]): to_problem(row) for row in read_lines(args.gold)}
    disagreements: list[dict[str, Any]] = []
    for path in sorted(args.outputs.rglob("*.jsonl")):
        rows = read_lines(path)
        found = [describe(path.stem, row, problems[row["id"]]) for row in rows if row["id"] in problems]
        disagreements += [item for item in found if item["official"] != item["ours"]]
        print(json.dumps(compare(path, rows, problems, found)), flush=True)
    if args.disagreements is not None:
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in disagreements]
        args.disagreements.write_text("".join(lines), encoding="utf-8")


def compare(
    path: Path, rows: list[dict[str, Any]], problems: Mapping[str, Problem], found: list[dict[str, Any]]
) -> dict[str, Any]:
    """The numbers of one published file."""
    rows = [row for row in rows if row["id"] in problems]
    start = time.perf_counter()
    for row in rows:
        mathvision_official.score_official(problems[row["id"]], row["response"])
    official_s = time.perf_counter() - start
    start = time.perf_counter()
    strict = [mathvision.score(problems[row["id"]], row["response"]).is_correct for row in rows]
    strict_s = time.perf_counter() - start
    return {
        "file": path.stem,
        "items": len(rows),
        "agreement": share([item["official"] == item["ours"] for item in found]),
        "extraction_agreement": share([item["answer"] == item["model_answer"] for item in found]),
        "tables_equal": tables_equal(path, rows, problems),
        "strict_agreement": share([is_right == row["correct"] for is_right, row in zip(strict, rows, strict=True)]),
        "strict_right": sum(strict),
        "official_right": sum(bool(row["correct"]) for row in rows),
        "official_s": round(official_s, 2),
        "strict_s": round(strict_s, 2),
    }


def describe(name: str, row: dict[str, Any], problem: Problem) -> dict[str, Any]:
    """One item: what was answered, what both say."""
    answer, extraction = mathvision_official.extract_official(row["response"])
    return {
        "file": name,
        "id": row["id"],
        "response_tail": row["response"][-NUM_TAIL_CHARS:],
        "gold": problem.answer,
        "gold_option": mathvision_official.gold_option(problem),
        "model_answer": row["model_answer"],
        "answer": answer,
        "extraction": extraction,
        "official": bool(row["correct"]),
        "ours": mathvision_official.judge_official(problem, answer).is_correct,
        "who_is_right": "",
    }


def tables_equal(path: Path, rows: list[dict[str, Any]], problems: Mapping[str, Problem]) -> bool | None:
    """Whether our table of the published verdicts is the published table; None without one."""
    published = path.with_name(f"{path.stem}_result.json")
    if not published.exists():
        return None
    ours = mathvision_official.official_tables(problems, {row["id"]: bool(row["correct"]) for row in rows})
    return ours == json.loads(published.read_text(encoding="utf-8"))


def to_problem(row: dict[str, Any]) -> Problem:
    """A question as the scorers want it."""
    text = Content(text=str(row.get("question", "")))
    metadata = {key: row[key] for key in ("options", "level", "subject")}
    message = Message(role="user", content=(text,))
    return Problem(id=str(row["id"]), messages=(message,), answer=str(row["answer"]), metadata=metadata)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def share(hits: list[bool]) -> float:
    """Part of the items that are true."""
    return round(sum(hits) / max(len(hits), 1), 5)


if __name__ == "__main__":
    main()
