"""What a person sees of a run: bars and a table on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rich.table import Table

    from axpo.diagnostics.health import Alarm
    from axpo.types import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A number of the table: its heading, metric key, format and width in characters."""

    title: str
    key: str
    format: str
    width: int


STEP_WIDTH = 8
ROLLOUT_COLUMNS = (
    Column(title="reward", key="reward/mean", format=".3f", width=8),
    Column(title="tool use", key="rollout/tool_use_rate", format=".1%", width=10),
    Column(title="all wrong", key="rollout/all_wrong_tool", format=".1%", width=11),
    Column(title="resampled", key="resample/used", format="d", width=11),
    Column(title="restored", key="resample/restore_rate", format=".1%", width=10),
    Column(title="KL", key="train/kl", format=".4f", width=8),
    Column(title="gap", key="engine/logprob_gap_mean", format=".0e", width=7),
    Column(title="s", key="seconds/step", format=".1f", width=6),
)
DEMONSTRATION_COLUMNS = (
    Column(title="loss", key="train/loss", format=".4f", width=9),
    Column(title="entropy", key="train/entropy", format=".4f", width=9),
    Column(title="grad norm", key="train/grad_norm", format=".3f", width=11),
    Column(title="tokens", key="tokens/trained", format="d", width=9),
    Column(title="s", key="seconds/step", format=".1f", width=7),
)


@contextlib.contextmanager
def counting(noun: str) -> Generator[Callable[[int], None]]:
    """A counter of unknown length on a terminal; nothing elsewhere."""
    console = Console(highlight=False)
    columns = (TextColumn("{task.completed:,} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(noun, total=None)
        yield lambda count: bar.update(task, completed=count)


class RunConsole:
    """An `axpo.trainer.loop.Observer` for people. Use it as a context manager: it owns the bars."""

    def __init__(
        self, *, columns: Sequence[Column], num_steps: int, rollouts_per_step: int = 0, console: Console | None = None
    ) -> None:
        self._columns = columns
        self._num_steps = num_steps
        self._rollouts_per_step = rollouts_per_step
        self._console = console or Console(highlight=False)
        self._is_live = self._console.is_terminal
        self._has_header = False
        self._standing: set[str] = set()
        self._bars: Progress | None = None
        self._rollouts: TaskID | None = None

    def __enter__(self) -> RunConsole:
        if self._is_live:
            shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*shown, console=self._console, transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start_rollouts(self, description: str, num_rollouts: int) -> None:
        """Begin a bar of `num_rollouts` rollouts in place of the one before."""
        if self._bars is None:
            return
        if self._rollouts is not None:
            self._bars.remove_task(self._rollouts)
        self._rollouts = self._bars.add_task(description, total=num_rollouts)

    def on_start(self, step: int) -> None:
        """A new bar."""
        if self._rollouts_per_step:
            self.start_rollouts(f"step {step}", self._rollouts_per_step)

    def on_total(self, num_rollouts: int) -> None:
        """Correct the bar's length: fewer questions than a step could take, or continuations that were planned."""
        if self._bars is not None and self._rollouts is not None:
            self._bars.update(self._rollouts, total=num_rollouts)

    def on_rollout(self, rollout: Rollout | None = None) -> None:
        """Move the bar."""
        if self._bars is not None and self._rollouts is not None:
            self._bars.advance(self._rollouts)

    def on_step(self, step: int, metrics: Mapping[str, Any], alarms: Sequence[Alarm]) -> None:
        """One line, and alarms that did not stand at the step before."""
        texts = [_format(metrics.get(column.key), column.format) for column in self._columns]
        if self._is_live:
            if not self._has_header:
                self._print(f"[bold]{self._align('step', [column.title for column in self._columns])}[/bold]")
                self._has_header = True
            self._print(self._align(f"{step}/{self._num_steps}", texts))
        else:
            named = (f"{column.title} {text}" for column, text in zip(self._columns, texts, strict=True))
            self._print(f"step {step}/{self._num_steps}  " + "  ".join(named))
        for alarm in alarms:
            if alarm.name not in self._standing:
                style = "red" if alarm.level == "error" else "yellow"
                self._print(
                    f"[{style}]alarm {alarm.name} at step {step}:[/{style}] {escape(f'{alarm.text} {alarm.advice}')}"
                )
        self._standing = {alarm.name for alarm in alarms}

    def on_eval(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line with the scores and their intervals."""
        self._print(f"evaluation at step {step}:  " + describe_eval(metrics))

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Nothing: the folder speaks for itself."""

    def show(self, table: Table) -> None:
        """A table."""
        self._console.print(table)

    def say(self, text: str) -> None:
        """A plain line."""
        self._print(escape(text))

    def _align(self, first: str, texts: Sequence[str]) -> str:
        cells = (f"{text:>{column.width}}" for column, text in zip(self._columns, texts, strict=True))
        return f"{first:>{STEP_WIDTH}}" + "".join(cells)

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone; the run continues without it
            self._console.print(text, soft_wrap=True)


def describe_eval(metrics: Mapping[str, Any]) -> str:
    """Scores with 95 % intervals, `key value [low, high]`."""
    names = [key.removeprefix("eval/") for key in metrics if f"{key}_low" in metrics]
    shown = [name for name in names if name.startswith("pass@") or name == "tool_use_any"]
    return escape("  ".join(f"{name} {_interval(metrics, name)}" for name in shown))


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    estimate, low, high = (metrics.get(f"eval/{name}{end}") for end in ("", "_low", "_high"))
    return f"{_format(estimate, '.3f')} [{_format(low, '.3f')}, {_format(high, '.3f')}]"


def _format(value: float | int | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
