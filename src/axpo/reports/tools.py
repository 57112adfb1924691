"""What became of the calls of each tool, over the training steps of an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from axpo.reports.charts import Panel
from axpo.reports.runs import Arm
from axpo.reports.tables import edge_means


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRow:
    """One tool in one arm, or all its calls. Times are seconds; shares are of the tool's calls."""

    arm: Arm
    tool: str
    use_rates: tuple[float | None, float | None]
    """Siblings that called it, in the first and in the last steps."""
    num_calls: int
    failed: float | None
    seconds: float | None = None
    seconds_max: float | None = None
    queue_seconds: float | None = None
    retried: float | None = None
    cached: float | None = None
    cut: float | None = None


NO_TOOL = "(malformed or unknown)"
"""Calls that name no tool that is offered: malformed ones, and tools that the model made up."""
ALL_TOOLS = "all calls"


def tool_rows(arms: Sequence[Arm]) -> tuple[ToolRow, ...]:
    """A row for each tool that was offered, for calls of no tool, and for all calls; arm by arm."""
    rows: list[ToolRow] = []
    for arm in arms:
        named = [_row(arm, tool) for tool in tool_names([arm])]
        total = _total_row(arm)
        lost = total.num_calls - sum(row.num_calls for row in named)
        rows += [*named, *([_unnamed_row(arm, lost)] if lost else []), *([total] if named else [])]
    return tuple(rows)


def tool_names(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Tools that the runs logged."""
    records = (record for arm in arms for run in arm.runs for record in run.train_records)
    return tuple(sorted({key.split("/")[1] for record in records for key in record if _is_use_rate(key)}))


def tool_panels(arms: Sequence[Arm]) -> tuple[Panel, ...]:
    """A chart of each tool's use, where there are several."""
    names = tool_names(arms)
    return tuple(
        Panel(
            title=f"Use of {name}",
            caption=f"Rollouts that call {name}.",
            keys=(f"tools/{name}/use_rate",),
            is_fraction=True,
        )
        for name in (names if len(names) > 1 else ())
    )


def _is_use_rate(key: str) -> bool:
    return key.startswith("tools/") and key.endswith("/use_rate")


def _unnamed_row(arm: Arm, num_calls: int) -> ToolRow:
    """Calls of no tool always fail."""
    return ToolRow(arm=arm, tool=NO_TOOL, use_rates=(None, None), num_calls=num_calls, failed=1.0)


def _total_row(arm: Arm) -> ToolRow:
    """All answered calls, in the numbers of `tools/calls`, `tools/failure_rate` and `tools/seconds`."""
    records = [record for run in arm.runs for record in run.train_records if record.get("tools/calls")]
    calls = [record["tools/calls"] for record in records]

    def mean(name: str) -> float | None:
        means = [record.get(f"tools/{name}") or 0 for record in records]
        return sum(n * value for n, value in zip(calls, means, strict=True)) / sum(calls) if calls else None

    return ToolRow(
        arm=arm,
        tool=ALL_TOOLS,
        use_rates=edge_means(arm, "rollout/tool_use_rate"),
        num_calls=sum(calls),
        failed=mean("failure_rate"),
        seconds=mean("seconds"),
    )


def _row(arm: Arm, tool: str) -> ToolRow:
    records = [record for run in arm.runs for record in run.train_records]
    calls = [record.get(f"tools/{tool}/calls") or 0 for record in records]

    def total(name: str) -> float:
        return sum(record.get(f"tools/{tool}/{name}") or 0 for record in records)

    def mean(name: str) -> float | None:
        means = [record.get(f"tools/{tool}/{name}") or 0 for record in records]
        return sum(n * value for n, value in zip(calls, means, strict=True)) / sum(calls) if sum(calls) else None

    def share(name: str) -> float | None:
        return total(name) / sum(calls) if sum(calls) else None

    slowest = [value for record in records if (value := record.get(f"tools/{tool}/seconds_max")) is not None]
    return ToolRow(
        arm=arm,
        tool=tool,
        use_rates=edge_means(arm, f"tools/{tool}/use_rate"),
        num_calls=sum(calls),
        failed=share("failures"),
        seconds=mean("seconds"),
        seconds_max=max(slowest, default=None),
        queue_seconds=mean("queue_seconds"),
        retried=share("retried"),
        cached=share("cached"),
        cut=share("cut"),
    )
