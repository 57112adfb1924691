"""What the tool executor costs: its own time per call, and how many calls it keeps running.

    python benchmarks/executor.py [--calls 2000] [--repeats 5] [--out FILE]

Prints one JSON object. `overhead_ms`: a call through the executor minus the tool's own, median of the repeats (target
below 2 ms). `sleepers_s`: 1,000 concurrent calls of a tool that sleeps 1 s, the limit open (target below 2 s).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import axpo
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.tools.fakes import EchoTool
from axpo.types import Content, ToolCall


class Sleeper(EchoTool):
    """Sleeps a second."""

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """Its text, a second later."""
        await asyncio.sleep(1.0)
        return await super().run(call, context)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    overheads_ms = [asyncio.run(overhead_ms(args.calls)) for _ in range(args.repeats)]
    sleepers_s = [asyncio.run(sleepers_seconds(1000)) for _ in range(args.repeats)]
    record = {
        "benchmark": "executor",
        "overhead_ms": round(statistics.median(overheads_ms), 4),
        "sleepers_s": round(statistics.median(sleepers_s), 3),
        "repeats": args.repeats,
        "setting": describe(),
    }
    print(json.dumps(record))
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


async def overhead_ms(num_calls: int) -> float:
    """Milliseconds that the executor adds to a call."""
    tool = EchoTool()
    executor = ToolExecutor(tools={"echo": tool})
    call = ToolCall(id="c", name="echo", arguments={"text": "x" * 200})
    context = ToolContext(rollout_id="r", images=[], store=ContentImageStore())

    async def seconds(run: Any) -> float:
        started_s = time.perf_counter()
        for _ in range(num_calls):
            await run(call, context)
        return time.perf_counter() - started_s

    await seconds(executor.run)  # the validator is compiled once
    bare_s, whole_s = await seconds(tool.run), await seconds(executor.run)
    return 1000 * (whole_s - bare_s) / num_calls


async def sleepers_seconds(num_calls: int) -> float:
    """Wall clock of concurrent calls of one second each."""
    executor = ToolExecutor(tools={"echo": Sleeper()}, default_limits=ToolLimits(max_concurrent=num_calls))
    call = ToolCall(id="c", name="echo", arguments={"text": "x"})
    store = ContentImageStore()
    started_s = time.perf_counter()
    await asyncio.gather(
        *(executor.run(call, ToolContext(rollout_id=str(i), images=[], store=store)) for i in range(num_calls))
    )
    return time.perf_counter() - started_s


def describe() -> dict[str, Any]:
    """Machine, versions and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {"axpo": axpo.__version__, "commit": commit, "python": platform.python_version(), "cpu": platform.machine()}


if __name__ == "__main__":
    main()
