"""A workshop in a folder: pictures, questions, demonstrations, a configuration, and a model that has learnt to answer.

The model is the tiny random one after a few steps of supervised fine-tuning, so that its rollouts call the tool about
half of the time and are right about half of the time: every part of a step has something to do.
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


def look(at: str) -> str:
    """Look.

    Args:
        at: Where.
    """
    return "B"


def slow_look(at: str) -> str:
    """Look.

    Args:
        at: Where.
    """
    Path("looking").touch()
    time.sleep(0.05)
    return "B"


slow_look.__name__ = "look"


def is_vowel(final_text: str, problem: object) -> bool:
    return "A" in final_text
'''


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
        rows.append({"id": f"d{index}", "messages": [question, *(looking if index % 2 else []), answer]})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def workshop(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; its `config.toml` trains with reinforcement learning."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("workshop")
    Image.effect_noise((96, 64), 90).save(folder / "noise.png")
    questions = [
        {"id": f"q{index}", "question": f"{index}?", "answer": "B", "images": ["noise.png"] if index % 2 else []}
        for index in range(4)
    ]
    write_rows(folder / "questions.jsonl", questions)
    write_rows(folder / "demonstrations.jsonl", demonstrations(random.Random(0), 32))
    (folder / "workshop_parts.py").write_text(PARTS)
    (folder / "config.toml").write_text(CONFIG)
    monkey = pytest.MonkeyPatch()
    monkey.chdir(folder)
    overrides = {
        "model.path": str(tiny_checkpoint),
        "data.train": "demonstrations.jsonl",
        "data.eval": "",
        "train.steps": "60",
        "train.rows_per_step": "16",
        "train.learning_rate": "5e-3",
        "train.save_every": "60",
        "run.output_dir": "sft",
    }
    words = [word for name, value in overrides.items() for word in (f"--{name}", value)]
    assert main(["sft", "config.toml", *words]) == 0
    (folder / "sft" / "checkpoints" / "step-000060" / "model").rename(folder / "model")
    monkey.undo()
    return folder
