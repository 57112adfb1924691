"""Break the code on purpose, one line at a time, and see whether the nearest tests notice.

    scripts/mutants                       all mutants, one process
    scripts/mutants --jobs 2 --only kl    those with "kl" in their name or file, two at a time
    scripts/mutants --record FILE         write a record; mutants that FILE says are killed are not run again

Each mutant of `catalog.py` is applied to a temporary copy of `src`; the working tree is never touched. Exits with 1
when fewer than 95% are killed, when a survivor has no reason in the catalog, or when a mutant with a reason is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
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
KILLED = ("killed", "timeout")
TIMEOUT_S, BASELINE_TIMEOUT_S = 240.0, 1800.0
PRELOADED = ("torch", "transformers.models.qwen3_vl.modeling_qwen3_vl", "peft", "pydantic", "hypothesis.strategies")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the tests of one mutant ended."""

    status: str
    """`killed`, `timeout` (counts as killed), `survived`, or `broken`: the tests did not even run."""
    seconds: float
    commit: str
    killed_by: str | None = None


@dataclass(kw_only=True)
class Child:
    """A process that runs tests."""

    pid: int
    folder: Path
    started_s: float
    timeout_s: float

    def poll(self) -> int | None:
        """The exit code of pytest, minus the signal that ended the process, or None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            if time.monotonic() - self.started_s < self.timeout_s:
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
    timeout_s = BASELINE_TIMEOUT_S if mutant is None else TIMEOUT_S
    child = Child(pid=os.fork(), folder=folder, started_s=time.monotonic(), timeout_s=timeout_s)
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
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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


def judge(mutant: Mutant, child: Child, code: int, commit: str) -> Outcome:
    """What the exit code of pytest means. Anything but passed, failed and timed out is a mistake in the catalog."""
    status = {0: "survived", 1: "killed", -signal.SIGKILL: "timeout"}.get(code, "broken")
    if status == "broken":
        print(f"{mutant.name}: pytest ended with {code}, expected 0 or 1:\n{child.output[-3000:]}", flush=True)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", child.output, re.MULTILINE)
    return Outcome(
        status=status,
        seconds=round(time.monotonic() - child.started_s, 1),
        commit=commit,
        killed_by=failed[1] if failed else None,
    )


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


def run_all(mutants: Sequence[Mutant], jobs: int, outcomes: dict[str, Outcome]) -> None:
    """Run the tests of every mutant and fill `outcomes`."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    waiting, running = list(mutants), list[tuple[Mutant, Child]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                running.append((mutant, start(mutant.tests, mutant)))
            for mutant, child in list(running):
                if (code := child.poll()) is not None:
                    running.remove((mutant, child))
                    outcome = outcomes[mutant.name] = judge(mutant, child, code, commit.strip())
                    shutil.rmtree(child.folder, ignore_errors=True)
                    print(f"{outcome.status:8} {outcome.seconds:6.1f} s  {mutant.file}: {mutant.name}", flush=True)
            time.sleep(0.05)
    except KeyboardInterrupt:
        print(f"interrupted: {len(waiting) + len(running)} mutants were not run")
    finally:
        for _, child in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            shutil.rmtree(child.folder, ignore_errors=True)


def read_outcomes(record: Path | None) -> dict[str, Outcome]:
    """Outcomes of a former record, of mutants that are the same today."""
    if record is None or not record.is_file():
        return {}
    today = {mutant.name: (mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}
    former: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))["mutants"]
    return {
        entry["name"]: Outcome(**{field.name: entry[field.name] for field in dataclasses.fields(Outcome)})
        for entry in former
        if today.get(entry["name"]) == (entry["file"], entry["old"], entry["new"])
    }


def build_record(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Versions, counts, and one entry per mutant with an outcome."""
    done = [mutant for mutant in MUTANTS if mutant.name in outcomes]
    num_killed = sum(outcomes[mutant.name].status in KILLED for mutant in done)
    survivors = [mutant for mutant in done if outcomes[mutant.name].status not in KILLED]
    return {
        "benchmark": "mutants",
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "num_mutants": len(done),
        "num_killed": num_killed,
        "killed_frac": round(num_killed / max(1, len(done)), 4),
        "survivors": {mutant.name: mutant.changes_nothing_because for mutant in survivors},
        "mutants": [
            {
                "name": mutant.name,
                "file": mutant.file,
                "old": mutant.old,
                "new": mutant.new,
                **dataclasses.asdict(outcomes[mutant.name]),
            }
            for mutant in done
        ],
    }


def is_good(record: dict[str, Any]) -> bool:
    """Say what the record means: enough mutants are killed, and every survivor has a reason that still holds."""
    survivors: dict[str, str] = record["survivors"]
    reasons = {mutant.name: mutant.changes_nothing_because for mutant in MUTANTS}
    stale = [entry["name"] for entry in record["mutants"] if reasons[entry["name"]] and entry["name"] not in survivors]
    print(f"\n{record['num_killed']} of {record['num_mutants']} killed ({record['killed_frac']:.1%})")
    for name, reason in survivors.items():
        print(
            f"survived: {name}: {reason or 'NO REASON GIVEN; write a test that fails, or the reason into the catalog'}"
        )
    for name in stale:
        print(f"killed, though the catalog says that it changes nothing: {name}")
    is_enough = record["num_mutants"] < len(MUTANTS) or record["killed_frac"] >= LEAST_KILLED_FRAC
    return is_enough and all(survivors.values()) and not stale


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default: 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants with TEXT in their name or file")
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON; what it says is killed is not run again")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in f"{mutant.file}: {mutant.name}"]
    if not chosen:
        parser.error(f"no mutant has {arguments.only!r} in its name or file")
    if problems := [problem for mutant in chosen if (problem := misfit(mutant, ROOT / "src" / "axpo"))]:
        sys.exit("\n".join(problems))
    outcomes = read_outcomes(arguments.record)
    killed = {name for name, outcome in outcomes.items() if outcome.status in KILLED}
    if due := [mutant for mutant in chosen if mutant.name not in killed]:
        os.environ.update(ENVIRONMENT)
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # ends like Ctrl-C: children are ended, the record kept
        preload()
        check_baseline(due)
        run_all(due, arguments.jobs, outcomes)
    record = build_record(outcomes)
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if is_good(record) else 1


if __name__ == "__main__":
    sys.exit(main())
