"""Files that are recognized but cannot be read as rollouts, each with the way to make them readable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from axpo.diagnostics.importers.fields import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    title: str
    matches: Callable[[Row], bool]
    advice: str


_MINIMAL = (
    'Write one line per rollout instead: {"question": ID, "reward": NUMBER, "messages": [...]}; docs/diagnose.md '
    "describes the minimal schema"
)
_REFUSALS = (
    _Refusal(
        title="an OpenTelemetry trace",
        matches=lambda row: bool({"resourceSpans", "scopeSpans", "traceId", "trace_state"} & row.keys()),
        advice=f"A span is one call of a model or a tool, not a rollout, and traces contain no reward. {_MINIMAL}.",
    ),
    _Refusal(
        title="a LangSmith run",
        matches=lambda row: "run_type" in row and bool({"trace_id", "dotted_order", "parent_run_id"} & row.keys()),
        advice=f"A run is one call in a trace, and the reward is in the feedback, another table. {_MINIMAL}.",
    ),
    _Refusal(
        title="lmms-eval or lm-eval samples",
        matches=lambda row: "doc_id" in row and bool({"resps", "filtered_resps"} & row.keys()),
        advice=(
            "The name of the score differs between tasks. Name it: --format minimal --map question=doc_id "
            "--map text=resps.0.0 --map reward=SCORE, where SCORE is the field with 0 or 1 (a dot goes into an "
            "object). These samples contain the last answer only, so tool calls of earlier turns are not counted."
        ),
    ),
)


def refusal(rows: Sequence[Row]) -> str | None:
    """Name the kind of the rows and what to do, in a few sentences; None for rows of an unknown kind."""
    for row in rows:
        for known in _REFUSALS:
            if known.matches(row):
                return f"it looks like {known.title}, which is not read. {known.advice}"
    return None
