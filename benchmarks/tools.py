"""The tools' numbers in one table: executor, Python sandbox, local search.

    python benchmarks/tools.py [--calls 2000] [--repeats 5] [--record FILE]

Measures the executor (its own time per call; 1,000 concurrent calls of a tool that sleeps 1 s, the limit open), runs
`benchmarks/sandbox.py` and `benchmarks/search.py`, and prints what was measured beside each target, then one JSON
object. About three minutes. The ratio to a Jupyter kernel needs `pip install 'axpo[bench]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.tools.fakes import EchoTool
from axpo.types import Content, ToolCall
from recording import describe_machine

HERE = Path(__file__).parent


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
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    executor = {
        "overhead_ms": statistics.median(asyncio.run(overhead_ms(args.calls)) for _ in range(args.repeats)),
        "sleepers_s": statistics.median(asyncio.run(sleepers_seconds(1000)) for _ in range(args.repeats)),
    }
    sandbox, search = run("sandbox.py"), run("search.py")
    print_table(executor, sandbox, search)
    parts = {"executor": executor, "sandbox": sandbox, "search": search}
    text = json.dumps({"benchmark": "tools", **parts, "setting": describe_machine()})
    print(text)
    if args.record is not None:
        args.record.write_text(text + "\n", encoding="utf-8")


def run(script: str) -> dict[str, Any]:
    """The JSON object that another benchmark prints last."""
    done = subprocess.run([sys.executable, str(HERE / script)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def print_table(executor: dict[str, Any], sandbox: dict[str, Any], search: dict[str, Any]) -> None:
    """What was measured, and what was asked for."""
    rows = (
        ("executor, own time of a call, ms", executor["overhead_ms"], "below", 2),
        ("1,000 calls that sleep 1 s, s", executor["sleepers_s"], "below", 2),
        ("fresh interpreter with the scientific stack, s", sandbox["start"]["seconds"], "below", 0.05),
        ("times faster than a fresh Jupyter kernel", sandbox["start"]["ratio"], "above", 20),
        ("256 live interpreters, GB", sandbox["memory"]["pss_gb"], "below", 6),
        ("short Python calls a second", sandbox["rate"]["calls_per_s"], "above", 200),
        ("processes left after 10,000 calls", sandbox["leaks"]["processes"], "below", 1),
        ("local search over 100,000 documents, p50, ms", search["ours"]["search_ms"]["p50"], "below", 10),
        ("index build, documents a second", search["ours"]["build_per_s"], "above", 5000),
    )
    for name, value, sign, target in rows:
        measured = "not measured" if value is None else f"{value:,.3f}"
        met = value is not None and (value < target if sign == "below" else value > target)
        print(f"{name:<48} {measured:>14}   {sign} {target:,}{'' if met else '   NOT MET'}")


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


if __name__ == "__main__":
    main()
