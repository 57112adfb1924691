"""Break the code on purpose, one line at a time, and see whether the nearest tests notice.

    scripts/mutants                       all mutants, one process
    scripts/mutants --jobs 2 --only kl    those with "kl" in their name or file, two at a time

Each mutant of `catalog.py` is applied to a temporary copy of `src`; the working tree is never touched. Exits with 1
when fewer than 95% are killed, when a survivor has no reason in the catalog, or when a mutant with a reason is killed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from catalog import MUTANTS, Mutant, misfit

ROOT = Path(__file__).resolve().parents[2]
LEAST_KILLED_FRAC = 0.95
TIMEOUT_S = 240.0
PRELOADED = ("torch", "transformers.models.qwen3_vl.modeling_qwen3_vl", "peft", "pydantic")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the tests of one mutant ended."""

    status: str
    """`killed`, `timeout` (counts as killed) or `survived`."""
    seconds: float
    killed_by: str | None = None


@dataclass(kw_only=True)
class Child:
    """A process that runs tests."""

    pid: int
    folder: Path
    started_s: float

    def poll(self) -> int | None:
        """The exit code of pytest, minus the signal that ended the process, or None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            if time.monotonic() - self.started_s < TIMEOUT_S:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(status)

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")


def preload() -> None:
    """Import what every test imports, and nothing of axpo: a forked child saves these seconds."""
    for module in PRELOADED:
        importlib.import_module(module)
    assert not any(name.partition(".")[0] == "axpo" for name in sys.modules)


def start(tests: Sequence[str], mutant: Mutant | None) -> Child:
    """Fork, put a copy of `src` first on the path, change it, run the tests."""
    folder = Path(tempfile.mkdtemp(prefix="axpo-mutant-"))
    package = shutil.copytree(ROOT / "src" / "axpo", folder / "src" / "axpo", copy_function=copy_code)
    if mutant is not None:
        file = package / mutant.file
        file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
    child = Child(pid=os.fork(), folder=folder, started_s=time.monotonic())
    if child.pid:
        return child
    status = 70  # whatever happens in here must not return into the parent's code
    try:
        status = run_tests(folder, tests)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def copy_code(source: str, target: str) -> None:
    """Code is copied with its times, so that compiled files stay valid; weights and photos are only linked."""
    if source.endswith((".py", ".pyc")):
        shutil.copy2(source, target)
    else:
        os.symlink(source, target)


def run_tests(folder: Path, tests: Sequence[str]) -> int:
    import pytest

    os.setsid()  # a timeout ends the processes of tools and rewards too
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.path.insert(0, str(folder / "src"))
    os.environ["PYTHONPATH"] = str(folder / "src")
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    os.chdir(ROOT)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder / 'temporary'}"]
    preloaded_plugins = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main([*options, *preloaded_plugins, *tests]))
    import axpo

    assert Path(axpo.__file__).is_relative_to(folder), "the tests did not run against the copy"
    return code


def judge(mutant: Mutant, child: Child, code: int) -> Outcome:
    """What the exit code of pytest means. Anything but passed, failed and killed is a mistake in the catalog."""
    seconds = round(time.monotonic() - child.started_s, 1)
    if code == 0:
        return Outcome(status="survived", seconds=seconds)
    if code == -signal.SIGKILL:
        return Outcome(status="timeout", seconds=seconds)
    if code != 1:
        sys.exit(f"mutant {mutant.name}: pytest ended with {code}, expected 0 or 1.\n{child.output[-3000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", child.output, re.MULTILINE)
    return Outcome(status="killed", seconds=seconds, killed_by=failed[1] if failed else None)


def check_baseline(mutants: Sequence[Mutant]) -> None:
    """The unchanged code must pass all the tests, else every mutant would be killed."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    child = start(tests, None)
    while (code := child.poll()) is None:
        time.sleep(0.1)
    if code:
        sys.exit(f"the tests do not pass without a mutant (exit code {code}):\n{child.output[-3000:]}")
    print(f"baseline: {len(tests)} test selections pass in {time.monotonic() - child.started_s:.0f} s", flush=True)
    shutil.rmtree(child.folder)


def run_all(mutants: Sequence[Mutant], jobs: int) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    waiting, running = list(mutants), list[tuple[Mutant, Child]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                running.append((mutant, start(mutant.tests, mutant)))
            for mutant, child in list(running):
                if (code := child.poll()) is not None:
                    running.remove((mutant, child))
                    outcome = outcomes[mutant.name] = judge(mutant, child, code)
                    shutil.rmtree(child.folder, ignore_errors=True)
                    print(f"{outcome.status:8} {outcome.seconds:6.1f} s  {mutant.file}: {mutant.name}", flush=True)
            time.sleep(0.05)
    finally:
        for _, child in running:
            os.killpg(child.pid, signal.SIGKILL)
    return outcomes


def summarize(mutants: Sequence[Mutant], outcomes: dict[str, Outcome], *, is_whole: bool) -> tuple[dict[str, Any], int]:
    """The record, and the exit code."""
    survivors = [mutant for mutant in mutants if outcomes[mutant.name].status == "survived"]
    num_killed = len(mutants) - len(survivors)
    unnamed = [mutant.name for mutant in survivors if not mutant.changes_nothing_because]
    stale = [m.name for m in mutants if m.changes_nothing_because and m not in survivors]
    print(f"\n{num_killed} of {len(mutants)} killed ({num_killed / len(mutants):.1%})")
    for mutant in survivors:
        print(f"survived: {mutant.name}: {mutant.changes_nothing_because or 'NO REASON GIVEN'}")
    for name in stale:
        print(f"killed, but the catalog says that it changes nothing: {name}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    record = {
        "benchmark": "mutants",
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "num_mutants": len(mutants),
        "num_killed": num_killed,
        "killed_frac": round(num_killed / len(mutants), 4),
        "survivors": {mutant.name: mutant.changes_nothing_because for mutant in survivors},
        "mutants": [
            {
                "name": mutant.name,
                "file": mutant.file,
                "old": mutant.old,
                "new": mutant.new,
                "status": outcomes[mutant.name].status,
                "killed_by": outcomes[mutant.name].killed_by,
                "seconds": outcomes[mutant.name].seconds,
            }
            for mutant in mutants
        ],
    }
    is_enough = not is_whole or num_killed >= LEAST_KILLED_FRAC * len(mutants)
    return record, int(bool(unnamed or stale or not is_enough))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default: 1)")
    parser.add_argument("--only", metavar="TEXT", help="mutants with TEXT in their name or file")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as JSON")
    arguments = parser.parse_args()
    mutants = [m for m in MUTANTS if not arguments.only or arguments.only in f"{m.file}: {m.name}"]
    if not mutants:
        parser.error(f"no mutant has {arguments.only!r} in its name or file")
    if problems := [problem for m in mutants if (problem := misfit(m, ROOT / "src" / "axpo"))]:
        sys.exit("\n".join(problems))
    os.environ.update(ENVIRONMENT)
    preload()
    check_baseline(mutants)
    outcomes = run_all(mutants, arguments.jobs)
    record, code = summarize(mutants, outcomes, is_whole=not arguments.only)
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
