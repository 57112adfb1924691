"""A workshop in a folder: pictures, questions, demonstrations, a configuration, and a model that has learnt to answer.

The model is a tiny random one after a few steps of supervised fine-tuning, so that its rollouts sometimes call the tool
and are sometimes right: every part of a step has something to do.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from axpo.cli.main import main

CONFIG = """
[run]
num_threads = 1
device = "cpu"
[model]
path = "model"
[data]
train = "questions.jsonl"
eval = "questions.jsonl"
max_eval_rows = 2
tools = ["workshop_parts:look"]
[rollout]
questions_per_step = 2
group_size = 4
max_response_tokens = 64
[algorithm]
resample_budget_frac = 0.5
num_continuations = 2
[train]
steps = 4
learning_rate = 1e-3
eval_every = 2
save_every = 1
[eval]
num_samples = 2
max_response_tokens = 64
"""

PARTS = '''
"""Tool and reward of the tests."""

import time
from pathlib import Path


async def look(at: str) -> str:
    """Look.

    Args:
        at: Where.
    """
    return "B"


async def watched_look(at: str) -> str:
    """Look.

    Args:
        at: Where.
    """
    Path("looking").touch()
    time.sleep(0.05)  # in the event loop, so that which rollouts share a batch stays the same
    return "B"


watched_look.__name__ = "look"

def is_vowel(final_text: str, problem: object) -> bool:
    return "A" in final_text


NOT_CALLABLE = 3
'''


def build_workshop(folder: Path) -> Path:
    """Fill `folder`; its `config.toml` trains with reinforcement learning."""
    from PIL import Image

    from axpo.models.scratch import TEMPLATE_PATH, save_scratch_checkpoint

    # merges learnt on the template make the prompt, hence the tests, five times shorter
    save_scratch_checkpoint(folder / "random", corpus=[TEMPLATE_PATH.read_text(), PARTS] * 2, num_merges=500)
    Image.effect_noise((96, 64), 90).save(folder / "noise.png")
    questions = [
        {"id": f"q{index}", "question": f"{index}?", "answer": "B", "images": [] if index % 2 else ["noise.png"]}
        for index in range(4)
    ]
    write_rows(folder / "questions.jsonl", questions)
    write_rows(folder / "demonstrations.jsonl", demonstrations(random.Random(0), 32))
    (folder / "workshop_parts.py").write_text(PARTS)
    (folder / "config.toml").write_text(CONFIG)
    words = words_of(
        model__path="random",
        data__train="demonstrations.jsonl",
        data__eval="",
        train__steps=60,
        train__rows_per_step=16,
        train__learning_rate=5e-3,
        train__save_every=60,
        run__output_dir="sft",
    )
    with pytest.MonkeyPatch.context() as monkey:
        monkey.chdir(folder)
        assert main(["sft", "config.toml", *words]) == 0
    (folder / "sft" / "checkpoints" / "step-000060" / "model").rename(folder / "model")
    return folder


def demonstrations(rng: random.Random, number: int) -> list[dict[str, Any]]:
    """Half of them call the tool; answers are A or B by chance, so nothing is ever certain."""
    rows: list[dict[str, Any]] = []
    for index in range(number):
        question = {"role": "user", "content": f"{index % 4}?"}
        answer = {"role": "assistant", "reasoning_content": "so", "content": f"<answer>{rng.choice('AB')}</answer>"}
        call = {"function": {"name": "look", "arguments": {"at": rng.choice("LR")}}}
        looking = [
            {"role": "assistant", "reasoning_content": "hm", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "B"},
        ]
        rows.append({"id": f"d{index}", "messages": [question, *(looking if index // 4 % 2 else []), answer]})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Lines of a file as a stranger would read them: each one complete."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers_of(run: Path) -> list[dict[str, Any]]:
    """Metrics of a run without what a clock or the machine decides."""
    records = read_jsonl(run / "metrics.jsonl")
    return [
        {key: value for key, value in record.items() if "seconds" not in key and not key.startswith("memory/")}
        for record in records
    ]


def rollouts_of(run: Path) -> dict[str, list[dict[str, Any]]]:
    """All recorded rollouts by file, without wall-clock times."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in ("wall_time_s", "queue_time_s")}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return {path.name: strip(read_jsonl(path)) for path in sorted((run / "rollouts").iterdir())}


def words_of(**options: Any) -> list[str]:
    """`train__steps=3` -> `--train.steps 3`."""
    return [word for name, value in options.items() for word in (f"--{name.replace('__', '.')}", str(value))]
