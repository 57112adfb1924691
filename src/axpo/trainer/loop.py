"""The loop. Supervised fine-tuning, GRPO and AXPO are this function with other rows."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch.optim import Optimizer

from axpo.diagnostics.health import Alarm, check
from axpo.diagnostics.recorder import RunRecorder
from axpo.trainer.checkpoint import TrainerState, save_checkpoint
from axpo.trainer.config import Config
from axpo.trainer.policy import Policy
from axpo.trainer.sources import Lines, RowSource
from axpo.trainer.step import Metrics, train_step
from axpo.trainer.weight_sync import WeightSync

BEST_METRIC = "eval/pass@1"
"""The checkpoint with the highest value is `best`."""

Evaluate = Callable[[int], tuple[Metrics, Lines]]


class Observer(Protocol):
    """Watches a run, for people or trackers; has no say in it."""

    def on_start(self, step: int) -> None:
        """Before anything of step `step`."""
        ...

    def on_step(self, step: int, metrics: Mapping[str, Any], alarms: Sequence[Alarm]) -> None:
        """After step `step` was recorded."""
        ...

    def on_eval(self, step: int, metrics: Mapping[str, Any]) -> None:
        """After the evaluation behind step `step` was recorded."""
        ...

    def on_checkpoint(self, step: int, path: Path) -> None:
        """After a checkpoint is complete."""
        ...


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything `train` needs, wired by the command line or by hand."""

    config: Config
    policy: Policy
    optimizer: Optimizer
    source: RowSource[Any]
    sync: WeightSync | None
    """None: nothing samples (supervised fine-tuning without evaluation)."""
    evaluate: Evaluate | None
    """Metrics and records of an evaluation behind step n; None without held-out questions."""
    recorder: RunRecorder
    observer: Observer
    checkpoints: Path
    state: TrainerState = field(default_factory=TrainerState)
    history: list[dict[str, Any]] = field(default_factory=lambda: list[dict[str, Any]]())
    """Training metrics of the steps before; what health alarms look back on."""


def train(run: Run) -> TrainerState:
    """Train from `run.state` to the last step. Every step is a function of the weights, the seed and its number."""
    config, state = run.config, run.state
    if run.sync is not None and run.source.needs_engine:
        run.sync.push(state.step)
    for step in range(state.step + 1, config.train.steps + 1):
        run.observer.on_start(step)
        metrics: Metrics = {}
        with timed(metrics, "seconds/step"):
            data = run.source.collect(step)  # (1) sample siblings, (2) plan, (3) sample continuations
            rows = run.source.assign_credit(data)  # (4) advantages, (5) credit per token
            with timed(metrics, "seconds/train"):  # (6) batches, (7) losses, (8) update
                metrics |= train_step(
                    run.policy,
                    run.optimizer,
                    rows,
                    config=config,
                    step=step,
                    num_questions=run.source.items_per_step,
                )
            if run.sync is not None and (run.source.needs_engine or _is_eval_due(run, step)):
                with timed(metrics, "seconds/sync"):
                    metrics["sync/canary_gap"] = run.sync.push(step)
        collected, lines = run.source.describe(data, rows)
        metrics |= {**collected, "memory/peak_bytes": peak_memory_bytes()}
        run.recorder.record_step(step, metrics, lines)
        run.observer.on_step(step, metrics, _alarms(run, step, metrics))  # (9)
        state = dataclasses.replace(state, step=step)
        if _is_eval_due(run, step):
            state = _evaluate(run, state)
        if step % config.train.save_every == 0 or step == config.train.steps or state.best_step == step:
            path = save_checkpoint(run.checkpoints, policy=run.policy, optimizer=run.optimizer, state=state)
            run.observer.on_checkpoint(step, path)
    return state


@contextlib.contextmanager
def timed(metrics: Metrics, name: str) -> Generator[None]:
    """Put the wall-clock seconds of the block into `metrics[name]`."""
    started_s = time.perf_counter()
    yield
    metrics[name] = time.perf_counter() - started_s


def peak_memory_bytes() -> int:
    """Most memory this process has held so far: the GPU's when one was used, else resident memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _is_eval_due(run: Run, step: int) -> bool:
    every = run.config.train.eval_every
    is_last = step == run.config.train.steps
    return run.evaluate is not None and (is_last or (every > 0 and step % every == 0))


def _evaluate(run: Run, state: TrainerState) -> TrainerState:
    """Evaluate behind `state.step` and remember the best score."""
    assert run.evaluate is not None
    metrics: Metrics = {}
    with timed(metrics, "seconds/eval"):
        found, lines = run.evaluate(state.step)
    metrics |= found
    run.recorder.record_eval(state.step, metrics, lines)
    run.observer.on_eval(state.step, metrics)
    score = metrics.get(BEST_METRIC)
    if score is not None and (state.best_score is None or score > state.best_score):
        return dataclasses.replace(state, best_step=state.step, best_score=float(score))
    return state


def _alarms(run: Run, step: int, metrics: Mapping[str, Any]) -> tuple[Alarm, ...]:
    run.history.append({"kind": "train", "step": step, **metrics})
    return check(run.history)
