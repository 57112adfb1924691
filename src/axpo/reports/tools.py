"""What became of the calls of each tool, over the training steps of an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from axpo.reports.charts import Panel
from axpo.reports.runs import Arm
from axpo.reports.tables import edge_means


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRow:
    """One tool in one arm. Times are seconds; shares are of the tool's calls."""

    arm: Arm
    tool: str
    use_rates: tuple[float | None, float | None]
    """Siblings that called it, in the first and in the last steps."""
    num_calls: int
    failed: float | None
    seconds: float | None
    seconds_max: float | None
    queue_seconds: float | None
    retried: float | None
    cached: float | None
    cut: float | None


def tool_rows(arms: Sequence[Arm]) -> tuple[ToolRow, ...]:
    """A row for each tool that was offered, arm by arm."""
    return tuple(_row(arm, tool) for arm in arms for tool in tool_names([arm]))


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
