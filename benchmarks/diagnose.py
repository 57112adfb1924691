"""`axpo diagnose` on a million rollouts of about a kilobyte, and on one tenth as many shuffled across the file.

    python benchmarks/diagnose.py [--rollouts 1000000] [--repeats 5] [--record]

Prints one JSON object. Targets on two cores: `seconds` below 60 and `peak_mib` below 500 for a million. Each
measurement is a process of its own, start of the interpreter included; the peak is read from `/proc`. `parse_seconds`
is the same file read line by line by Python's `json` alone: what no reader of it gets below. The dump is verl's: 1,000
questions of 8 rollouts a step, texts with thinking, a tool call in three of ten, its result, and an answer. `shuffled`
has the rollouts of each question anywhere in the file. `--record` also writes the object into `benchmarks/records/`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recording import describe_machine, write_record

SIBLINGS = 8
QUESTIONS_PER_STEP = 1_000
CALL_SHARE = 0.3

_DIAGNOSE = """
import json, re, sys
from pathlib import Path
from axpo.diagnostics.diagnosis import diagnose
total = diagnose([Path(sys.argv[1])]).parts[0].total
print(json.dumps({
    "peak_mib": int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024,
    "rollouts": total.counts["rollouts"],
    "groups": total.counts["groups"],
    "all_wrong_tool": total.rates["all_wrong_tool"].estimate,
}))
"""
_PARSE = """
import json, sys
with open(sys.argv[1], "rb") as file:
    for line in file:
        json.loads(line)
print("{}")
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ordered, shuffled = Path(name) / "ordered.jsonl", Path(name) / "shuffled.jsonl"
        write_dump(ordered, args.rollouts)
        shuffle_lines(ordered, shuffled, args.rollouts // 10)
        result = {
            "benchmark": "diagnose",
            "ordered": measure(ordered, args.repeats),
            "shuffled": measure(shuffled, args.repeats),
            "setting": {"repeats": args.repeats, **describe_machine()},
        }
    print(json.dumps(result))
    if args.record:
        write_record(result)


def write_dump(path: Path, num_rollouts: int) -> None:
    """Steps of questions of siblings, all of one difficulty per question."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(5_000)]

    def text(num_words: int) -> str:
        return " ".join(rng.choices(words, k=num_words))

    per_step = QUESTIONS_PER_STEP * SIBLINGS
    with path.open("w", encoding="utf-8") as file:
        for index in range(num_rollouts):
            if index % SIBLINGS == 0:
                question, difficulty = f"user\n{text(25)}\nassistant\n<think>\n", rng.random()
            output = f"{text(85)}\n</think>\n"
            if rng.random() < CALL_SHARE:
                call = {"name": "python", "arguments": {"code": text(8)}}
                output += f"<tool_call>\n{json.dumps(call)}\n</tool_call>\nuser\n<tool_response>\n{text(12)}\n"
                output += f"</tool_response>\nassistant\n<think>\n{text(12)}\n</think>\n"
            output += f"<answer>{text(3)}</answer>"
            score = float(rng.random() > difficulty)
            row = {"input": question, "output": output, "gts": "A", "score": score, "step": index // per_step}
            file.write(json.dumps(row) + "\n")


def shuffle_lines(source: Path, path: Path, num_lines: int) -> None:
    """The first lines of `source` in another order."""
    with source.open(encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(num_lines), strict=False)]
    random.Random(1).shuffle(lines)
    path.write_text("".join(lines), encoding="utf-8")


def measure(path: Path, repeats: int) -> dict[str, Any]:
    """Median seconds, largest peak, over processes of their own."""
    runs = [run(_DIAGNOSE, path) for _ in range(repeats)]
    parse_s = statistics.median(run(_PARSE, path)["seconds"] for _ in range(repeats))
    seconds = statistics.median(result["seconds"] for result in runs)
    num_bytes = path.stat().st_size
    return {
        "rollouts": runs[0]["rollouts"],
        "groups": runs[0]["groups"],
        "megabytes": round(num_bytes / 1e6, 1),
        "seconds": round(seconds, 2),
        "seconds_range": [round(pick(result["seconds"] for result in runs), 2) for pick in (min, max)],
        "megabytes_per_s": round(num_bytes / 1e6 / seconds, 1),
        "peak_mib": round(max(result["peak_mib"] for result in runs), 1),
        "parse_seconds": round(parse_s, 2),
        "over_parse": round(seconds / parse_s, 2),
    }


def run(code: str, path: Path) -> dict[str, Any]:
    """One process: what it printed, and its wall time."""
    start_s = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return {"seconds": time.perf_counter() - start_s, **json.loads(done.stdout)}


if __name__ == "__main__":
    main()
