"""The python tool: a fresh interpreter against a fresh Jupyter kernel, memory, calls per second, leaks.

    python benchmarks/sandbox.py [--repeats 50] [--live 256] [--seconds 10] [--calls 10000] [--record FILE]

Prints one JSON object. `start` has the median seconds from nothing to the first answer of a cell that uses the
scientific stack, here and in a Jupyter kernel (`pip install ipykernel jupyter_client`), measured in turn; its targets
are below 0.05 s and a ratio of at least 20. `memory`: so many live interpreters share so many GB (sum of PSS; target
below 6 for 256). `rate`: short calls per second by 64 rollouts at once on two cores (target 200). `leaks`: what so many
calls in a row leave behind (target 0). A busy machine makes all numbers worse, so the load is recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import time
from pathlib import Path
from typing import Any

from axpo.tools.sandbox import Interpreter, Limits, SandboxServer, isolation_level
from recording import describe_machine

STACK = "import numpy as np, scipy.optimize, sympy, pandas as pd, matplotlib.pyplot as plt\nprint(np.ones(3).sum())"
SHORT = "x = sum(i * i for i in range(100)); print(x)"
KERNEL_REPEATS = 5


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--live", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    load_before = os.getloadavg()[0]
    results = {
        "benchmark": "sandbox",
        **asyncio.run(measure(args)),
        "setting": {**describe(args), "load_before": round(load_before, 1)},
    }
    text = json.dumps(results)
    print(text)
    if args.record is not None:
        args.record.write_text(text + "\n")


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One after the other, with one fork server."""
    server = SandboxServer()
    start_s = time.perf_counter()
    (await server.spawn(Limits())).kill()
    warm_up_s = time.perf_counter() - start_s
    try:
        return {
            "start": {**await compare_start(server, args.repeats), "fork_server_s": round(warm_up_s, 2)},
            "memory": await measure_memory(server, args.live),
            "rate": await measure_rate(server, args.seconds),
            "leaks": await measure_leaks(server, args.calls),
        }
    finally:
        server.close()


async def compare_start(server: SandboxServer, repeats: int) -> dict[str, Any]:
    """In turn, so that a busy machine slows both."""
    ours: list[float] = []
    kernels: list[float] = []
    for number in range(repeats):
        start_s = time.perf_counter()
        interpreter = await server.spawn(Limits())
        result = await interpreter.execute(STACK, 20)
        ours.append(time.perf_counter() - start_s)
        assert result.text == "3.0\n", result
        interpreter.kill()
        if number % max(1, repeats // KERNEL_REPEATS) == 0 and (kernel_s := await start_kernel()) is not None:
            kernels.append(kernel_s)
    median_s = statistics.median(ours)
    kernel_s = statistics.median(kernels) if kernels else None
    return {
        "seconds": round(median_s, 4),
        "p95_seconds": round(sorted(ours)[int(0.95 * len(ours))], 4),
        "kernel_seconds": kernel_s and round(kernel_s, 2),
        "ratio": kernel_s and round(kernel_s / median_s, 1),
    }


async def start_kernel() -> float | None:
    """Seconds from nothing to the answer of a Jupyter kernel; None where none is installed."""
    try:
        from jupyter_client.manager import start_new_async_kernel
    except ImportError:
        return None
    start_s = time.perf_counter()
    manager, client = await start_new_async_kernel(kernel_name="python3")
    reply = await client.execute_interactive(STACK, output_hook=lambda _: None)
    seconds = time.perf_counter() - start_s
    assert reply["content"]["status"] == "ok", reply
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return seconds


async def measure_memory(server: SandboxServer, live: int) -> dict[str, Any]:
    """Every interpreter has run a cell; the fork server and its keeper count as well."""
    interpreters: list[Interpreter] = []
    start_s = time.perf_counter()
    for _ in range(live):
        interpreters.append(await server.spawn(Limits()))
        await interpreters[-1].execute(STACK, 20)
    seconds = time.perf_counter() - start_s
    pss_kb = sum(pss for pid in sandbox_pids() if (pss := read_number(f"/proc/{pid}/smaps_rollup", "Pss")) is not None)
    for interpreter in interpreters:
        interpreter.kill()
    return {
        "live": live,
        "pss_gb": round(pss_kb / 2**20, 2),
        "mb_each": round(pss_kb / 1024 / live, 1),
        "seconds": round(seconds, 1),
    }


async def measure_rate(server: SandboxServer, seconds: float) -> dict[str, Any]:
    """64 rollouts, each calling again as soon as it is answered."""
    interpreters = [await server.spawn(Limits()) for _ in range(64)]
    stop_s = time.perf_counter() + seconds
    counts = await asyncio.gather(*(call_until(interpreter, stop_s) for interpreter in interpreters))
    for interpreter in interpreters:
        interpreter.kill()
    return {"rollouts": len(interpreters), "calls_per_s": round(sum(counts) / seconds), "least": min(counts)}


async def call_until(interpreter: Interpreter, stop_s: float) -> int:
    """Calls answered until then."""
    count = 0
    while time.perf_counter() < stop_s:
        await interpreter.execute(SHORT, 20)
        count += 1
    return count


async def measure_leaks(server: SandboxServer, calls: int) -> dict[str, Any]:
    """Rollouts of ten calls; the last one raises."""

    async def one_rollout() -> None:
        interpreter = await server.spawn(Limits())
        for code in [SHORT] * 9 + ["1 / 0"]:
            await interpreter.execute(code, 20)
        interpreter.kill()

    for _ in range(20):
        await one_rollout()
    await asyncio.sleep(1)  # the fork server is still burying the last ones
    before = usage()
    start_s = time.perf_counter()
    for _ in range(calls // 10):
        await one_rollout()
    seconds = time.perf_counter() - start_s
    await asyncio.sleep(1)
    grown = {name: value - before[name] for name, value in usage().items()}
    return {"calls": calls, "seconds": round(seconds, 1), **grown}


def usage() -> dict[str, float]:
    """Of this process and the sandbox's."""
    pids = sandbox_pids()
    resident_kb = [read_number(f"/proc/{pid}/status", "VmRSS") or 0 for pid in ["self", *pids]]
    return {
        "processes": len(pids),
        "open_files": len(os.listdir("/proc/self/fd")),
        "resident_mb": round(sum(resident_kb) / 1024, 1),
    }


def sandbox_pids() -> list[int]:
    """Keeper, fork server and interpreters of this process."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(") ")[-1].split()[1])
            except OSError:  # it ended
                continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def read_number(path: str, name: str) -> int | None:
    """A line `Name:  123 kB` of a file of /proc; None where this user may not read it."""
    try:
        match = re.search(rf"^{name}:\s*(\d+)", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Options, machine and versions."""
    return {
        "isolation": isolation_level().split(":")[0],
        "repeats": args.repeats,
        "kernel_repeats": KERNEL_REPEATS,
        "linux": platform.release(),
        **describe_machine("numpy", "scipy", "sympy", "pandas", "matplotlib", "ipykernel"),
    }


if __name__ == "__main__":
    main()
