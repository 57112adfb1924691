"""The numbers of a report: final table, differences, verdict, alarms, what was run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.diagnostics.health import Alarm, AlarmSpan, summarize_alarms
from axpo.evaluation.outcomes import QuestionOutcome, is_share, metric_addends
from axpo.measures.estimates import Questions, describe_runs
from axpo.measures.intervals import UNKNOWN, Interval
from axpo.measures.rates import Addends
from axpo.reports.runs import Arm, Run

START_LABEL = "Start"
PHASES = ("rollout", "resample", "train", "sync")
"""Of a training step, in their order; logged as `seconds/<phase>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One line of the final table: what was evaluated, and its numbers by metric name."""

    label: str
    arm: Arm
    evaluations: tuple[tuple[Run, int], ...]
    """Run and step of each evaluation it pools."""
    cells: dict[str, Interval]

    @property
    def step(self) -> int:
        """Of the evaluations; they share it."""
        return self.evaluations[0][1]

    @property
    def outcomes_by_run(self) -> list[tuple[QuestionOutcome, ...]]:
        """What became of each question, run by run."""
        return [run.outcomes(step) for run, step in self.evaluations]


def final_table(arms: Sequence[Arm]) -> tuple[TableRow, ...]:
    """The common start and every arm at its last evaluation.

    The start pools evaluations at step 0 and evaluation-only runs of the checkpoint that training started from.
    """
    trained = [arm for arm in arms if arm.method in ("GRPO", "AXPO")]
    checkpoints = {path for arm in trained for run in arm.runs if (path := run.table("model").get("path"))}
    starting = [(run, 0) for arm in trained for run in arm.runs if run.eval_record(0) and arm.last_eval_step]
    start_arm = trained[0] if starting else None
    rows: list[TableRow] = []
    for arm in arms:
        if arm.last_eval_step is None:
            continue
        evaluations = [(run, arm.last_eval_step) for run in arm.runs]
        if arm.method == "Evaluation" and arm.runs[0].table("model").get("path") in checkpoints:
            starting += evaluations
            start_arm = start_arm or arm
        else:
            rows.append(_table_row(arm.label, arm, evaluations))
    return (_table_row(START_LABEL, start_arm, starting), *rows) if start_arm is not None else tuple(rows)


def categories(rows: Sequence[TableRow]) -> tuple[str, ...]:
    """Labels of the questions that have numbers of their own."""
    return tuple(sorted({name.partition("/")[0] for row in rows for name in row.cells if "/" in name}))


def columns(rows: Sequence[TableRow], category: str = "") -> dict[str, str]:
    """Metric name -> heading, for those that at least one row has; over all questions, or over those of a category."""
    passes = sorted({name for row in rows for name in row.cells if name.startswith("pass@")}, key=_k_of)
    headings = {name: f"Pass@{_k_of(name)}" for name in passes} | {
        "tool_use_rate": "Tool use",
        "tool_use_any": "Tool use, any sample",
        "box_hit_rate": "Box hits",
        "accuracy_given_hit": "Right after a hit",
        "accuracy_given_miss": "Right after a miss",
    }
    prefix = f"{category}/" if category else ""
    return {
        f"{prefix}{name}": heading
        for name, heading in headings.items()
        if any(row.cells.get(f"{prefix}{name}", UNKNOWN).estimate is not None for row in rows)
    }


def difference(rows: Sequence[TableRow], arm: str, baseline: str, metric: str) -> Interval:
    """Row `arm` minus row `baseline`, on the questions both were asked; unknown when one of them is missing."""
    by_label = {row.label: row for row in rows}
    if arm not in by_label or baseline not in by_label:
        return UNKNOWN
    return run_interval(by_label[arm].outcomes_by_run, metric, baseline=by_label[baseline].outcomes_by_run)


def run_interval(
    outcomes_by_run: Sequence[Sequence[QuestionOutcome]],
    metric: str,
    *,
    baseline: Sequence[Sequence[QuestionOutcome]] = (),
) -> Interval:
    """A metric over runs with its 95 % interval over seeds and questions, minus `baseline` when it is given.

    Only questions that all runs were asked count. Unknown when there is none or a run cannot tell the metric.
    """
    arms = [outcomes_by_run, baseline] if baseline else [outcomes_by_run]
    runs = [run for arm in arms for run in arm]
    if not all(runs) or any(metric not in metric_addends(run) for run in runs):
        return UNKNOWN
    shared = sorted(set.intersection(*({outcome.problem_id for outcome in run} for run in runs)))
    if not shared:
        return UNKNOWN
    cluster_of = {outcome.problem_id: outcome.cluster for outcome in runs[0]}
    questions = Questions([cluster_of[problem_id] for problem_id in shared])
    estimates = [
        questions.ratio(
            [_addends_of(run, metric_addends(run)[metric], shared) for run in arm],
            is_share=is_share(metric),
            method=str(number),
        )
        for number, arm in enumerate(arms)
    ]
    return (estimates[0] - estimates[1] if baseline else estimates[0]).interval


def _addends_of(
    outcomes: Sequence[QuestionOutcome], addends: Callable[[QuestionOutcome], Addends], problem_ids: Sequence[str]
) -> list[Addends]:
    by_id = {outcome.problem_id: outcome for outcome in outcomes}
    return [addends(by_id[problem_id]) for problem_id in problem_ids]


def _table_row(label: str, arm: Arm, evaluations: Sequence[tuple[Run, int]]) -> TableRow:
    outcomes = [run.outcomes(step) for run, step in evaluations]
    if all(outcomes):
        cells = {name: run_interval(outcomes, name) for name in metric_addends(outcomes[0])}
    else:
        records = [run.eval_record(step) for run, step in evaluations]
        cells = _logged_cells([record for record in records if record is not None])
    return TableRow(label=label, arm=arm, evaluations=tuple(evaluations), cells=cells)


def _logged_cells(records: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """Without rollouts files: the logged values, averaged over runs; an interval only for a single run."""
    cells: dict[str, Interval] = {}
    for key in records[0]:
        values = [record.get(key) for record in records]
        if not key.startswith("eval/") or key.endswith(("_low", "_high")) or None in values:
            continue
        bounds = [records[0].get(f"{key}_{side}") if len(records) == 1 else None for side in ("low", "high")]
        mean = sum(float(value) for value in values if value is not None) / len(values)
        cells[key.removeprefix("eval/")] = Interval(estimate=mean, low=bounds[0], high=bounds[1])
    return cells


def _k_of(name: str) -> int:
    return int(name.removeprefix("pass@"))


# -- words ------------------------------------------------------------------------------------------------------------


def write_verdict(arms: Sequence[Arm], rows: Sequence[TableRow]) -> tuple[str, ...]:
    """One or two sentences that follow from the numbers alone."""
    methods = {arm.method: arm for arm in reversed(arms)}
    if not rows:
        return (_reward_sentence(arms), "Nothing was evaluated yet.")
    largest_k = max(
        (name for row in rows for name in row.cells if name.startswith("pass@")), key=_k_of, default="pass@1"
    )
    if "AXPO" in methods and "GRPO" in methods:
        axpo, grpo = methods["AXPO"].label, methods["GRPO"].label
        sentences = [_comparison_sentence(rows, axpo, grpo, metric) for metric in dict.fromkeys(("pass@1", largest_k))]
        about = _seed_sentence(rows, axpo, grpo) if any("interval" in sentence for sentence in sentences) else ""
        return (" ".join(filter(None, [*sentences, about])), _tool_sentence(rows, [axpo, grpo]))
    last = next((row for row in reversed(rows) if row.arm.method != "Evaluation"), rows[-1])
    return (_change_sentence(rows, last.label, largest_k), _tool_sentence(rows, [last.label]))


def _comparison_sentence(rows: Sequence[TableRow], arm: str, baseline: str, metric: str) -> str:
    ours, theirs = (_cell(rows, label, metric) for label in (arm, baseline))
    gap = difference(rows, arm, baseline, metric)
    if ours.estimate is None or theirs.estimate is None:
        return ""
    k = _k_of(metric)
    lead = "right answers" if k == 1 else f"right within {k} tries"
    text = f"{lead.capitalize()}: {arm} {percent(ours.estimate)}, {baseline} {percent(theirs.estimate)} (Pass@{k}"
    if gap.estimate is None or gap.low is None or gap.high is None:
        return f"{text})."
    judged = "" if gap.low > 0 or gap.high < 0 else "; these runs do not tell them apart"
    return f"{text}: {points(gap.estimate)} points, 95% interval {points(gap.low)} to {points(gap.high)}{judged})."


def _seed_sentence(rows: Sequence[TableRow], arm: str, baseline: str) -> str:
    """That a method has one run only, so that its intervals leave out training seeds; empty where each has several."""
    runs = {row.label: len(row.evaluations) for row in rows if row.label in (arm, baseline)}
    return "" if min(runs.values()) > 1 else describe_runs(runs)


def _change_sentence(rows: Sequence[TableRow], label: str, metric: str) -> str:
    start, end = _cell(rows, START_LABEL, metric), _cell(rows, label, metric)
    if end.estimate is None:
        return f"{label} was evaluated, but {metric} was not recorded."
    before = f", from {percent(start.estimate)} before training" if start.estimate is not None else ""
    return f"{label} ends at {metric.capitalize()} {percent(end.estimate)}{before}."


def _tool_sentence(rows: Sequence[TableRow], labels: Sequence[str]) -> str:
    rates = [(label, _cell(rows, label, "tool_use_rate").estimate) for label in labels]
    known = [f"{label} {percent(rate)}" for label, rate in rates if rate is not None]
    start = _cell(rows, START_LABEL, "tool_use_rate").estimate
    before = f" (before training: {percent(start)})" if start is not None else ""
    return f"Rollouts that call a tool: {', '.join(known)}{before}." if known else ""


def _reward_sentence(arms: Sequence[Arm]) -> str:
    for key, words in (("reward/mean", "training reward"), ("train/loss", "loss")):
        values = [record[key] for arm in arms for record in arm.runs[0].train_records if record.get(key) is not None]
        if values:
            return f"{arms[0].label}: {words} {values[0]:.3g} at the first step, {values[-1]:.3g} at the last."
    return "No training step was recorded yet."


def _cell(rows: Sequence[TableRow], label: str, metric: str) -> Interval:
    return next((row.cells.get(metric, UNKNOWN) for row in rows if row.label == label), UNKNOWN)


def percent(value: float | None) -> str:
    """`0.853` -> `85.3 %`; a dash for nothing."""
    return "–" if value is None else f"{100 * value:.1f} %"


def share_range(interval: Interval) -> str:
    """`58.1–62.9`, in percent; empty without an interval."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def points(value: float | None) -> str:
    """A difference of shares: `-0.042` -> `−4.2`, in percentage points; a dash for nothing."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


# -- alarms and facts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRow:
    """One kind of alarm over all runs of an arm."""

    arm: Arm
    alarm: Alarm
    num_runs: int
    first_step: int
    last_step: int


def alarm_rows(arms: Sequence[Arm]) -> tuple[AlarmRow, ...]:
    """Every alarm that runs raised, by arm and kind, in the words of its last occurrence."""
    rows: list[AlarmRow] = []
    for arm in arms:
        spans: dict[str, list[AlarmSpan]] = {}
        for run in arm.runs:
            for span in summarize_alarms(run.train_records):
                spans.setdefault(span.alarm.name, []).append(span)
        rows += [
            AlarmRow(
                arm=arm,
                alarm=found[-1].alarm,
                num_runs=len(found),
                first_step=min(span.first_step for span in found),
                last_step=max(span.last_step for span in found),
            )
            for found in spans.values()
        ]
    return tuple(rows)


def phase_seconds(arm: Arm) -> dict[str, float]:
    """Mean seconds a step of each phase, over all runs and steps of an arm."""
    records = [record for run in arm.runs for record in run.train_records]
    keys = {f"seconds/{phase}": phase for phase in PHASES}
    return {
        phase: sum(record.get(key) or 0.0 for record in records) / len(records)
        for key, phase in keys.items()
        if any(record.get(key) for record in records)
    }


def edge_means(arm: Arm, key: str, *, num_steps: int = 5) -> tuple[float | None, float | None]:
    """Means of a training metric over the first and over the last steps of all runs, at most half of the steps each."""
    first: list[float] = []
    last: list[float] = []
    for run in arm.runs:
        records = run.train_records
        size = max(1, min(num_steps, len(records) // 2))
        first += [record[key] for record in records[:size] if record.get(key) is not None]
        last += [record[key] for record in records[-size:] if record.get(key) is not None]
    return (sum(first) / len(first) if first else None), (sum(last) / len(last) if last else None)


def run_facts(arms: Sequence[Arm]) -> dict[str, str]:
    """What was run, in the words of the configuration; several values of one fact are listed."""
    runs = [run for arm in arms for run in arm.runs]
    commits = [str(run.info.get("commit") or "") for run in runs]
    facts = {
        "Model": [str(run.table("model").get("path", "")) for run in runs],
        "Data": [str(run.table("data").get("train") or "") for run in runs],
        "Steps": [str(len(run.train_records)) for run in runs if run.train_records],
        "Batch": [_batch_text(run) for run in runs],
        "Seeds": [", ".join(str(seed) for seed in sorted({run.seed for run in runs}))],
        "Device": [str(run.info.get("device") or "") for run in runs],
        "Commit": [commit[:10] + ("+" if commit.endswith("+") else "") for commit in commits],
        "Started": [str(run.info.get("started_at", ""))[:10] for run in runs],
    }
    return {name: text for name, values in facts.items() if (text := " · ".join(dict.fromkeys(filter(None, values))))}


def _batch_text(run: Run) -> str:
    rollout = run.table("rollout")
    if run.method not in ("GRPO", "AXPO") or "questions_per_step" not in rollout:
        return ""
    return f"{rollout['questions_per_step']} questions × {rollout.get('group_size')} rollouts"
