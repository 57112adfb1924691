"""Make a real `traces.jsonl` of verifiers 0.4 with a tool and a scripted model on this machine. CPU, seconds.

    pip install "verifiers>=0.4,<0.5"
    python recipes/dumps/verifiers_cards.py runs
    axpo diagnose runs/cards/traces.jsonl

This file is the environment that `vf-eval` loads (tasks, reward, and an agent that runs the tool), and starts it. The
model is `chance_model.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import verifiers.v1 as vf
from chance_model import PLAYERS, serve
from verifiers.v1.runtimes import ProgramResult

__all__ = ["CardsHarness", "CardsTaskset"]

PARAMETERS = {"type": "object", "properties": {"card": {"type": "string"}}, "required": ["card"]}
TOOL = {"name": "look_up", "description": "Who plays a card.", "parameters": PARAMETERS}


class CardsData(vf.TaskData):
    """A question's answer; the prompt is in the base class."""

    answer: str


class CardsTask(vf.Task[CardsData]):
    """A question."""

    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        """1 when the last message names the player."""
        return float(trace.last_reply == self.data.answer)


class CardsTaskset(vf.Taskset[CardsTask, vf.TasksetConfig]):
    """Three questions."""

    def load(self) -> list[CardsTask]:
        """One for each card."""
        rows = [CardsData(prompt=f"Who plays the {card} card?", answer=player) for card, player in PLAYERS.items()]
        return [CardsTask(row, self.config.task) for row in rows]


class CardsHarness(vf.Harness[vf.HarnessConfig]):
    """An agent that asks the model and runs the tool, in this process."""

    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: CardsData
    ) -> ProgramResult:
        """One dialogue of at most four turns."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": data.prompt}]
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {secret}"}) as client:
            for _ in range(4):
                tools = [{"type": "function", "function": TOOL}]
                body = {"model": ctx.model, "messages": messages, "tools": tools}
                reply = await client.post(f"{endpoint}/chat/completions", json=body)
                messages.append(reply.raise_for_status().json()["choices"][0]["message"])
                calls = messages[-1].get("tool_calls") or []
                if not calls:
                    break
                messages += [{"role": "tool", "tool_call_id": call["id"], "content": run(call)} for call in calls]
        return ProgramResult(exit_code=0, stdout="", stderr="")


def run(call: dict[str, Any]) -> str:
    """What the tool says, or the error."""
    try:
        if call["function"]["name"] != "look_up":
            raise LookupError(f"Tool {call['function']['name']} not found")
        return f"The {PLAYERS[json.loads(call['function']['arguments'])['card']]} plays it."
    except LookupError as error:
        return f"Error: {type(error).__name__} {error}"


def main(output: str) -> None:
    """Four rollouts of each question."""
    name = Path(__file__).stem
    options = {
        "--client.base-url": serve(),
        "--client.api-key-var": "STUB_KEY",
        "--env.agent.harness.id": name,
        "--env.agent.runtime.type": "subprocess",
        "--run.name": "cards",
        "--output-dir": output,
    }
    flags = [part for pair in options.items() for part in pair]
    command = ["vf-eval", name, "-m", "stub", "-r", "4", "-c", "1", "--no-push", "--no-rich", *flags]
    env = {**os.environ, "STUB_KEY": "none", "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run(command, env=env, check=True)


if __name__ == "__main__":
    main(sys.argv[1])
