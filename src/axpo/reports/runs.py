"""Run directories as objects: what was run, what was logged, which runs belong together."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from axpo.codec import from_json, to_json
from axpo.diagnostics.recorder import read_metrics, read_run_info, rollout_files
from axpo.errors import DataError, RecordError
from axpo.evaluation.outcomes import QuestionOutcome, question_outcome
from axpo.types import Rollout, Segment, StopReason, ToolResult

Method = Literal["SFT", "GRPO", "AXPO", "Evaluation"]

_METHODS: tuple[Method, ...] = ("SFT", "GRPO", "AXPO", "Evaluation")
_IGNORED_IN_COMPARISON = ("seed", "output_dir", "device", "num_threads")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One run directory."""

    folder: Path
    config: dict[str, Any]
    info: dict[str, Any]
    records: list[dict[str, Any]]
    _outcomes: dict[int, tuple[QuestionOutcome, ...]] = field(default_factory=dict[int, tuple[QuestionOutcome, ...]])

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.table("run").get("seed", 0))

    @property
    def train_records(self) -> list[dict[str, Any]]:
        """One a training step."""
        return [record for record in self.records if record["kind"] == "train"]

    @property
    def eval_records(self) -> list[dict[str, Any]]:
        """One an evaluation."""
        return [record for record in self.records if record["kind"] == "eval"]

    @property
    def method(self) -> Method:
        """Read off the configuration: GRPO is AXPO with the budget at zero."""
        if not self.train_records:
            return "Evaluation"
        if not any("rollout/tool_use_rate" in record for record in self.train_records):
            return "SFT"
        return "AXPO" if self.table("algorithm").get("resample_budget_frac", 0.25) > 0 else "GRPO"

    @property
    def group_size(self) -> int | None:
        """N, siblings per question."""
        return self.table("rollout").get("group_size")

    def table(self, name: str) -> dict[str, Any]:
        """One table of the configuration; empty when it is missing."""
        value = self.config.get(name, {})
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    def eval_record(self, step: int) -> dict[str, Any] | None:
        """The evaluation at `step`."""
        return next((record for record in self.eval_records if record["step"] == step), None)

    def outcomes(self, step: int) -> tuple[QuestionOutcome, ...]:
        """What became of each question in the evaluation at `step`; empty without a rollouts file."""
        if step not in self._outcomes:
            self._outcomes[step] = self._read_outcomes(step)
        return self._outcomes[step]

    def _read_outcomes(self, step: int) -> tuple[QuestionOutcome, ...]:
        kept = _outcomes_path(self.folder, step)
        if kept.exists():
            lines = kept.read_text(encoding="utf-8").splitlines()
            return tuple(from_json(QuestionOutcome, json.loads(line)) for line in lines)
        path, record = rollout_files(self.folder, "eval").get(step), self.eval_record(step)
        if path is None or record is None:
            return ()
        by_problem: dict[str, list[tuple[Rollout, dict[str, Any]]]] = {}
        for rollout, metadata in _read_counted(path):
            by_problem.setdefault(rollout.problem_id, []).append((rollout, metadata))
        return tuple(
            question_outcome(
                problem_id,
                [rollout for rollout, _ in lines],
                metadata=lines[0][1],
                num_samples=int(record.get("eval/samples") or len(lines)),
            )
            for problem_id, lines in by_problem.items()
        )


def _read_counted(path: Path) -> Iterator[tuple[Rollout, dict[str, Any]]]:
    """What an outcome counts of each rollout of a file, and its metadata; without tokens, which are most of a file."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value: dict[str, Any] = json.loads(line)
                yield _counted(value["rollout"]), dict(value["metadata"])
            except (RecordError, ValueError, TypeError, KeyError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not a rollout record: {type(error).__name__}: {error}") from error


def _counted(value: dict[str, Any]) -> Rollout:
    num_tokens = len(value["token_ids"])
    return Rollout(
        id=str(value["id"]),
        problem_id=str(value["problem_id"]),
        token_ids=(0,) * num_tokens,
        behavior_logprobs=(0.0,) * num_tokens,
        segments=tuple(from_json(Segment, segment) for segment in value["segments"]),
        images=(),
        stop_reason=StopReason(value["stop_reason"]),
        final_text="",
        reward=float(value["reward"]),
        tool_results=tuple(from_json(ToolResult, result) for result in value["tool_results"]),
    )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs that differ in nothing but their seed."""

    label: str
    method: Method
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its runs, ascending."""
        return tuple(sorted(run.seed for run in self.runs))

    @property
    def last_eval_step(self) -> int | None:
        """The latest step at which all runs were evaluated."""
        common = set.intersection(*({record["step"] for record in run.eval_records} for run in self.runs))
        return max(common, default=None)


def check_is_run(folder: Path) -> None:
    """Raise `DataError` for the folder of an evaluation on benchmarks, which has a page of its own."""
    if (folder / "eval.json").exists():
        raise DataError(
            f"{folder}: an evaluation on benchmarks, not a run. Its page is {folder / 'report.html'}; the `axpo eval` "
            "command that made it writes the page again and asks the model nothing twice."
        )


def load_run(folder: Path) -> Run:
    """Read a run directory. Raises `DataError` when it is none."""
    check_is_run(folder)
    if not (folder / "metrics.jsonl").exists() and not (folder / "config.toml").exists():
        raise DataError(f"{folder}: not a run directory: it has neither metrics.jsonl nor config.toml.")
    config: dict[str, Any] = {}
    if (folder / "config.toml").exists():
        try:
            config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{folder / 'config.toml'}: not readable TOML: {error}") from error
    return Run(folder=folder, config=config, info=read_run_info(folder), records=read_metrics(folder))


def keep_records(run_dir: Path, folder: Path) -> None:
    """Copy what tables and curves need of a run: configuration, environment, metrics, the outcome of each question.

    A hundredth of the run's size, without tokens, pictures and weights, and without the command lines, which name
    folders of the machine.
    """
    run = load_run(run_dir)
    (folder / "outcomes").mkdir(parents=True, exist_ok=True)
    for name in ("config.toml", "metrics.jsonl"):
        (folder / name).write_bytes((run_dir / name).read_bytes())
    info = {key: value for key, value in run.info.items() if key not in ("argv", "resumed")}
    (folder / "run.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    for record in run.eval_records:
        lines = [json.dumps(to_json(outcome)) + "\n" for outcome in run.outcomes(record["step"])]
        _outcomes_path(folder, record["step"]).write_text("".join(lines), encoding="utf-8")


def _outcomes_path(folder: Path, step: int) -> Path:
    return folder / "outcomes" / f"eval-{step:06d}.jsonl"


def load_arms(folders: Sequence[Path]) -> tuple[Arm, ...]:
    """Read runs and put those together that differ only in their seed, baselines first.

    Raises `DataError` when a folder is no run directory or none is given.
    """
    if not folders:
        raise DataError("No run directory given.")
    runs = [load_run(folder) for folder in folders]
    by_config: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (_METHODS.index(run.method), run.seed, run.name)):
        by_config.setdefault(_comparison_key(run), []).append(run)
    sizes = {run.group_size for run in runs if run.method in ("GRPO", "AXPO")}
    labels = [_label(members[0], show_group_size=len(sizes) > 1) for members in by_config.values()]
    return tuple(
        Arm(
            label=label if labels.count(label) == 1 else f"{label} ({members[0].name})",
            method=members[0].method,
            runs=tuple(members),
        )
        for label, members in zip(labels, by_config.values(), strict=True)
    )


def _comparison_key(run: Run) -> str:
    table = {key: value for key, value in run.table("run").items() if key not in _IGNORED_IN_COMPARISON}
    return json.dumps([run.method, {**run.config, "run": table}], sort_keys=True, default=str)


def _label(run: Run, *, show_group_size: bool) -> str:
    if run.method == "Evaluation":
        return run.name
    algorithm = run.table("algorithm")
    deviations = {
        "no prefix credit": algorithm.get("prefix_credit") is False,
        "shared baseline": algorithm.get("separate_groups") is False,
        "random rank": algorithm.get("rank") == "random" and run.method == "AXPO",
        "CISPO": algorithm.get("loss") == "cispo",
        f"N = {run.group_size}": show_group_size and run.method in ("GRPO", "AXPO"),
    }
    return ", ".join([run.method, *(text for text, holds in deviations.items() if holds)])
