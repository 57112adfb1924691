"""Make a real dump of verifiers with a tool and a scripted model on this machine. CPU, seconds.

    pip install "verifiers<0.4"
    python recipes/dumps/verifiers_mini.py runs/verifiers_mini
    axpo diagnose runs/verifiers_mini/results.jsonl

verifiers runs its own ToolEnv, calls the tool, scores and writes `results.jsonl`. The model is `chance_model.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import verifiers as vf
from chance_model import PLAYERS, serve
from datasets import Dataset


def look_up(card: str) -> str:
    """Who plays a card.

    Args:
        card: The colour of the card.
    """
    return f"The {PLAYERS[card]} plays it."


async def right(completion: Any, answer: str) -> float:
    """1 when the last message names the player."""
    return float(completion[-1].content == answer)


def main(output: Path) -> None:
    """Six rollouts of each question."""
    os.environ["STUB_KEY"] = "none"
    client = vf.ClientConfig(api_key_var="STUB_KEY", api_base_url=serve())
    rows = [{"question": f"Who plays the {card} card?", "answer": player} for card, player in PLAYERS.items()]
    env = vf.ToolEnv(tools=[look_up], dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[right]), max_turns=3)
    asyncio.run(
        env.evaluate(client, "stub", rollouts_per_example=6, max_concurrent=1, results_path=output, save_results=True)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
