"""The demo: GRPO and AXPO from one supervised checkpoint, side by side on two CPU cores; a table and a report."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from axpo.errors import AxpoError, ConfigError
from axpo.measures.intervals import Interval

RECIPES = Path(__file__).parents[1] / "tasks" / "mini" / "recipes"
FULL_STEPS = 40
MIN_STEPS = 4
EVAL_QUESTIONS = 256
MIN_EVAL_QUESTIONS = 48
# How much longer than evaluating one question a step and everything else take; both shrink and grow with the machine,
# so the time of the first evaluation tells how many steps fit.
STEP_PER_QUESTION = 125.0
FIXED_PER_QUESTION = 1100.0
POLL_S = 1.0
STOP_S = 60.0
"""Time for an interrupted run to finish its update and save."""
RESTART_S = 20.0
"""Time to start a stopped run again with another number of steps."""
MIN_MISS_FRAC = 0.15
"""The number of steps changes when the end would miss the promised time by more than this part of it."""
MIN_MEASURED_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One training run of the demo."""

    label: str
    recipe: Path
    folder: Path


def run_demo(*, minutes: float, out: Path, seed: int) -> None:
    """Evaluate the start, train both arms, print the table, write the report. Raises `ConfigError` on bad arguments."""
    if not math.isfinite(minutes) or minutes <= 0:
        raise ConfigError(f"--minutes: expected a number above 0, got {minutes:g}.")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out: {out} is not empty. Choose another folder, or remove it.")
    console = Console(highlight=False)
    started_s = time.monotonic()
    num_questions = max(MIN_EVAL_QUESTIONS, min(EVAL_QUESTIONS, round(EVAL_QUESTIONS * minutes / 10)))
    console.print(
        "The mini task: how many dots are on a small card in a large photograph? The model sees the photograph at "
        "160x160 px; it may guess from there, or call image_zoom_in and read."
    )
    options = {"run.seed": seed, "data.max_eval_rows": num_questions}
    start = out / "sft"
    with _processes([_command("eval", RECIPES / "axpo.toml", options, ["--out", str(start)])], out / "logs") as runs:
        _watch(console, runs, [("evaluating the supervised checkpoint", start, 1)])
    schedule = _Schedule(start, minutes=minutes, num_questions=num_questions, started_s=started_s)
    arms = [
        Arm(label="SFT+GRPO", recipe=RECIPES / "grpo.toml", folder=out / "grpo"),
        Arm(label="SFT+AXPO", recipe=RECIPES / "axpo.toml", folder=out / "axpo"),
    ]
    if schedule.num_steps < FULL_STEPS:
        console.print(f"{minutes:g} minutes allow {schedule.num_steps} of the recipe's {FULL_STEPS} steps.")
    words: list[str] = []
    while True:
        options |= {"train.steps": schedule.num_steps}
        commands = [_command("train", arm.recipe, options | {"run.output_dir": arm.folder}, words) for arm in arms]
        with _processes(commands, out / "logs") as runs:
            targets = [(arm.label, arm.folder, schedule.num_steps) for arm in arms]
            if _watch(console, runs, targets, is_over=lambda: schedule.revise([arm.folder for arm in arms])):
                break
        schedule.keep_ahead([arm.folder for arm in arms])
        words = ["--resume"]
        console.print(
            f"The steps take {schedule.step_s:.0f} s here now: to end in time, both runs continue to step "
            f"{schedule.num_steps}."
        )
    _show(console, [start, *(arm.folder for arm in arms)], out / "report.html")
    console.print(f"{time.monotonic() - started_s:.0f} s in all")


class _Schedule:
    """How many steps fit the promised time: estimated from the first evaluation, then revised by the steps' own times.

    Both runs always get the same number.
    """

    def __init__(self, start: Path, *, minutes: float, num_questions: int, started_s: float) -> None:
        """`start`: the run folder of the evaluation, which is over."""
        from axpo.diagnostics.recorder import read_metrics

        self._eval_s = float(read_metrics(start)[-1]["seconds/eval"])
        question_s = self._eval_s / num_questions
        self._minutes = minutes
        self._end_s = started_s + 60 * minutes
        self._num_seen = 0
        self._planned_step_s = self.step_s = STEP_PER_QUESTION * question_s
        left_s = self._end_s - time.monotonic() - FIXED_PER_QUESTION * question_s - self._eval_s
        self.num_steps = max(MIN_STEPS, min(FULL_STEPS, int(left_s / self.step_s)))

    def revise(self, folders: Sequence[Path]) -> bool:
        """Look at the steps that are done; True when both runs should end elsewhere, at the new `num_steps`."""
        times = [_step_seconds(folder) for folder in folders]
        done = [len(of_run) for of_run in times]
        if max(done) >= self.num_steps - 1 or min(done) - self._num_seen < MIN_MEASURED_STEPS:
            return False
        step_s = [sum(of_run[-MIN_MEASURED_STEPS:]) / MIN_MEASURED_STEPS for of_run in times]
        wanted = steps_in_time(
            done,
            step_s,
            num_steps=self.num_steps,
            left_s=self._end_s - time.monotonic() - self._eval_s * max(step_s) / self._planned_step_s,
            total_s=60 * self._minutes,
        )
        if wanted == self.num_steps:
            return False
        self.num_steps, self.step_s, self._num_seen = wanted, max(step_s), max(done)
        return True

    def keep_ahead(self, folders: Sequence[Path]) -> None:
        """Correct `num_steps` for what the runs did before they stopped: a run evaluates after its last step only."""
        self.num_steps = max(self.num_steps, *(len(_step_seconds(folder)) + 1 for folder in folders))


def _step_seconds(folder: Path) -> list[float]:
    from axpo.diagnostics.recorder import read_metrics

    return [float(record["seconds/step"]) for record in read_metrics(folder) if record["kind"] == "train"]


def steps_in_time(
    done: Sequence[int], step_s: Sequence[float], *, num_steps: int, left_s: float, total_s: float
) -> int:
    """The step at which the runs should end: `num_steps` unless that would miss the promised time by much.

    Args:
        done: steps of each run so far.
        step_s: seconds that each takes for a step.
        num_steps: where they would end.
        left_s: seconds until the evaluations at the end should begin.
        total_s: the promised time, in seconds.

    >>> steps_in_time([5, 5], [10.0, 12.0], num_steps=40, left_s=300.0, total_s=600.0)
    28
    >>> steps_in_time([5, 5], [10.0, 10.0], num_steps=35, left_s=300.0, total_s=600.0)
    35
    """
    needed_s = max((num_steps - steps) * seconds for steps, seconds in zip(done, step_s, strict=True))
    if abs(needed_s - left_s) <= MIN_MISS_FRAC * total_s:
        return num_steps
    in_time = min(steps + int((left_s - RESTART_S) / seconds) for steps, seconds in zip(done, step_s, strict=True))
    wanted = max(max(done) + 2, MIN_STEPS, min(FULL_STEPS, in_time))  # the update under way is finished first
    is_earlier = needed_s > left_s  # the bounds above may point the other way: then the plan stays
    return wanted if (wanted < num_steps) == is_earlier else num_steps


def _command(name: str, recipe: Path, options: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    overrides = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    return [sys.executable, "-m", "axpo.cli.main", name, str(recipe), *words, *overrides]


@dataclass(slots=True, kw_only=True)
class _Process:
    process: subprocess.Popen[bytes]
    log: Path


@contextlib.contextmanager
def _processes(commands: Sequence[list[str]], logs: Path) -> Generator[list[_Process]]:
    """Run commands side by side, one thread each, output to files; none survives the block."""
    logs.mkdir(parents=True, exist_ok=True)
    # Two threads a process are many times slower than one where two processes share two cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started: list[_Process] = []
    try:
        for index, command in enumerate(commands):
            log = logs / f"{command[3]}-{index}.log"
            with log.open("ab") as output:
                # Ctrl-C reaches a whole process group; a second signal would stop a run before it has saved
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, env=environment, process_group=0
                )
            started.append(_Process(process=process, log=log))
        yield started
    finally:
        for run in started:
            if run.process.poll() is None:
                run.process.send_signal(signal.SIGINT)
        for run in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(timeout=STOP_S)
            run.process.kill()
            run.process.wait()


def _watch(
    console: Console,
    runs: Sequence[_Process],
    targets: Sequence[tuple[str, Path, int]],
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> bool:
    """Bars (plain lines without a terminal) until all processes are done, or until `is_over`: then False.

    Raises `AxpoError` when a process fails.
    """
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.fields[numbers]}"), console=console, disable=not console.is_terminal
    ) as bars:
        tasks: list[tuple[TaskID, str, Path, int]] = []
        for label, folder, total in targets:
            tasks.append((bars.add_task(label, total=total, numbers=""), label, folder, total))
        said: dict[str, int] = {}
        while True:
            is_running = [run.process.poll() is None for run in runs]
            for task, label, folder, total in tasks:
                step, numbers = _progress(folder)
                bars.update(task, completed=step, numbers=numbers)
                if not console.is_terminal and step >= said.get(label, 0) + max(1, total // 6):
                    said[label] = step
                    console.print(f"{label}: {step}/{total}  {numbers}")
            for run in runs:
                if run.process.poll() not in (None, 0):
                    tail = run.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise AxpoError(f"{run.log.stem} ended with exit code {run.process.returncode}:\n{tail}")
            if not any(is_running):
                return True
            if all(is_running) and is_over():
                return False
            time.sleep(POLL_S)


def _progress(folder: Path) -> tuple[int, str]:
    """The last step of a run and what it says of tool use; an evaluation-only run counts as one step."""
    from axpo.diagnostics.recorder import read_metrics

    records = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
    if not records:
        return 0, ""
    steps = [record for record in records if record["kind"] == "train"]
    if not steps:
        return len(records), ""
    tail = steps[-5:]
    return steps[-1]["step"], "  ".join(
        _recent(tail, (("reward", "reward/mean"), ("tool use", "rollout/tool_use_rate")))
    )


def _recent(records: Sequence[Mapping[str, Any]], names: Sequence[tuple[str, str]]) -> Iterator[str]:
    for title, key in names:
        values = [record[key] for record in records if record.get(key) is not None]
        if values:
            yield f"{title} {sum(values) / len(values):.2f}"


def _show(console: Console, folders: Sequence[Path], report: Path) -> None:
    from axpo.reports.html import write_report
    from axpo.reports.runs import load_arms
    from axpo.reports.tables import columns, final_table, percent, write_verdict

    arms = load_arms(folders)
    rows = final_table(arms)
    headings = columns(rows)
    table = Table(title="Held-out questions, 4 samples each; 95 % intervals clustered by question")
    for heading in ("", *headings.values()):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        cells = (row.cells.get(name) for name in headings)
        table.add_row(
            row.label,
            *(f"{percent(c.estimate)}\n[dim]{_bounds(c)}[/dim]" if c else "-" for c in cells),
        )
    console.print(table)
    for sentence in write_verdict(arms, rows):
        console.print(sentence)
    write_report(folders, report)
    console.print(f"report: {report.resolve()}")


def _bounds(interval: Interval) -> str:
    """Both ends in whole percent: eight columns have to fit a terminal."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{100 * interval.low:.0f}-{100 * interval.high:.0f}"
