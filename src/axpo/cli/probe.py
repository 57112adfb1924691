"""`axpo diagnose --probe CONFIG.toml`: sample a checkpoint's failed prefixes again.

A probe is a run folder: `rollouts/train-000000.jsonl` holds siblings and continuations, `rollouts/eval-000000.jsonl`
the fresh rollouts of the probed questions, `probe.json` the numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axpo.errors import ConfigError
from axpo.files import write_atomically

if TYPE_CHECKING:
    from axpo.cli.build import Parts
    from axpo.cli.console import RunConsole
    from axpo.cli.probe_log import ProbeLog
    from axpo.diagnostics.recorder import RunRecorder
    from axpo.evaluation.probe_numbers import FreshOutcome, PrefixOutcome, ProbeNumbers
    from axpo.evaluation.probe_text import ProbeCounts
    from axpo.protocols import ChatModel
    from axpo.rollout.collect import SampledGroups, StepRollouts
    from axpo.rollout.loop import RolloutSetup
    from axpo.trainer.config import Config
    from axpo.types import Problem, Rollout

NUM_QUESTIONS = 64
NUM_CONTINUATIONS = 16
"""As in the paper."""
MAX_PREFIXES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a probe."""
    of = parser.add_argument_group("live probe of a checkpoint (in place of FILE_OR_DIR)")
    of.add_argument("--probe", type=Path, metavar="CONFIG.toml", help="continue failed prefixes of this configuration")
    of.add_argument("--checkpoint", type=Path, metavar="PATH", help="a model folder, a checkpoint or a run")
    of.add_argument("--questions", type=int, default=NUM_QUESTIONS, metavar="N", help=f"default {NUM_QUESTIONS}")
    of.add_argument(
        "--continuations",
        type=int,
        default=NUM_CONTINUATIONS,
        metavar="K",
        help=f"of each prefix, and fresh rollouts of each probed question; default {NUM_CONTINUATIONS}",
    )
    of.add_argument(
        "--max-prefixes", type=int, default=MAX_PREFIXES, metavar="M", help=f"over all; default {MAX_PREFIXES}"
    )
    of.add_argument("--out", type=Path, metavar="DIR", help="where to record; default: run.output_dir with -probe")
    of.add_argument("--judge-url", metavar="URL", help="an endpoint whose model joins calls that mean the same")
    of.add_argument("--judge-model", metavar="NAME")
    of.add_argument("--judge-key-env", metavar="NAME", help="environment variable with its key")


def open_judge(url: str | None, model: str | None, key_env: str | None) -> ChatModel | None:
    """The model that joins calls which mean the same; None without. Raises `ConfigError`."""
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise ConfigError("axpo diagnose: --judge-url and --judge-model belong together: give both.")
    from axpo.engines.http import HttpChatModel
    from axpo.images import ContentImageStore
    from axpo.rollout.calls import read_call

    return HttpChatModel(url, model, store=ContentImageStore(), read_call=read_call, api_key_env=key_env)


def run_probe(
    config_path: Path,
    checkpoint: Path | None,
    overrides: Mapping[str, str],
    *,
    num_questions: int = NUM_QUESTIONS,
    num_continuations: int = NUM_CONTINUATIONS,
    max_prefixes: int = MAX_PREFIXES,
    out: Path | None = None,
    judge: ChatModel | None = None,
) -> int:
    """Sample, record, print; returns 0. Questions, sampling and limits are those of training step 1.

    A probe that was stopped continues with the rollouts it has when the same command is given again.

    Args:
        config_path: the TOML file.
        checkpoint: what to probe; None: `model.path`.
        overrides: `table.option` to value.
        num_questions: at most so many.
        num_continuations: K.
        max_prefixes: M, over all questions.
        out: the run folder; None: `probe_folder`.
        judge: joins clusters of calls that mean the same. It is closed after it was asked; a model that was never
            asked has no connection.

    Raises:
        ConfigError: an option is wrong, or the folder is taken.
        DataError: the questions are.
        RolloutFault: all rollouts were lost to faults of ours.
    """
    from axpo.cli.build import (
        build_engine,
        build_parts,
        build_rollout_setup,
        load_eval_problems,
        load_train_problems,
        open_folder,
    )
    from axpo.cli.console import RunConsole
    from axpo.cli.folders import hold_folder
    from axpo.cli.overrides import load_config
    from axpo.cli.probe_log import ProbeLog, check_probe_folder
    from axpo.cli.tools import check_tools
    from axpo.evaluation.probes import STEP
    from axpo.images import ContentImageStore
    from axpo.trainer.checkpoint import find_model
    from axpo.trainer.sources import select_items

    for name, value, least in (
        ("questions", num_questions, 1),
        ("continuations", num_continuations, 2),
        ("max-prefixes", max_prefixes, 1),
    ):
        if value < least:
            raise ConfigError(f"--{name} {value}: expected a whole number from {least} on.")
    config = load_config(config_path, overrides)
    folder = out or probe_folder(config)
    if checkpoint is not None:
        model = config.model.model_copy(update={"path": str(find_model(checkpoint))})
        config = config.model_copy(update={"model": model})
    check_probe_folder(folder, config)
    parts = build_parts(config, store=ContentImageStore(folder / "images"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(parts.executor))
        problems = load_train_problems(parts) if config.data.train else load_eval_problems(parts)
        problems = select_items(problems, step=1, num_items=num_questions, seed=config.run.seed)
        check_tools(parts.executor)
        engine = stack.enter_context(contextlib.closing(build_engine(parts)))
        setup = build_rollout_setup(parts, engine)
        stack.enter_context(hold_folder(folder))
        log = ProbeLog(folder, store=parts.store)
        setup = replace(setup, known=log.known)
        recorder = open_folder(parts, folder)
        recorder.truncate_after(STEP - 1)
        console = stack.enter_context(RunConsole(columns=(), num_steps=0))
        probe = _Probe(parts=parts, setup=setup, problems=problems, console=console, recorder=recorder, log=log)
        result = probe.run(num_continuations=num_continuations, max_prefixes=max_prefixes)
        _write(folder, config, result)
        log.remove()
        if judge is not None and result.prefixes:
            result = _judged(result, problems, judge)
            _write(folder, config, result)
    _show(result, folder)
    return 0


def probe_folder(config: Config) -> Path:
    """Where a probe is recorded unless `--out` says otherwise."""
    return config.run.output_dir.with_name(f"{config.run.output_dir.name}-probe")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What `probe.json` holds, beside how it came about."""

    verdict: str
    counts: ProbeCounts
    numbers: ProbeNumbers
    max_prefixes: int
    seconds: float
    prefixes: tuple[PrefixOutcome, ...]
    fresh: Mapping[str, FreshOutcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    parts: Parts
    setup: RolloutSetup
    problems: Sequence[Problem]
    console: RunConsole
    recorder: RunRecorder
    log: ProbeLog

    def on_rollout(self, rollout: Rollout) -> None:
        """Keep a rollout and move the bar."""
        self.log.add(rollout)
        self.console.on_rollout(rollout)

    def run(self, *, num_continuations: int, max_prefixes: int) -> ProbeResult:
        from axpo.evaluation.probe_numbers import measure
        from axpo.evaluation.probe_text import verdict
        from axpo.evaluation.probes import fresh_outcomes, prefix_outcomes, probed_problems, sample_fresh

        started_s = time.monotonic()
        seed = self.parts.config.run.seed
        step = self._sample_prefixes(num_continuations, max_prefixes)
        probed = probed_problems(step, self.problems)
        fresh: Mapping[str, FreshOutcome] = {}
        if probed:
            self.console.start_rollouts("fresh rollouts", len(probed) * num_continuations)
            sampled = sample_fresh(
                probed,
                setup=self.setup,
                num_rollouts=num_continuations,
                seed=seed,
                on_rollout=self.on_rollout,
            )
            self._record_fresh(sampled, probed, num_continuations)
            fresh = fresh_outcomes(sampled.groups, num_rollouts=num_continuations)
        prefixes = prefix_outcomes(
            step.continuations, self.problems, setup=self.setup, num_continuations=num_continuations
        )
        counts = self._count(step, prefixes, fresh)
        numbers = measure(prefixes, fresh, num_continuations=num_continuations)
        return ProbeResult(
            verdict=verdict(counts, numbers),
            counts=counts,
            numbers=numbers,
            max_prefixes=max_prefixes,
            seconds=time.monotonic() - started_s,
            prefixes=prefixes,
            fresh=fresh,
        )

    def _sample_prefixes(self, num_continuations: int, max_prefixes: int) -> StepRollouts:
        from axpo.evaluation.probes import sample_prefixes

        config, algorithm = self.parts.config, self.parts.config.algorithm
        self.console.start_rollouts("siblings and continuations", len(self.problems) * config.rollout.group_size)
        step = sample_prefixes(
            self.problems,
            setup=self.setup,
            group_size=config.rollout.group_size,
            num_continuations=num_continuations,
            max_prefixes=max_prefixes,
            seed=config.run.seed,
            branch_at=algorithm.branch_at,
            calls=algorithm.confidence_calls,
            tags=algorithm.confidence_tags,
            on_rollout=self.on_rollout,
            on_total=self.console.on_total,
        )
        self._record_step(step)
        return step

    def _record_step(self, step: StepRollouts) -> None:
        from axpo.algo.prefixes import tool_call_confidence
        from axpo.diagnostics.metrics import rollout_metrics
        from axpo.diagnostics.recorder import rollout_lines
        from axpo.evaluation.probes import STEP

        algorithm = self.parts.config.algorithm
        calls = "all" if algorithm.confidence_calls == "all" else algorithm.branch_at
        metrics = rollout_metrics(
            step.groups,
            step.continuations,
            step.plan,
            step.num_dropped,
            problems=self.problems,
            tools=tuple(self.setup.executor.tools),
        )
        times = {"seconds/rollout": step.rollout_s, "seconds/resample": step.resample_s}
        lines = rollout_lines(
            step=STEP,
            phase="train",
            groups=step.groups,
            problems=self.problems,
            decode=self.parts.renderer.decode,
            continuations=step.continuations,
            confidence_of=lambda rollout: tool_call_confidence(rollout, calls=calls, tags=algorithm.confidence_tags),
        )
        self.recorder.record_step(STEP, {**metrics, **self.setup.executor.take_service_numbers(), **times}, lines)

    def _record_fresh(self, sampled: SampledGroups, problems: Sequence[Problem], num_rollouts: int) -> None:
        from axpo.diagnostics.recorder import rollout_lines
        from axpo.evaluation.outcomes import outcome_metrics, question_outcome
        from axpo.evaluation.probes import STEP

        metadata = {problem.id: problem.metadata for problem in problems}
        outcomes = [
            question_outcome(
                group.problem_id, group.rollouts, metadata=metadata[group.problem_id], num_samples=num_rollouts
            )
            for group in sampled.groups
        ]
        lines = rollout_lines(
            step=STEP, phase="eval", groups=sampled.groups, problems=problems, decode=self.parts.renderer.decode
        )
        metrics = outcome_metrics(outcomes)
        self.recorder.record_eval(STEP, {**metrics, **self.setup.executor.take_service_numbers()}, lines)

    def _count(
        self, step: StepRollouts, prefixes: Sequence[PrefixOutcome], fresh: Mapping[str, FreshOutcome]
    ) -> ProbeCounts:
        from axpo.evaluation.probe_text import ProbeCounts

        group_size = self.parts.config.rollout.group_size
        siblings = sum(len(group.rollouts) for group in step.groups)
        return ProbeCounts(
            questions=len(self.problems),
            siblings=siblings,
            siblings_lost=len(self.problems) * group_size - siblings,
            group_size=group_size,
            tool_using=sum(len(group.tool_using) for group in step.groups),
            questions_with_tool=sum(bool(group.tool_using) for group in step.groups),
            triggered=step.plan.num_triggered,
            candidates=step.plan.num_candidates,
            prefixes=len(step.plan.prefixes),
            probed_questions=len(fresh),
            continuations=sum(prefix.num_continuations for prefix in prefixes),
            continuations_lost=sum(prefix.num_lost for prefix in prefixes),
            num_continuations=step.plan.num_continuations,
            fresh=sum(outcome.num_rollouts for outcome in fresh.values()),
            fresh_lost=sum(outcome.num_lost for outcome in fresh.values()),
        )


def _judged(result: ProbeResult, problems: Sequence[Problem], model: ChatModel) -> ProbeResult:
    from axpo.evaluation.call_judge import CallJudge
    from axpo.evaluation.probe_numbers import measure
    from axpo.evaluation.probes import judge_outcomes

    questions = {
        problem.id: next(message.text for message in reversed(problem.messages) if message.role == "user")
        for problem in problems
    }
    judge = CallJudge(model)

    async def ask() -> tuple[PrefixOutcome, ...]:
        try:
            return await judge_outcomes(result.prefixes, questions, judge=judge)
        finally:
            await model.close()

    prefixes = asyncio.run(ask())
    counts = replace(result.counts, judge_asked=judge.counts.asked, judge_failed=judge.counts.failed)
    numbers = measure(prefixes, result.fresh, num_continuations=counts.num_continuations)
    return replace(result, counts=counts, numbers=numbers, prefixes=prefixes)


def _write(folder: Path, config: Config, result: ProbeResult) -> None:
    from axpo.codec import to_json
    from axpo.diagnostics import call_clusters

    rules = ("MIN_BOX_IOU", "MAX_NUMBER_GAP", "MIN_CODE_OVERLAP", "MIN_TEXT_OVERLAP")
    value: dict[str, Any] = {
        "checkpoint": config.model.path,
        "seed": config.run.seed,
        **to_json(result),
        "thresholds": {name.lower(): getattr(call_clusters, name) for name in rules},
        "config": config.model_dump(mode="json"),
    }
    write_atomically(folder / "probe.json", [json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)])


def _show(result: ProbeResult, folder: Path) -> None:
    from rich.console import Console

    from axpo.evaluation.probe_text import render

    console = Console(highlight=False)
    if not console.is_terminal:  # a log, a pipe: tables must not be squeezed into 80 columns
        console = Console(highlight=False, width=160)
    for part in render(result.counts, result.numbers):
        console.print(part)
    console.print(f"recorded in {folder}, numbers in probe.json", markup=False, soft_wrap=True)
